"""The states of flows in a directory of this machine: for each stage of each flow a directory, for each of its partitions a file of SQLite."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import quote, unquote

from mycelia.errors import ConfigError
from mycelia.flow.committed_state import committed_checkpoint, committed_state
from mycelia.flow.partition_state import StatePlace
from mycelia.flow.state import StoreReader
from mycelia.flow.state_file import FlowCheckpoint, StateFile, copy_state_file

__all__ = ["StateDirectory"]


class StateDirectory:
    """A `StateHome`.

    Args:
        state: its path; from the working directory, if it is not absolute.
    """

    is_shared = False

    def __init__(self, state: str | Path) -> None:
        self.path = Path(state).absolute()
        self.where = str(self.path)

    def prepare(self, what: str, group: str, sources: Sequence[str]) -> None:
        directory = self.path
        try:
            for source in sources:
                directory = self.directory_of(source, group)
                directory.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=directory):
                    pass
        except OSError as exc:
            raise ConfigError(
                f"{what}: its state cannot be kept in {directory}: {exc.strerror or exc}. Set mycelia.flows.state to a "
                "directory that this process may write, and that all instances on this machine share."
            ) from exc
        wanted = {self.directory_of(source, group).name for source in sources}
        there = {one.name for one in self.path.glob(f"*--{_in_path(group)}")}
        if gone := sorted(there - wanted):
            raise ConfigError(
                f"{what}: in {self.path} is state of this flow in {', '.join(gone)}, and as it is described now it has only "
                f"{', '.join(sorted(wanted))}. Its open windows would be lost in silence: describe it as it was, let it begin anew with another "
                "group=, or move that state away."
            )

    def directory_of(self, source: str, group: str) -> Path:
        return self.path / f"{_in_path(source)}--{_in_path(group)}"

    def path_of(self, place: StatePlace) -> Path:
        return self.directory_of(place.source, place.group) / f"{place.partition}.sqlite3"

    def open(self, place: StatePlace) -> StateFile:
        return StateFile(self.path_of(place), str(place))

    def reading(self, place: StatePlace) -> AbstractContextManager[StoreReader]:
        return committed_state(self.path_of(place), str(place))

    def checkpoint(self, place: StatePlace) -> FlowCheckpoint | None:
        return committed_checkpoint(self.path_of(place), str(place))

    def flows(self) -> list[str]:
        return sorted({unquote(one.name.rpartition("--")[2]) for one in self.path.glob("*--*")})

    def kept(self, group: str) -> list[tuple[str, int]]:
        suffix = f"--{_in_path(group)}"
        return sorted(
            (unquote(path.parent.name.removesuffix(suffix)), int(path.stem))
            for path in self.path.glob(f"*{suffix}/*.sqlite3")
            if path.stem.isdecimal()
        )

    def sources(self, group: str) -> list[str]:
        """What stages of a flow are leased by that may have state here."""
        suffix = f"--{_in_path(group)}"
        return sorted(
            unquote(path.name.removesuffix(suffix)) for path in self.path.glob(f"*{suffix}")
        )

    def copy(self, place: StatePlace, to: Path) -> None:
        copy_state_file(self.path_of(place), to, str(place))

    def size_bytes(self, place: StatePlace) -> int | None:
        path = self.path_of(place)
        try:
            return path.stat().st_size
        except OSError:
            return None

    def close(self) -> None: ...


def _in_path(name: str) -> str:
    """A name as a part of a directory's, where `--` only stands between a source and a group."""
    quoted = quote(name, safe="")
    if "--" in quoted or quoted.startswith("-") or quoted.endswith("-"):
        return quoted.replace("-", "%2D")
    return quoted
