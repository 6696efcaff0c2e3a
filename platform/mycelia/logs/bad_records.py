"""What of a log cannot be taken: which records those are, and the dead letters that they become. One place for log handlers and flows. Pure."""

from __future__ import annotations

from itertools import compress
from typing import Any, TypeVar

import msgspec

from mycelia.amqp import Delivery, Properties
from mycelia.logs.batch_format import (
    INDEX_HEADER,
    KEY_HEADER,
    OFFSET_HEADER,
    PARTITION_HEADER,
    PRODUCER_HEADER,
    SEQUENCE_HEADER,
    TIME_HEADER,
)
from mycelia.logs.reader import LogEntry
from mycelia.logs.record import FaultyRecord
from mycelia.logs.record_shape import impossible_time, latest_possible
from mycelia.logs.value_codec import ValueCodec

__all__ = ["letter_of", "with_possible_times"]

T = TypeVar("T")


def with_possible_times(
    entry: LogEntry[T], codec: ValueCodec[T], now_ms: int, ahead_ms: int
) -> LogEntry[T]:
    """The entry; the records whose times cannot be are faults."""
    times = [time for time in entry.times if time is not None]
    if not times or (min(times) >= 0 and max(times) <= latest_possible(now_ms, ahead_ms)):
        return entry
    reasons = [
        None if time is None else impossible_time(time, now_ms, ahead_ms, "log_handler(ahead=)")
        for time in entry.times
    ]
    faults = [
        FaultyRecord(
            entry.indexes[at],
            f"record {entry.indexes[at]}: {reason}",
            entry.keys[at],
            entry.times[at],
            codec.encode([entry.values[at]]),
            headers=entry.headers[at],
            is_read=True,
        )
        for at, reason in enumerate(reasons)
        if reason is not None
    ]
    kept = [reason is None for reason in reasons]
    return LogEntry(
        keys=list(compress(entry.keys, kept)),
        times=list(compress(entry.times, kept)),
        headers=list(compress(entry.headers, kept)),
        values=list(compress(entry.values, kept)),
        indexes=list(compress(entry.indexes, kept)),
        faults=[*entry.faults, *faults],
        partition=entry.partition,
        offset=entry.offset,
        delivery=entry.delivery,
    )


def letter_of(entry: LogEntry[Any], fault: FaultyRecord | None = None) -> Delivery:
    """What becomes a dead letter, as somebody might publish it anew: no repetition, and with its place.

    Args:
        fault: one record, which becomes a plain message; `None`, or one without an index: the whole entry, as it came.
    """
    delivery = entry.delivery
    place: dict[str, Any] = {PARTITION_HEADER: entry.partition, OFFSET_HEADER: entry.offset}
    if fault is None or fault.index is None:
        headers = {**(delivery.properties.headers or {}), **place}
        headers.pop(PRODUCER_HEADER, None)
        headers.pop(SEQUENCE_HEADER, None)
        properties = delivery.properties.republished(headers)
        return msgspec.structs.replace(delivery, properties=properties)
    headers = {**(fault.headers or {}), **place, INDEX_HEADER: fault.index}
    if fault.key is not None:
        headers[KEY_HEADER] = fault.key
    if fault.time is not None:
        headers[TIME_HEADER] = fault.time
    properties = Properties(content_type="application/x-msgpack", headers=headers, delivery_mode=2)
    return Delivery(
        settler=delivery.settler,
        consumer_tag=delivery.consumer_tag,
        delivery_tag=delivery.delivery_tag,
        redelivered=delivery.redelivered,
        exchange=delivery.exchange,
        routing_key=delivery.routing_key,
        properties=properties,
        body=fault.body,
    )
