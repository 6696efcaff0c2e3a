"""Dead letters of what a reader of a log cannot handle: its place in the log stays, so a copy is published, and waited for."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from mycelia.amqp import Delivery
from mycelia.entrypoints.dead_letters import DeadLetters
from mycelia.errors import ContractError, UndecodableMessage
from mycelia.logs.bad_records import letter_of
from mycelia.logs.partition_lease import group_queue_name
from mycelia.logs.reader import LogEntry
from mycelia.logs.record import FaultyRecord

__all__ = ["BadRecord", "bury_entry", "bury_fault", "bury_faults", "bury_letter"]

_AT_ONCE: Final = 100
"""Dead letters on their way."""


class BadRecord(ContractError):
    """A record that could be read, and cannot be: by its time, or for want of a key."""


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
    letter = letter_of(entry)
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
    """Bury a record that cannot be taken, or, with `error`, one over which the application raised. Whether the letter is there."""
    if error is None:
        place = f"partition {entry.partition}, offset {entry.offset}: {fault.reason}"
        error = BadRecord(place) if fault.is_read else UndecodableMessage(place)
    letter = letter_of(entry, fault)
    return await bury_letter(dead_letters, log_name, group, method, letter, error, attempts)


async def bury_faults(
    dead_letters: DeadLetters, log_name: str, group: str, method: str, entry: LogEntry[Any]
) -> bool:
    """Bury all of an entry that cannot be taken. Whether all the letters are there."""
    for begin in range(0, len(entry.faults), _AT_ONCE):
        some = entry.faults[begin : begin + _AT_ONCE]
        buried = (bury_fault(dead_letters, log_name, group, method, entry, one) for one in some)
        if not all(await asyncio.gather(*buried)):
            return False
    return True


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
        reason=_reason_of(error),
        attempts=attempts,
        error=error,
    )
    return await done


def _reason_of(error: BaseException) -> str:
    if isinstance(error, UndecodableMessage):
        return "undecodable"
    return "rejected" if isinstance(error, BadRecord) else "handler_error"
