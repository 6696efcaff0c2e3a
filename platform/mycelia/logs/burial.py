"""Dead letters of what a reader of a log cannot handle: its place in the log stays, so a copy is published, and waited for."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

from mycelia.amqp import Delivery, Properties
from mycelia.entrypoints.dead_letters import DeadLetters
from mycelia.errors import UndecodableMessage
from mycelia.logs.batch_format import (
    KEY_HEADER,
    PRODUCER_HEADER,
    SEQUENCE_HEADER,
    TIME_HEADER,
)
from mycelia.logs.partition_lease import group_queue_name
from mycelia.logs.reader import LogEntry
from mycelia.logs.record import FaultyRecord

__all__ = ["bury_entry", "bury_fault", "bury_letter"]

_OFFSET_HEADER: Final = "x-log-offset"
_INDEX_HEADER: Final = "x-log-index"


class _Buried:
    """The settler of a copy that is buried: says when the dead letter is there, or that it will never be."""

    is_lost = False

    def __init__(self, done: asyncio.Future[bool]) -> None:
        self._done = done

    def ack(self, delivery_tag: int) -> None:
        self._set(True)

    def nack(self, delivery_tag: int, requeue: bool) -> None:
        self._set(False)

    def _set(self, is_there: bool) -> None:
        if not self._done.done():
            self._done.set_result(is_there)


async def bury_entry(
    dead_letters: DeadLetters,
    log_name: str,
    group: str,
    method: str,
    entry: LogEntry[Any],
    error: BaseException,
    attempts: int,
) -> bool:
    """Bury a whole entry that could not be handled, trying for as long as dead letters are tried. Whether the letter is there."""
    letter = _first_published(entry)
    return await bury_letter(dead_letters, log_name, group, method, letter, error, attempts)


async def bury_fault(
    dead_letters: DeadLetters,
    log_name: str,
    group: str,
    method: str,
    entry: LogEntry[Any],
    fault: FaultyRecord,
    error: BaseException | None = None,
    attempts: int = 1,
) -> bool:
    """Bury a record that could not be read, or, with `error`, one that could not be handled. Whether the letter is there."""
    letter = _first_published(entry) if fault.index is None else _alone(entry, fault)
    if error is None:
        place = f"offset {entry.offset}" + ("" if fault.index is None else f", {fault.index}")
        error = UndecodableMessage(f"{place}: {fault.reason}")
    return await bury_letter(dead_letters, log_name, group, method, letter, error, attempts)


async def bury_letter(
    dead_letters: DeadLetters,
    log_name: str,
    group: str,
    method: str,
    letter: Delivery,
    error: BaseException,
    attempts: int,
) -> bool:
    """Bury a message of the caller's making. Whether the letter is there."""
    done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    letter.settler = _Buried(done)
    dead_letters.bury(
        letter,
        queue=group_queue_name(log_name, group),
        method=method,
        reason="undecodable" if isinstance(error, UndecodableMessage) else "handler_error",
        attempts=attempts,
        error=error,
    )
    return await done


def _first_published(entry: LogEntry[Any]) -> Delivery:
    """The entry's message as somebody might publish it anew: without what would make it a repetition."""
    delivery = entry.delivery
    headers = dict(delivery.properties.headers or {})
    headers.pop(PRODUCER_HEADER, None)
    headers.pop(SEQUENCE_HEADER, None)
    return msgspec.structs.replace(delivery, properties=delivery.properties.republished(headers))


def _alone(entry: LogEntry[Any], fault: FaultyRecord) -> Delivery:
    """One record of an entry as a plain message."""
    headers: dict[str, Any] = {_OFFSET_HEADER: entry.offset, _INDEX_HEADER: fault.index}
    if isinstance(fault.key, str | int):
        headers[KEY_HEADER] = fault.key
    if fault.time is not None:
        headers[TIME_HEADER] = fault.time
    properties = Properties(content_type="application/x-msgpack", headers=headers, delivery_mode=2)
    return msgspec.structs.replace(entry.delivery, properties=properties, body=fault.body)
