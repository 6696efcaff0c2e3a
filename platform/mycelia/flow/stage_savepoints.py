"""A savepoint of a flow in several stages: their copies, and what lies in the logs between them, are of one cut through all of it.

Nothing stands still for it. Stages are copied one after the other, **those behind first**: so all that a stage has taken from the one before it was
written by commits that the later copy of that one has. What that copy has written, and the earlier one has not taken, is what lies between:
entries of the log from the reader's position on, of those whose sequence the writer's copy has given away. They are put into the outbox of the
writer's copy, before what is there. What the writer has written since is left out: it does that again.

Who goes on from the savepoint publishes the outboxes first, as after any crash, with the producers and sequences that the messages have. Readers
begin at the end of the logs between, know by their sequences what they have had, and drop the rest of what is there twice. So the logs need
not be deleted, and putting a savepoint in place changes states alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Final, NamedTuple

from mycelia.amqp import STREAM_OFFSET, Link, Message
from mycelia.errors import RuntimeStateError
from mycelia.flow.partition_state import StatePlace
from mycelia.flow.relay_log import FROM_HEADER, GIVES
from mycelia.flow.savepoints import (
    SavedBetween,
    SavedPartition,
    Savepoint,
    begun_savepoint,
    kept_partitions,
    save_partition,
    take_savepoint,
    write_savepoint,
)
from mycelia.flow.state_file import FlowCheckpoint, OutboxFront, SavedState
from mycelia.flow.state_home import StateHome
from mycelia.logs.batch_format import producer_of
from mycelia.logs.group_places import count_partitions
from mycelia.logs.layout import LogLayout
from mycelia.logs.reader import LogEntry, LogReader
from mycelia.logs.record_shape import RecordShape

__all__ = ["save_flow"]

SILENCE_S: Final = 30.0
"""Without any entry, where the log says that there are some: then it is given up."""

_LOOK_EVERY: Final = 1.0

_AT_ONCE: Final = 200
"""Entries that are written at once."""

_ORDERS: Final = 3
"""Times that copies are made anew, because a stage has begun meanwhile to read another."""

Partition = tuple[str, int]
"""What a stage is leased by, and its partition."""


class _Between(NamedTuple):
    """A log between stages, and who is at its ends, by what they are leased by."""

    source: str
    log: str
    writer: str
    readers: frozenset[str]


async def save_flow(link: Link, home: StateHome, group: str, directory: Path) -> Savepoint:
    """Take a savepoint of a flow in one stage or several, into a new directory. The flow may run meanwhile; nobody waits for it.

    Raises:
        ConfigError: the directory is there already, or cannot be made.
        RuntimeStateError: the flow has no state in `home`; or a stage has written for another that has never begun, or what it has written
            does not come.
        OffsetGone: a log between stages does not hold any more what the stage behind it has to take next.
        StateUnavailable: a state cannot be read.
        LinkError: the broker does not answer.
    """
    kept = await asyncio.to_thread(kept_partitions, home, group)
    if len({source for source, _ in kept}) == 1 and not _betweens(
        group, await asyncio.to_thread(_checkpoints, home, group, kept)
    ):
        return await asyncio.to_thread(take_savepoint, home, group, directory)
    with begun_savepoint(directory):
        saved, found = await asyncio.to_thread(_copied, home, group, kept, directory)
        states = {one: _checkpoint_of(directory / its.file) for one, its in saved.items()}
        between = [
            await _with_what_lies_between(link, one, states, saved, directory) for one in found
        ]
        savepoint = Savepoint(
            format=2,
            group=group,
            taken_ms=int(time.time() * 1000),
            partitions=[saved[one] for one in sorted(saved)],
            between=between,
        )
        await asyncio.to_thread(write_savepoint, savepoint, directory)
    return savepoint


# --- the copies --------------------------------------------------------------------------------------


def _copied(
    home: StateHome, group: str, kept: Sequence[Partition], directory: Path
) -> tuple[dict[Partition, SavedPartition], list[_Between]]:
    """Copies of all, those of each stage made before those of the stages that write for it."""
    found = _betweens(group, _checkpoints(home, group, kept))
    for _ in range(_ORDERS):
        saved = {}
        for source in _behind_first({source for source, _ in kept}, found):
            for one in kept:
                if one[0] == source:
                    saved[one] = save_partition(home, group, *one, directory)
        states = {one: _checkpoint_of(directory / its.file) for one, its in saved.items()}
        before, found = found, _betweens(group, states)
        if found == before:
            return saved, found
    raise RuntimeStateError(
        f'flow "{group}" is just beginning: its stages take up their logs while they are copied. Take the savepoint in a moment.'
    )


def _checkpoints(
    home: StateHome, group: str, kept: Iterable[Partition]
) -> dict[Partition, FlowCheckpoint]:
    found: dict[Partition, FlowCheckpoint] = {}
    for source, partition in kept:
        checkpoint = home.checkpoint(StatePlace(source, group, source, partition))
        if checkpoint is not None:
            found[source, partition] = checkpoint
    return found


def _checkpoint_of(path: Path) -> FlowCheckpoint:
    with closing(SavedState(path)) as state:
        return state.checkpoint


def _betweens(group: str, states: Mapping[Partition, FlowCheckpoint]) -> list[_Between]:
    """The logs between stages, as their states know them: writers have noted them, readers have positions in them.

    Raises:
        RuntimeStateError: nobody has begun to read one of them.
    """
    writers: dict[str, str] = {}
    reads: dict[str, set[str]] = {}
    for (source, _), state in sorted(states.items()):
        for name in state.positions:
            reads.setdefault(f"{group}.{name}", set()).add(source)
    for (source, _), state in sorted(states.items()):
        for name in state.sequences:
            if name.startswith(GIVES):
                writers[name.removeprefix(GIVES)] = source
            elif (log := name.rpartition("/")[0]) in reads:
                writers[log] = source  # of a version that did not note them
    for log in writers:
        if not reads.get(log):
            raise RuntimeStateError(
                f'flow "{group}": no stage has begun to read "{log}" yet, which another has written. Let it run for a moment, and take the savepoint then.'
            )
    return [
        _Between(log.removeprefix(f"{group}."), log, writer, frozenset(reads[log]))
        for log, writer in sorted(writers.items())
    ]


def _behind_first(stages: Iterable[str], found: Iterable[_Between]) -> list[str]:
    needs: dict[str, set[str]] = {stage: set() for stage in stages}
    for one in found:
        needs[one.writer] |= one.readers
    try:
        return list(TopologicalSorter(needs).static_order())
    except CycleError as exc:  # states of two descriptions of the flow in one place
        raise RuntimeStateError(
            f"the stages {exc.args[1]} write for each other: their state is not of one flow."
        ) from None


# --- what lies between -------------------------------------------------------------------------------


async def _with_what_lies_between(
    link: Link,
    of: _Between,
    states: Mapping[Partition, FlowCheckpoint],
    saved: Mapping[Partition, SavedPartition],
    directory: Path,
) -> SavedBetween:
    """Put the entries of a log that have been written and not been taken into the outboxes of the writers' copies."""
    partitions = await count_partitions(link, of.log)
    fronts: dict[int, OutboxFront] = {}
    try:
        entries = 0
        for partition in range(partitions):
            begin = min(_next_of(states.get((one, partition)), of.source) for one in of.readers)
            entries += await _take_up(
                link, of, partitions, partition, begin, states, fronts, saved, directory
            )
        for one in fronts.values():
            await asyncio.to_thread(one.close)
    except BaseException:
        for one in fronts.values():
            one.give_up()
        raise
    return SavedBetween(source=of.source, log=of.log, partitions=partitions, entries=entries)


