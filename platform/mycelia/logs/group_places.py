"""How far the groups of a log have come, for whoever looks: owners tell it in a small stream of the group, beside their checkpoints.

A checkpoint itself cannot be looked at: its owner holds it. So each owner says the same in `log-<log>--<group>.progress`, without a
confirm, after each checkpoint and once a minute. What stands there is for people; nobody goes on from it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from mycelia.amqp import STREAM_OFFSET, ConsumeOptions, Delivery, Link, Message, Properties, Queue
from mycelia.errors import ConfigError, LinkError, RuntimeStateError, TopologyError
from mycelia.logs.layout import LogLayout, queue_exists, stream_name
from mycelia.logs.partition_lease import PartitionLease, group_queue_name, lease_queue
from mycelia.logs.partitioning import MAX_PARTITIONS
from mycelia.logs.position import LogPosition, StartAt
from mycelia.logs.reader import LogReader
from mycelia.logs.record_shape import RecordShape
from mycelia.logs.stream_ends import end_of, first_offset, last_offset

__all__ = [
    "PROGRESS_SUFFIX",
    "GroupPlace",
    "check_offset",
    "count_partitions",
    "move_group",
    "offset_at",
    "progress_stream",
    "read_places",
    "tell_place",
]

PROGRESS_SUFFIX: Final = ".progress"

_KEPT_BYTES: Final = 1_000_000
_SEGMENT_BYTES: Final = 250_000
_READ_S: Final = 10.0

_SHOWN: Final = 16
"""Partitions that an error tells of."""


class GroupPlace(msgspec.Struct, frozen=True, kw_only=True):
    """How far a group has come in a partition, as its owner said."""

    partition: int
    offset: int
    """Of the next entry."""
    epoch: int
    owner: str
    at_ms: int
    """When, in milliseconds since the epoch."""
    standing_still: str | None = None
    """Why it does not go on, if it does not."""


def progress_stream(log_name: str, group: str) -> Queue:
    """Where owners tell how far they have come."""
    return Queue(
        f"{group_queue_name(log_name, group)}{PROGRESS_SUFFIX}",
        arguments={
            "x-queue-type": "stream",
            "x-max-length-bytes": _KEPT_BYTES,
            "x-stream-max-segment-size-bytes": _SEGMENT_BYTES,
        },
    )


def tell_place(link: Link, stream: Queue, place: GroupPlace) -> None:
    """Say it, if that can be done now."""
    properties = Properties(content_type="application/json", delivery_mode=2)
    try:
        link.publish_nowait(Message("", stream.name, msgspec.json.encode(place), properties))
    except LinkError:
        return  # it is said again within a minute


async def read_places(link: Link, log_name: str, group: str) -> dict[int, GroupPlace]:
    """The latest word of each partition; empty where the group has said nothing.

    Raises:
        TopologyError: there is no such group.
    """
    stream = progress_stream(log_name, group).name
    end = await last_offset(link, stream)
    places: dict[int, GroupPlace] = {}
    if end is None:
        return places
    done = asyncio.Event()

    def take(deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            try:
                place = msgspec.json.decode(delivery.body, type=GroupPlace)
                places[place.partition] = place
            except (msgspec.DecodeError, RecursionError):
                pass  # somebody else's
            delivery.ack()
            if delivery.offset is not None and delivery.offset >= end:
                done.set()

    consumer = await link.consume(
        stream,
        take,
        ConsumeOptions(prefetch=1000, arguments={STREAM_OFFSET: "first"}),
        timeout=_READ_S,
    )
    try:
        async with asyncio.timeout(_READ_S):
            await done.wait()
    except TimeoutError:
        pass  # what has come is what there is
    finally:
        await consumer.aclose()
    return places


async def count_partitions(link: Link, log_name: str) -> int:
    """How many partitions a log has, by which streams are there.

    Raises:
        TopologyError: none: there is no such log.
    """

    async def exists(partition: int) -> bool:
        return await queue_exists(link, stream_name(log_name, partition), 10.0)

    if not await exists(0):
        raise TopologyError(
            f'there is no log "{log_name}": stream "{stream_name(log_name, 0)}" does not exist. `mycelia log ls` lists those there are.'
        )
    low, high = 0, 1
    while high < MAX_PARTITIONS and await exists(high):
        low, high = high, high * 2
    while high - low > 1:  # low is there, high is not
        middle = (low + high) // 2
        if await exists(middle):
            low = middle
        else:
            high = middle
    return low + 1


async def offset_at(link: Link, log: str, partitions: int, partition: int, start: StartAt) -> int:
    """The offset that a start means now.

    Args:
        partitions: how many the log has.
    """
    stream = stream_name(log, partition)
    if isinstance(start, LogPosition):
        return start.offset
    if isinstance(start, int):
        return start
    if start == "first":
        return await first_offset(link, stream) or 0
    last = await last_offset(link, stream)
    end = 0 if last is None else last + 1
    if start == "next" or last is None:
        return end
    shape = RecordShape[Any](f'log "{log}"', None, None, None)
    layout = LogLayout(log, partitions, None, None)
    async with LogReader(link, layout, shape, partition, start) as reader:
        entry = await reader.take(timeout=1.0)
    return end if entry is None else entry.offset


async def check_offset(link: Link, log: str, partitions: Iterable[int], offset: int) -> None:
    """
    Raises:
        ConfigError: a partition has no entry of that offset, and it is not the next; with what each has.
    """
    has: list[str] = []
    is_there = True
    for partition in partitions:
        begin = await first_offset(link, stream_name(log, partition)) or 0
        end = await end_of(link, log, partition)
        is_there &= begin <= offset <= end
        has.append(
            f"partition {partition} has {begin} to {end - 1}"
            if end > begin
            else f"partition {partition} is empty"
        )
    if not is_there:
        shown = "; ".join(has[:_SHOWN]) + ("; …" if len(has) > _SHOWN else "")
        one = ". --partition P is one alone" if len(has) > 1 else ""
        raise ConfigError(f'log "{log}" cannot be read from offset {offset}: {shown}{one}.')


async def move_group(link: Link, log_name: str, group: str, offsets: dict[int, int]) -> None:
    """Have a group whose instances are stopped go on from these offsets, by partition.

    Raises:
        RuntimeStateError: an instance has one of the partitions; those before it have been moved.
        LinkError: the broker does not answer, or refuses.
    """
    stream = progress_stream(log_name, group)
    await link.declare(stream, timeout=10.0)
    for partition, offset in sorted(offsets.items()):
        lease = PartitionLease(link, lease_queue(log_name, group, partition))
        if not await lease.acquire():
            raise RuntimeStateError(
                f'group "{group}" of log "{log_name}" runs: partition {partition} has an owner. Stop its instances first; '
                f"the partitions before {partition} have been moved."
            )
        try:
            await lease.commit(LogPosition(offset=offset))
            place = GroupPlace(
                partition=partition,
                offset=offset,
                epoch=lease.epoch,
                owner="",
                at_ms=int(time.time() * 1000),
            )
            tell_place(link, stream, place)
        finally:
            await lease.aclose()
