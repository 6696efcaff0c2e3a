"""Sinks that ask somebody: a request for each record, or for a batch of them, each with an id that is the same if it comes again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, TypeVar

from mycelia.errors import ConfigError
from mycelia.flow.sinks.sink import (
    FlowSink,
    SinkPlace,
    SinkRecord,
    SinkRefused,
    pack_records,
    unpack_records,
)

__all__ = ["RequestSink"]

T = TypeVar("T")

_RECORDS_OF_BODY: Final = 200
"""Where each has a request of its own: after a crash so many may be asked again."""


class RequestSink(FlowSink[T]):
    """Requests, those of different keys at the same time, those of one key one after the other. `_ask()` makes one.

    Args:
        batch: records of a request; None: one, which is not in a list.
        concurrency: requests of a partition at a time, where there is no `batch`.
    """

    def __init__(self, what: str, batch: int | None, concurrency: int) -> None:
        for name, number in (("batch", batch), ("concurrency", concurrency)):
            if number is not None and (type(number) is not int or number < 1):
                raise ConfigError(f"{what}: {name}={number!r:.60}; expected a number from 1.")
        self._batch = batch
        self._concurrency = concurrency

    async def _ask(self, payload: Any, idempotency_id: str) -> None:
        """Make a request, and return when it has been answered well.

        Raises:
            SinkRefused: there is no point in asking again.
        """
        raise NotImplementedError

    def pack(
        self, records: list[SinkRecord[T]], kept: dict[str, int], now_ms: int, flow: str
    ) -> list[bytes]:
        at_once = self._batch or _RECORDS_OF_BODY
        return [
            pack_records(records[begin : begin + at_once])
            for begin in range(0, len(records), at_once)
        ]

    async def deliver(self, body: bytes, place: SinkPlace, done: set[str]) -> None:
        records = unpack_records(body)
        if self._batch is not None:
            await self._ask([one.value for one in records], f"{records[0].id}+{len(records)}")
            return
        chains: dict[Any, list[SinkRecord[Any]]] = {}
        for record in records:
            if record.id not in done:
                key = record.id if record.key is None else record.key
                chains.setdefault(key, []).append(record)
        limit = asyncio.Semaphore(self._concurrency)
        ended = await asyncio.gather(
            *(self._ask_for_key(chain, limit, done) for chain in chains.values()),
            return_exceptions=True,
        )
        for error in ended:
            if isinstance(error, BaseException):
                raise error

    async def _ask_for_key(
        self, records: Sequence[SinkRecord[Any]], limit: asyncio.Semaphore, done: set[str]
    ) -> None:
        for record in records:
            async with limit:
                try:
                    await self._ask(record.value, record.id)
                except SinkRefused as exc:
                    exc.record_id = record.id
                    raise
            done.add(record.id)