def _next_of(state: FlowCheckpoint | None, source: str) -> int:
    position = None if state is None else state.positions.get(source)
    return 0 if position is None else position.offset


async def _take_up(
    link: Link,
    of: _Between,
    partitions: int,
    partition: int,
    begin: int,
    states: Mapping[Partition, FlowCheckpoint],
    fronts: dict[int, OutboxFront],
    saved: Mapping[Partition, SavedPartition],
    directory: Path,
) -> int:
    """Those of one partition of the log; how many they are."""
    shape = RecordShape[Any](f'log "{of.log}"', None, None, None)
    layout = LogLayout(of.log, partitions, None, None)
    count = 0
    async with LogReader(link, layout, shape, partition, begin) as reader:
        # Asked for after the writers' copies: all that those do not have in their outboxes is there.
        end = await reader.end()
        waiting: dict[int, list[Message]] = {}
        at, moved_at = begin, time.monotonic()
        while at < end:
            entry = await reader.take(_LOOK_EVERY)
            position = reader.position
            if position is not None and position.offset > at:  # also by those that are there twice
                at, moved_at = position.offset, time.monotonic()
            elif time.monotonic() - moved_at > SILENCE_S:
                raise RuntimeStateError(
                    f'log "{of.log}", partition {partition}: nothing has come from offset {at} for {SILENCE_S:.0f} s, and it ends at {end}. '
                    "See whether its stream is well (`mycelia log ls`), and take the savepoint again."
                )
            writer = None if entry is None else _writer_of(entry, of, partition, states)
            if entry is None or writer is None:
                continue
            count += 1
            waiting.setdefault(writer, []).append(_as_written(entry, of.log, partition))
            if len(waiting[writer]) >= _AT_ONCE:
                await _put(waiting.pop(writer), of, writer, fronts, saved, directory)
        for writer, messages in waiting.items():
            await _put(messages, of, writer, fronts, saved, directory)
    return count


async def _put(
    messages: list[Message],
    of: _Between,
    writer: int,
    fronts: dict[int, OutboxFront],
    saved: Mapping[Partition, SavedPartition],
    directory: Path,
) -> None:
    def put() -> None:
        if writer not in fronts:
            fronts[writer] = OutboxFront(directory / saved[of.writer, writer].file)
        fronts[writer].put(messages)

    await asyncio.to_thread(put)


def _writer_of(
    entry: LogEntry[Any], of: _Between, partition: int, states: Mapping[Partition, FlowCheckpoint]
) -> int | None:
    """The partition of the writer whose copy knows that it has written an entry; None if no copy does."""
    headers = entry.delivery.properties.headers or {}
    writer, told = headers.get(FROM_HEADER), producer_of(headers)
    state = states.get((of.writer, writer)) if type(writer) is int else None
    if state is None or told is None:
        return None
    producer, sequence = told
    # One of another generation has been written before the flow went on from a savepoint: all of it is known.
    is_its_own = producer.endswith(f"/{state.generation}/{writer}")
    if is_its_own and sequence >= state.sequences.get(f"{of.log}/{partition}", 0):
        return None
    return writer


def _as_written(entry: LogEntry[Any], log: str, partition: int) -> Message:
    of = entry.delivery.properties
    headers = {name: value for name, value in (of.headers or {}).items() if name != STREAM_OFFSET}
    return Message(
        log, str(partition), entry.delivery.body, of.republished(headers), mandatory=True
    )
