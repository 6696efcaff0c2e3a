"""Files of SQLite with a changelog at the broker: for flows on several machines that have no directory and no database in common."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from mycelia.amqp import Link
from mycelia.flow.changelog_replay import ChangelogReplay, FromThread
from mycelia.flow.changelog_stream import ChangelogStream
from mycelia.flow.logged_file import LoggedFile
from mycelia.flow.logged_state import LoggedState
from mycelia.flow.partition_state import StatePlace
from mycelia.flow.state import StoreReader
from mycelia.flow.state_directory import StateDirectory
from mycelia.flow.state_file import FlowCheckpoint

__all__ = ["LoggedHome"]


class LoggedHome:
    """A `StateHome`. Made on the event loop that the link lives on; all else is called in other threads.

    Args:
        retain_bytes: what each stream keeps.
    """

    is_shared = True

    def __init__(self, directory: StateDirectory, link: Link, retain_bytes: int) -> None:
        self.where = f"{directory.where}, with changelogs at the broker"
        self._directory = directory
        self._link = link
        self._retain_bytes = retain_bytes
        self._run = FromThread(asyncio.get_running_loop())

    def prepare(self, what: str, group: str, sources: Sequence[str]) -> None:
        self._directory.prepare(what, group, sources)

    def _stream(self, place: StatePlace) -> ChangelogStream:
        return ChangelogStream(self._link, place, self._retain_bytes)

    def open(self, place: StatePlace) -> LoggedState:
        file = LoggedFile(self._directory.path_of(place), str(place))
        return LoggedState(file, self._stream(place), place, self._run, self._retain_bytes)

    def reading(self, place: StatePlace) -> AbstractContextManager[StoreReader]:
        """As of what this machine has: for its partitions' owner the last commit."""
        return self._directory.reading(place)

    def checkpoint(self, place: StatePlace) -> FlowCheckpoint | None:
        """That of the last commit in the log, whichever machine it is from."""
        with TemporaryDirectory() as directory:
            with self._rebuilt(place, Path(directory) / "state.sqlite3") as file:
                if file is not None:
                    return file.load_checkpoint()
        return self._directory.checkpoint(place)

    def flows(self) -> list[str]:
        """As far as this machine knows: at the broker they cannot be listed."""
        return self._directory.flows()

    def kept(self, group: str) -> list[tuple[str, int]]:
        """Also those of which only the broker has something. Of which stages a flow is, the directories say, which every instance makes."""
        kept = set(self._directory.kept(group))
        for source in self._directory.sources(group):
            most = max((partition for of, partition in kept if of == source), default=-1)
            partition = 0
            while True:
                stream = self._stream(StatePlace(source, group, source, partition))
                if self._run(stream.exists()):
                    kept.add((source, partition))
                elif partition > most:
                    break
                partition += 1
        return sorted(kept)

    def copy(self, place: StatePlace, to: Path) -> None:
        """As of the last commit in the log, whichever machine it is from."""
        with self._rebuilt(place, to) as file:
            if file is not None:
                file.forget_mark()
                file.leave_one_file()
                return
        to.unlink(missing_ok=True)
        self._directory.copy(place, to)

    @contextmanager
    def _rebuilt(self, place: StatePlace, path: Path) -> Iterator[LoggedFile | None]:
        """A file with what the log says; `None`: that is nothing."""
        stream = self._stream(place)
        if not self._run(stream.exists()):
            yield None
            return
        with closing(LoggedFile(path, str(place))) as file:
            replay = ChangelogReplay(stream, file, self._run, str(place))
            replay.catch_up()
            yield None if replay.register.mark.is_of_nothing else file

    def size_bytes(self, place: StatePlace) -> int | None:
        return self._directory.size_bytes(place)

    def close(self) -> None: ...
