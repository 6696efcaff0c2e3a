"""Calls of a service's method with what leaves a flow. Made by `stream.call()`."""

from __future__ import annotations

import asyncio
from typing import Any, Final, TypeVar

from mycelia.call import CallOptions
from mycelia.clients.rpc_proxy import ReplyListener
from mycelia.durations import Duration, seconds_of
from mycelia.errors import (
    CircuitOpen,
    ConfigError,
    ContractError,
    DeadlinePassed,
    HandlerTimeout,
    IncorrectSignature,
    LinkError,
    MethodNotFound,
    Overloaded,
    RpcTimeout,
    UnknownService,
    describe,
)
from mycelia.flow.sinks.requests import RequestSink
from mycelia.flow.sinks.sink import SinkRefused
from mycelia.runtime import Container

__all__ = ["IDEMPOTENCY_KEY", "RpcSink"]

T = TypeVar("T")

IDEMPOTENCY_KEY: Final = "idempotency_key"
"""The call's context data that has the id: `get_current_call().context["idempotency_key"]`; with Nameko `worker_ctx.data`."""

_AWAY: Final = (
    LinkError,
    UnknownService,
    RpcTimeout,
    Overloaded,
    CircuitOpen,
    DeadlinePassed,
    HandlerTimeout,
)
"""The service is not there, or not well. It is asked again for as long as that takes."""

_NEVER: Final = (MethodNotFound, IncorrectSignature, ContractError)


class RpcSink(RequestSink[T]):
    """See `Stream.call()`."""

    def __init__(
        self,
        method: str,
        *,
        batch: int | None,
        concurrency: int,
        timeout: Duration | None,
        attempts: int,
    ) -> None:
        what = f'call("{method}")'
        service, _, name = method.rpartition(".")
        if not service or not name:
            raise ConfigError(f'{what}: expected "service.method".')
        if type(attempts) is not int or attempts < 1:
            raise ConfigError(f"{what}: attempts={attempts!r:.60}; expected a number from 1.")
        super().__init__(what, batch, concurrency)
        self.name = method
        self._service, self._method = service, name
        self._timeout = None if timeout is None else seconds_of(timeout, f"{what}: timeout=")
        self._attempts = attempts
        self._failed: dict[str, int] = {}
        """By the id of a request, how often the method has raised."""
        self._container: Container | None = None
        self._own: ReplyListener | None = None
        self._setting_up = asyncio.Lock()

    async def open(self, container: Container) -> None:
        self._container = container

    async def _listener(self) -> ReplyListener:
        """That of the service's proxies, if it has any."""
        assert self._container is not None
        shared = self._container.shared_extensions.get(ReplyListener)
        if isinstance(shared, ReplyListener):
            return shared
        async with self._setting_up:
            if self._own is None:
                listener = ReplyListener()
                listener.container = self._container
                await listener.setup()
                self._own = listener
        return self._own

    async def _ask(self, payload: Any, idempotency_id: str) -> None:
        caller = (await self._listener()).caller
        options = CallOptions(timeout=self._timeout, context={IDEMPOTENCY_KEY: idempotency_id})
        method = caller.method(self._service, self._method, options)
        try:
            await caller.call(method, (payload,), {})
        except _AWAY:
            raise
        except Exception as exc:
            failed = self._failed[idempotency_id] = self._failed.get(idempotency_id, 0) + 1
            if isinstance(exc, _NEVER) or failed >= self._attempts:
                del self._failed[idempotency_id]
                raise SinkRefused(
                    f"{self.name}: {describe(exc)} (attempt {failed}, idempotency key {idempotency_id})"
                ) from exc
            raise
        self._failed.pop(idempotency_id, None)

    async def aclose(self) -> None:
        own, self._own = self._own, None
        if own is not None:
            await own.stop()
