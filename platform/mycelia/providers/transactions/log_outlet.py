"""Records for logs among the rows of an outbox: how they are kept, numbered and appended.

| column | of a record |
|---|---|
| `kind`, `source` | `log`, and the log's name |
| `key` | which partition it goes to: rows of one are appended one after the other, as a writer's batches are |
| `body` | a batch of one record, as in the log |
| `headers` | the trace that it was written in; once it is claimed, producer and sequence too |

**A row is numbered when it is first claimed**, in the claim's transaction, by the relay that claims it: so the same record has the same number whoever
publishes it how often, and readers drop the second one. Not when it is written: of two transactions that are open at once, the row with the lower
number may be committed a thousand numbers later, and readers would take it for one that has come. What was parked is numbered anew when it is sent
again, for the same reason: the broker has never had it.
"""

from __future__ import annotations

import itertools
import time as clock
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from mycelia.amqp import Link, Properties
from mycelia.amqp.fields import encode_table
from mycelia.call import Call, CallKind, PublishOptions, current_call, get_current_call
from mycelia.clients.chains import MiddlewareFor
from mycelia.errors import ConfigError, ContractError
from mycelia.logs.append_call import append_target, carried_trace
from mycelia.logs.batch_format import (
    PRODUCER_HEADER,
    RECORDS_CONTENT_TYPE,
    SEQUENCE_HEADER,
    decode_entry,
    encode_columns,
    entry_properties,
    producer_of,
)
from mycelia.logs.log import Log
from mycelia.logs.partitioning import partition_of
from mycelia.logs.record import RecordHeaders, RecordKey
from mycelia.logs.writer import LogWriter, piece_of_record
from mycelia.providers.transactions.outbox_message import OutboxMessage
from mycelia.wire import new_uuid

__all__ = ["LogOutlet", "RowNumbers", "record_row", "without_number"]

T = TypeVar("T")

_NO_OPTIONS = PublishOptions()


def record_row(
    log: Log[T], value: T, key: RecordKey | Any, time: Any, headers: RecordHeaders
) -> tuple[OutboxMessage, str]:
    """A record as a row, and the row's key.

    Raises:
        UnserializableValueError, ContractError: as `LogWriter.append()`.
    """
    of_value, piece = piece_of_record(log.shape, value, key, time, headers)
    partition = "any" if of_value is None else partition_of(of_value, log.partitions)
    message = OutboxMessage.made(
        CallKind.LOG,
        log.name,
        "",
        (
            RECORDS_CONTENT_TYPE,
            "binary",
            encode_columns(piece.keys, piece.times, piece.headers, [piece.values]),
        ),
        carried_trace(get_current_call()),
        _NO_OPTIONS,
        message_id=new_uuid(),
        now=clock.time(),
    )
    return message, f"{log.name}/{partition}"


def without_number(message: OutboxMessage) -> OutboxMessage:
    """As it was before it was claimed first."""
    headers = message.all_headers()
    for name in (PRODUCER_HEADER, SEQUENCE_HEADER):
        headers.pop(name, None)
    return replace(message, headers=encode_table(headers))


class RowNumbers:
    """Numbers for rows of one relay, so that of a producer no lower number comes to a partition after a higher one.

    The rows of one key are claimed and appended by their ids. Rows that are given back are claimed again, perhaps behind others that were committed
    later with lower ids, and get their numbers later: from then on numbers are those of another producer (`begin_anew()`). Rows without a record's key
    go to any partition, and pass those that wait there: they have a producer of their own.

    Args:
        producer: nobody else's, and no other run's.
    """

    def __init__(self, producer: str) -> None:
        self._producer = producer
        self._begun = itertools.count()
        self.begin_anew()

    def begin_anew(self) -> None:
        """Rows that have a number may come after those that get one from now on."""
        self._prefix = f"{self._producer}-{next(self._begun)}"
        self._next: dict[tuple[str, bool], itertools.count[int]] = {}

    def of(self, message: OutboxMessage, key: str | None) -> OutboxMessage | None:
        """The message with a number; None where it needs none, or has one."""
        if message.kind != CallKind.LOG.value:
            return None
        headers = message.all_headers()
        if producer_of(headers) is not None:
            return None
        is_keyless = key == f"{message.source}/any"
        numbers = self._next.setdefault((message.source, is_keyless), itertools.count())
        headers[PRODUCER_HEADER] = f"{self._prefix}-any" if is_keyless else self._prefix
        headers[SEQUENCE_HEADER] = next(numbers)
        return replace(message, headers=encode_table(headers))


class LogOutlet:
    """Appends rows to the logs that an outbox knows.

    Args:
        logs: by name.
        who: for error texts.
    """

    def __init__(self, logs: Iterable[Log[Any]], who: str) -> None:
        self._logs: Mapping[str, Log[Any]] = {log.name: log for log in logs}
        self._who = who
        self._writers: dict[str, LogWriter[Any]] = {}

    def check(self, log: Log[Any]) -> None:
        """
        Raises:
            ConfigError: it is none of them.
        """
        if self._logs.get(log.name) is not log:
            raise ConfigError(
                f'{self._who}: log "{log.name}" is not one that its relay knows. Name it: Outbox(…, logs=[…]).'
            )

    async def open(self, link: Link, timeout: float, middleware_for: MiddlewareFor) -> None:
        """Declare the logs, and be ready to append.

        Raises:
            TopologyError: one of them is there, and not the same.
        """
        for name, log in self._logs.items():
            self._writers[name] = await log.open_writer(
                link, timeout, middleware_for=middleware_for
            )

    async def publish_with(
        self,
        source: str,
        name: str,
        payload: Any,
        headers: dict[str, Any],
        deadline: float,
        options: PublishOptions,
    ) -> None:
        """As `Outlet.publish_with()`; `headers` have the number.

        Raises:
            ConfigError, ContractError: the log is not known any more, or the record is not of its type: the row is to be parked.
        """
        log, number = self._logs.get(source), producer_of(headers)
        if log is None:
            raise ConfigError(
                f'{self._who}: log "{source}" is not among logs= any more. Name it again, or delete its rows.'
            )
        assert number is not None, "it was claimed"
        entry = decode_entry(_PLAIN, payload, log.shape.codec)
        if entry.faults:
            raise ContractError(f'log "{source}": {entry.faults[0].reason}')
        # The appending is part of what it was written in, as far as that is known, and ends with the claim.
        token = current_call.set(Call(append_target(source), headers=headers, deadline=deadline))
        try:
            await self._writers[source].append_many(
                entry.values,
                keys=entry.keys,
                times=entry.times,
                headers=None if entry.headers == [None] else entry.headers,
                producer=number[0],
                sequence=number[1],
            )
        finally:
            current_call.reset(token)

    async def aclose(self, timeout: float) -> None:
        """Idempotent."""
        writers, self._writers = self._writers, {}
        for writer in writers.values():
            await writer.aclose(timeout)


_PLAIN: Properties = entry_properties(1, "row", 0)
"""Of a body as the rows have it."""
