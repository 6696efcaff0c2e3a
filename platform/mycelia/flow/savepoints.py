"""Savepoints: a copy of all that the partitions of a flow have come to, made while it runs, from which it may go on another time.

    delays-before-2.1/
      savepoint.json                    whose it is, when it was taken, and which partitions it has; written last: without it there is none
      flights.departed--0.sqlite3       a partition: state, positions and outbox of one commit, as `StateFile` keeps them

The same files come from a directory of state files and from a PostgreSQL, and go back into either: so a flow moves from one to the other.
What is particular to a flow of several stages is in `stage_savepoints`. All functions here block.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from mycelia.errors import ConfigError, RuntimeStateError
from mycelia.flow.partition_state import StatePlace
from mycelia.flow.state_file import SavedState
from mycelia.flow.state_home import StateHome, meant_flow

__all__ = [
    "SavedBetween",
    "SavedPartition",
    "Savepoint",
    "begun_savepoint",
    "kept_partitions",
    "list_savepoints",
    "read_savepoint",
    "save_partition",
    "take_savepoint",
    "write_savepoint",
]

FORMAT: Final = 2
"""1: what lay between the stages of a flow was not in it."""

_FILE: Final = "savepoint.json"


class SavedPartition(msgspec.Struct, frozen=True, kw_only=True):
    """A partition in a savepoint."""

    source: str
    """See `StatePlace`."""
    partition: int
    file: str
    """In the savepoint's directory."""
    offsets: dict[str, int]
    """By source: of the next entry."""


class SavedBetween(msgspec.Struct, frozen=True, kw_only=True):
    """A log between stages, whose entries that had not been taken yet lie in the outboxes of those who had written them."""

    source: str
    """As the stage behind calls it: the `key_by()` after which records were split anew."""
    log: str
    partitions: int
    entries: int
    """That had not been taken."""


class Savepoint(msgspec.Struct, frozen=True, kw_only=True):
    """What `savepoint.json` says."""

    format: int
    group: str
    """The flow."""
    taken_ms: int
    """When, milliseconds since 1970."""
    partitions: list[SavedPartition]
    between: list[SavedBetween] = []

    @property
    def sources(self) -> list[str]:
        return sorted({one.source for one in self.partitions})


def take_savepoint(home: StateHome, group: str, directory: Path) -> Savepoint:
    """Copy the state of each partition, as of its last commit, into a new directory. The flow may run meanwhile; nobody waits for it.

    Partitions are copied one after the other. Each copy is of one commit and has the positions of that commit, so it is consistent with itself,
    and partitions know nothing of each other. Stages do: for a flow of several there is `save_flow()`, which asks the broker as well.

    Raises:
        ConfigError: the directory is there already, or cannot be made; or the flow is of several stages.
        RuntimeStateError: the flow has no state in `home`.
        StateUnavailable: a state cannot be read.
    """
    kept = kept_partitions(home, group)
    if len(stages := sorted({source for source, _ in kept})) > 1:
        raise ConfigError(
            f'flow "{group}" is of several stages ({", ".join(stages)}): take its savepoint with save_flow() and a link to the broker, or with '
            "`mycelia flow savepoint`, so that what lies in the logs between them is in it."
        )
    with begun_savepoint(directory):
        saved = [
            save_partition(home, group, source, partition, directory) for source, partition in kept
        ]
        savepoint = Savepoint(
            format=1, group=group, taken_ms=int(time.time() * 1000), partitions=saved
        )
        write_savepoint(savepoint, directory)
    return savepoint


def kept_partitions(home: StateHome, group: str) -> list[tuple[str, int]]:
    """What the stages of a flow are leased by, and the partitions of each that have state.

    Raises:
        RuntimeStateError: there are none.
    """
    kept = home.kept(group)
    if not kept:
        raise RuntimeStateError(
            f'flow "{group}" has no state in {home.where}: it has never run with it, or its group or mycelia.flows.state is another.{meant_flow(home, group)}'
        )
    return kept


@contextmanager
def begun_savepoint(directory: Path) -> Iterator[None]:
    """Make a savepoint's directory; it is removed if what is done in it raises.

    Raises:
        ConfigError: it is there already, or cannot be made.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir()
    except OSError as exc:
        raise ConfigError(
            f"the savepoint {directory} cannot be made: {exc.strerror or exc}. Give it a name that is new, in a directory that may be written."
        ) from exc
    try:
        yield
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def save_partition(
    home: StateHome, group: str, source: str, partition: int, directory: Path
) -> SavedPartition:
    """Copy the state of one partition; a copy that is there already is replaced."""
    file = f"{quote(source, safe='')}--{partition}.sqlite3"
    path = directory / file
    path.unlink(missing_ok=True)
    home.copy(StatePlace(source, group, source, partition), path)
    _sync(path)
    with closing(SavedState(path)) as state:
        positions = state.checkpoint.positions
    offsets = {name: one.offset for name, one in positions.items()}
    return SavedPartition(source=source, partition=partition, file=file, offsets=offsets)


def write_savepoint(savepoint: Savepoint, directory: Path) -> None:
    """Say that a savepoint is whole: the last thing that is written of it."""
    for one in savepoint.partitions:
        _sync(directory / one.file)
    beside = directory / f".{_FILE}.new"
    beside.write_bytes(msgspec.json.format(msgspec.json.encode(savepoint), indent=2))
    _sync(beside)
    beside.replace(directory / _FILE)
    _sync(directory)


def read_savepoint(directory: Path) -> Savepoint:
    """What a savepoint has.

    Raises:
        ConfigError: there is none, or a part of it is missing, or a later version has written it.
    """
    try:
        savepoint = msgspec.json.decode((directory / _FILE).read_bytes(), type=Savepoint)
    except FileNotFoundError:
        raise ConfigError(
            f"{directory} is no savepoint: it has no {_FILE}, which is written when all else is there."
        ) from None
    except (OSError, msgspec.DecodeError) as exc:
        raise ConfigError(f"{directory / _FILE} cannot be read: {exc}") from exc
    if savepoint.format > FORMAT:
        raise ConfigError(
            f"{directory} has format {savepoint.format}, and this version of Mycelia knows {FORMAT}. Use the version that took it, or a newer one."
        )
    missing = [one.file for one in savepoint.partitions if not (directory / one.file).is_file()]
    if missing:
        raise ConfigError(f"{directory} is not whole: {', '.join(missing)} is not there.")
    return savepoint


def list_savepoints(parent: Path) -> Iterator[tuple[Path, Savepoint]]:
    """The savepoints that lie side by side in a directory, by name. Those that are not whole are left out."""
    for path in sorted(parent.glob(f"*/{_FILE}")):
        try:
            yield path.parent, read_savepoint(path.parent)
        except ConfigError:
            continue


def _sync(path: Path) -> None:
    """On the disk, whatever happens to the machine."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
