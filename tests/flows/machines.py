"""Machines that have a broker in common and no directory: where states with changelogs are kept, for tests without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self, TypeVar

from mycelia.amqp import Link
from mycelia.amqp.connect import connect
from mycelia.flow.changelog_stream import ChangelogStream
from mycelia.flow.logged_home import LoggedHome
from mycelia.flow.logged_state import LoggedState
from mycelia.flow.partition_state import StatePlace
from mycelia.flow.state import StoreReader
from mycelia.flow.state_directory import StateDirectory
from mycelia.flow.state_file import FlowCheckpoint

__all__ = ["Machines", "changelog_config"]

R = TypeVar("R")

RETAIN_BYTES = 64 * 1024 * 1024


class Machines:
    """A `StateHome` of which each owner is on a machine that nobody has been on before.

    Args:
        path: holds their directories.
    """

    where = "other machines"
    is_shared = True

    def __init__(self, uri: str, path: Path, retain_bytes: int = RETAIN_BYTES) -> None:
        self.path = path
        self.retain_bytes = retain_bytes
        self._uri = uri
        self._groups: list[tuple[str, str, Sequence[str]]] = []
        self._count = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._last: LoggedHome | None = None
        self.link: Link

    def __enter__(self) -> Self:
        self._thread.start()
        self.link = self.run(self._linked())
        return self

    async def _linked(self) -> Link:
        link = connect(self._uri)
        await link.open(15)
        return link

    def __exit__(self, *_: object) -> None:
        self.run(self.link.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def home(self, name: str, link: Link | None = None) -> LoggedHome:
        """That of one machine."""

        async def made() -> LoggedHome:
            directory = StateDirectory(self.path / name)
            return LoggedHome(directory, link or self.link, self.retain_bytes)

        home = self.run(made())
        for one in self._groups:
            home.prepare(*one)
        return home

    def stream(self, place: StatePlace) -> ChangelogStream:
        return ChangelogStream(self.link, place, self.retain_bytes)

    # --- as a `StateHome` ------------------------------------------------------------------------

    def prepare(self, what: str, group: str, sources: Sequence[str]) -> None:
        self.home("all").prepare(what, group, sources)
        self._groups.append((what, group, sources))

    def open(self, place: StatePlace) -> LoggedState:
        self._count += 1
        self._last = self.home(f"machine-{self._count}")
        return self._last.open(place)

    def reading(self, place: StatePlace) -> AbstractContextManager[StoreReader]:
        return (self._last or self.home("all")).reading(place)

    def checkpoint(self, place: StatePlace) -> FlowCheckpoint | None:
        return self.home("all").checkpoint(place)

    def flows(self) -> list[str]:
        return self.home("all").flows()

    def kept(self, group: str) -> list[tuple[str, int]]:
        return self.home("all").kept(group)

    def copy(self, place: StatePlace, to: Path) -> None:
        self.home("all").copy(place, to)

    def size_bytes(self, place: StatePlace) -> int | None:
        return None

    def close(self) -> None: ...


def changelog_config(state: Path) -> dict[str, Any]:
    """A service's, with a directory of its own."""
    return {"mycelia": {"flows": {"state": str(state), "changelog": True}}}
