"""The batches that a flow gives to logs as calls: what middleware, traces and metrics see of its outputs, as of every append."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from mycelia.amqp import Link, Message
from mycelia.call import Arguments, Call, CallKind, Next, Outcome, get_current_call
from mycelia.clients.chains import MiddlewareFor, OutboundChains
from mycelia.errors import RuntimeStateError
from mycelia.logs import AppendCall, Log
from mycelia.logs.append_call import APPEND, append_target, carried_trace
from mycelia.logs.batch_format import COUNT_HEADER, decode_entry

__all__ = ["OutputCalls"]


class _OutputAppend(AppendCall, eq=False, kw_only=True):
    has_left: bool = False
    """Whether the broker has it."""


class OutputCalls:
    """Publishes what leaves a flow: a batch for a log as an `AppendCall`, where somebody looks at those, all else as it is.

    Args:
        link: an open link.
        middleware_for: what stands around a call; asked once for each log.
        logs: those that the flow appends to, also between its stages.
    """

    def __init__(self, link: Link, middleware_for: MiddlewareFor, logs: Iterable[Log[Any]]) -> None:
        self._link = link
        self._chains = OutboundChains(CallKind.LOG, middleware_for, self._append)
        self._logs = {log.name: (log, append_target(log.name)) for log in logs}

    async def publish(self, message: Message, timeout: float) -> None:
        """Publish it, and have its confirm. A batch that only says how far event time has come is no call.

        Raises:
            LinkError: it is not confirmed.
            RuntimeStateError: a middleware has not gone on, so it has not left.
            Exception: what a middleware raised.
        """
        if message.exchange in self._logs:
            chain = self._chains.of(message.exchange, APPEND)
            records = (message.properties.headers or {}).get(COUNT_HEADER)
            if chain is not None and records:
                await self._through(chain, message, records, timeout)
                return
        await self._link.publish(message, timeout=timeout)

    async def _through(self, chain: Next, message: Message, records: int, timeout: float) -> None:
        log, target = self._logs[message.exchange]

        def read(call: Call) -> Arguments:
            return (decode_entry(message.properties, message.body, log.shape.codec).records,), {}

        batch = get_current_call()  # None: what a former owner has left
        call = _OutputAppend(
            target,
            headers=carried_trace(batch),
            deadline=time.monotonic() + timeout,
            read=read,
            entry=message,
            partition=int(message.routing_key),
            records=records,
            origins=() if batch is None else (batch,),
            chosen=batch,
        )
        outcome = await chain(call)
        if outcome.error is not None:
            raise outcome.error
        if not call.has_left:
            raise RuntimeStateError(
                f"{target.name}: a middleware answered without going on, so the batch was not appended. End it with `return await next(call)`."
            )

    async def _append(self, call: Call) -> Outcome:
        """The end of the chain. One that comes here twice sends the same batch again, and readers drop it."""
        assert isinstance(call, _OutputAppend)
        try:
            left = call.remaining()
            await self._link.publish(
                call.leaving(), timeout=max(0.0 if left is None else left, 0.001)
            )
        except Exception as exc:  # noqa: BLE001  the end of a chain never raises: the error is the outcome
            return Outcome(error=exc)
        call.has_left = True
        return Outcome()
