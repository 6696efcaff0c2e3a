"""A flow that is stopped goes on from elsewhere: its state is put in place anew, its results get other ids, its group another position.

Each partition's lease is taken before any state is touched. One that an instance has ends it with an error, or, by force, the instance leaves it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import msgspec

from mycelia.amqp import Link
from mycelia.errors import ConfigError, RuntimeStateError, TopologyError
from mycelia.flow.partition_state import StatePlace
from mycelia.flow.relay_log import GIVES
from mycelia.flow.savepoints import Savepoint, read_savepoint
from mycelia.flow.state_file import FlowCheckpoint, SavedState
from mycelia.flow.state_home import StateHome, meant_flow
from mycelia.logs.group_places import check_offset, count_partitions, offset_at
from mycelia.logs.layout import queue_exists, stream_name
from mycelia.logs.partition_lease import PartitionLease, lease_queue
from mycelia.logs.position import LogPosition, StartAt
from mycelia.logs.stream_ends import last_offset

__all__ = ["ResetPartition", "reset_flow"]

_DELETE_TIMEOUT: Final = 10.0


TAKE_OVER_S: Final = 25.0
"""Seconds for the owner of a partition to leave it: twice what a leaving flow gives its commits and sinks, and what the broker needs to miss one
that stands still."""


class ResetPartition(msgspec.Struct, frozen=True, kw_only=True):
    """From where a partition goes on."""

    source: str
    """See `StatePlace`."""
    partition: int
    offsets: dict[str, int]
    """By source: of the next entry. Of logs between stages nothing: they begin anew."""


async def reset_flow(
    link: Link,
    home: StateHome,
    group: str,
    to: StartAt | Path,
    *,
    sources: Mapping[str, int] | None = None,
    force: bool = False,
) -> list[ResetPartition]:
    """Have a flow whose instances are stopped begin anew: from a place in its logs without state, or from a savepoint with its state.

    What it gives from then on has other ids: where records are taken again, whoever drops repetitions takes their results for new ones. Without a
    savepoint, logs between stages are deleted with what is in them. May be called again if it ends in the middle.

    Args:
        home: where its state is: `state_home(mycelia.flows.state)`.
        group: the flow: `service.method`, unless `@flow(group=…)` says otherwise.
        to: `"first"`, `"next"`, `"last"`, an offset, a time; or the directory of a savepoint.
        sources: what its stages are leased by, each with its number of partitions; needed where no state is there that tells.
        force: whether instances that run have to leave their partitions for it. What they have taken since their last commits is not committed,
            and they go on with the state that is put in place. One that stands still is missed by the broker after some seconds.

    Raises:
        RuntimeStateError: an instance has a partition, and partitions before it may have been reset; or nothing is known of the flow.
        ConfigError: the savepoint is none, or of another flow, or of one in several stages and taken by a version that did not hold those
            together.
        StateUnavailable: a state cannot be written.
        LinkError: the broker does not answer, or refuses.
    """
    savepoint = None
    if isinstance(to, Path):
        savepoint = await asyncio.to_thread(read_savepoint, to)
        _check(savepoint, group, to)
    places = await _places(link, home, group, sources or {}, savepoint)
    every = sorted({place.source for place in places})
    await asyncio.to_thread(home.prepare, f'flow "{group}"', group, every)
    leases: list[PartitionLease] = []
    try:
        for place in places:
            leases.append(PartitionLease(link, lease_queue(place.source, group, place.partition)))
            await _take(leases[-1], place, force)
        read = await asyncio.to_thread(_read_by, home, places, savepoint)
        if type(to) is int:
            await _check_offset(link, group, set().union(*read.values()), to)
        ends = {} if savepoint is None else await _ends(link, savepoint)
        done = []
        for place, lease in zip(places, leases, strict=True):
            names = read[place.source]
            if isinstance(to, Path):
                assert savepoint is not None
                behind = {
                    name: end
                    for (name, number), end in ends.items()
                    if name in names and number == place.partition
                }
                offsets = await asyncio.to_thread(_restore, home, place, savepoint, to, behind)
            else:
                offsets = await _begin(link, home, place, names, to)
            # Told anew by the next owner, once it has committed.
            await lease.commit(None)
            done.append(
                ResetPartition(source=place.source, partition=place.partition, offsets=offsets)
            )
        return done
    finally:
        for lease in leases:
            await lease.aclose()


async def _places(
    link: Link,
    home: StateHome,
    group: str,
    sources: Mapping[str, int],
    savepoint: Savepoint | None,
) -> list[StatePlace]:
    """All partitions of all stages: those that have state, those that are known otherwise, and those of the savepoint.

    Raises:
        RuntimeStateError: nothing is known of the flow.
    """
    kept = set(await asyncio.to_thread(home.kept, group))
    for source, count in sources.items():
        kept |= {(source, partition) for partition in range(count)}
    if savepoint is not None:
        kept |= {(one.source, one.partition) for one in savepoint.partitions}
    if not kept:
        raise RuntimeStateError(
            f'flow "{group}" has no state in {home.where}, and nobody said which logs it reads. Its group or mycelia.flows.state is another, '
            f"or there is nothing to reset.{await asyncio.to_thread(meant_flow, home, group)}"
        )
    for source in sorted({source for source, _ in kept}):
        # Also those whose state is lost: their group has come to somewhere.
        with suppress(TopologyError):
            kept |= {(source, one) for one in range(await count_partitions(link, source))}
    return [StatePlace(source, group, source, partition) for source, partition in sorted(kept)]


async def _take(lease: PartitionLease, place: StatePlace, force: bool) -> None:
    """
    Raises:
        RuntimeStateError: an instance has it; or, by force, has not left it in time.
    """
    where = f'partition {place.partition} of "{place.source}"'
    if force:
        if not await lease.take_over(TAKE_OVER_S):
            raise RuntimeStateError(
                f'flow "{place.group}": the owner of {where} has not left it within {TAKE_OVER_S:.0f} s. Stop its '
                "instances, or cut their connections at the broker. Nothing was reset."
            )
    elif not await lease.acquire():
        raise RuntimeStateError(
            f'flow "{place.group}" runs: {where} has an owner. Stop its instances first; or take the partitions '
            "from them (force=True, `mycelia flow reset --force`). Nothing was reset."
        )


def _read_by(
    home: StateHome, places: Sequence[StatePlace], savepoint: Savepoint | None
) -> dict[str, set[str]]:
    """What each stage reads, by the source that it is leased by; with a savepoint, what it read then."""
    read = {place.source: set[str]() for place in places}
    if savepoint is None:
        for place in places:
            read[place.source] |= _sources_of(home, place)
    else:
        for one in savepoint.partitions:
            read[one.source] |= {one.source.removeprefix(f"{savepoint.group}."), *one.offsets}
    return read


async def _check_offset(link: Link, group: str, logs: set[str], offset: int) -> None:
    """
    Raises:
        ConfigError: one of the logs has no entry of that offset, and it is not the next.
    """
    for log in sorted(logs):
        if await queue_exists(link, stream_name(f"{group}.{log}", 0), None):
            continue  # between stages: it is made anew
        with suppress(TopologyError):  # it is made when it is written to
            await check_offset(link, log, range(await count_partitions(link, log)), offset)


def _check(savepoint: Savepoint, group: str, path: Path) -> None:
    if savepoint.group != group:
        raise ConfigError(f'{path} is of flow "{savepoint.group}", not of "{group}".')
    if len(savepoint.sources) > 1 and savepoint.format < 2:
        raise ConfigError(
            f'flow "{group}" is of several stages ({", ".join(savepoint.sources)}), and {path} was taken by a version of Mycelia that did not hold '
            "them together: what lay in the logs between them would be lost. Reset it to a place in its logs."
        )


async def _ends(link: Link, savepoint: Savepoint) -> dict[tuple[str, int], int]:
    """Of each log between stages, by the name of its source, and of each of its partitions: the offset that its next entry has."""
    found: dict[tuple[str, int], int] = {}
    for one in savepoint.between:
        for partition in range(one.partitions):
            try:
                last = await last_offset(link, stream_name(one.log, partition))
            except TopologyError:
                last = None  # it is made when it is written to
            found[one.source, partition] = 0 if last is None else last + 1
    return found


def _restore(
    home: StateHome,
    place: StatePlace,
    savepoint: Savepoint,
    directory: Path,
    behind: Mapping[str, int],
) -> dict[str, int]:
    """
    Args:
        behind: of the logs between stages that are read, where they end: what had not been taken is appended again.
    """
    saved = next(
        (
            one
            for one in savepoint.partitions
            if (one.source, one.partition) == (place.source, place.partition)
        ),
        None,
    )
    with closing(home.open(place)) as state:
        if saved is None:  # nobody had begun with it
            begins = {name: LogPosition(offset=end) for name, end in behind.items()}
            state.begin_anew(_anew(begins), (), ())
            return dict(behind)
        with closing(SavedState(directory / saved.file)) as of:
            positions = dict(of.checkpoint.positions_of(place.source))
            for name, end in behind.items():
                seen = positions[name].seen if name in positions else {}
                positions[name] = LogPosition(offset=end, seen=seen)
            gives = [name for name in of.checkpoint.sequences if name.startswith(GIVES)]
            state.begin_anew(_anew(positions, gives), of.state(), of.outbox())
    return {name: one.offset for name, one in positions.items()}


async def _begin(
    link: Link, home: StateHome, place: StatePlace, read: set[str], to: StartAt
) -> dict[str, int]:
    """Empty, from a place in the logs that are read."""
    positions: dict[str, LogPosition] = {}
    for name in sorted(read):
        if await _delete_between(link, f"{place.group}.{name}"):
            continue
        try:
            partitions = await count_partitions(link, name)
        except TopologyError:
            continue  # it is made when it is read, and begins at its beginning
        if place.partition < partitions:
            offset = await offset_at(link, name, partitions, place.partition, to)
            positions[name] = LogPosition(offset=offset)

    def begin() -> None:
        with closing(home.open(place)) as state:
            state.begin_anew(_anew(positions), (), ())

    await asyncio.to_thread(begin)
    return {name: one.offset for name, one in positions.items()}


def _sources_of(home: StateHome, place: StatePlace) -> set[str]:
    """The sources that a partition has positions in, and the one that its stage is leased by; by their names in the flow."""
    with closing(home.open(place)) as state:
        state.claim(0)
        positions = state.checkpoint.positions
    return {place.source.removeprefix(f"{place.group}."), *positions}


async def _delete_between(link: Link, log: str) -> bool:
    """Delete a log between stages, if it is one; whether it was, or had been."""
    try:
        partitions = await count_partitions(link, log)
    except TopologyError:
        return False
    for partition in range(partitions):
        await link.delete_queue(stream_name(log, partition), timeout=_DELETE_TIMEOUT)
    return True


def _anew(positions: Mapping[str, LogPosition], gives: Iterable[str] = ()) -> FlowCheckpoint:
    """
    Args:
        gives: what the partition writes to, as it is noted among the sequences.
    """
    return FlowCheckpoint(
        generation=uuid.uuid4().hex[:12],
        positions=dict(positions),
        sequences=dict.fromkeys(gives, 0),
    )
