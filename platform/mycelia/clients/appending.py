"""Appends of a program that is no service: what a client asks of a log, and the writers that it has."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from mycelia.amqp import Link
from mycelia.clients.chains import MiddlewareFor
from mycelia.errors import LinkError, RuntimeStateError

__all__ = ["Appendable", "Appender", "Appenders"]


class Appender(Protocol):
    """A writer of a log."""

    async def append(self, value: Any, **options: Any) -> None: ...

    async def append_many(self, values: Sequence[Any], **options: Any) -> None: ...

    async def aclose(self, timeout: float = ...) -> None: ...


class Appendable(Protocol):
    """What may be appended to: `mycelia.Log`, which stands above here."""

    async def open_writer(
        self, link: Link, timeout: float, *, middleware_for: MiddlewareFor
    ) -> Any:
        """An `Appender` on this link."""
        ...


class Appenders:
    """The writers of one client, each made for its log's first append."""

    def __init__(self, link: Link, timeout: float, middleware_for: MiddlewareFor) -> None:
        self._link = link
        self._middleware_for = middleware_for
        self._timeout = timeout
        self._appenders: dict[Appendable, Appender] = {}
        self._opening = asyncio.Lock()
        self._is_closed = False

    async def of(self, log: Appendable) -> Appender:
        """The writer of a log."""
        found = self._appenders.get(log)
        if found is not None:
            return found
        async with self._opening:
            if log not in self._appenders:
                self._appenders[log] = await self._opened(log)
            return self._appenders[log]

    async def _opened(self, log: Appendable) -> Appender:
        made: Appender | None = None
        try:
            made = await log.open_writer(
                self._link, self._timeout, middleware_for=self._middleware_for
            )
        except LinkError:
            if not self._is_closed:
                raise
        if made is None or self._is_closed:
            if made is not None:
                await made.aclose(0)
            raise RuntimeStateError("the client was closed before anything was appended.")
        return made

    async def aclose(self) -> None:
        """Send what is there; bounded."""
        self._is_closed = True
        appenders = list(self._appenders.values())
        self._appenders.clear()
        await asyncio.gather(*(appender.aclose() for appender in appenders))
