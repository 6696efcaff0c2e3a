"""The lifespan of an ASGI application: its start before its first request, its end after the last (ASGI, Lifespan 2.0)."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from starlette.types import ASGIApp, Message

from mycelia.durations import duration_text
from mycelia.errors import describe
from mycelia.log_event import event

__all__ = ["Lifespan"]

log = logging.getLogger("mycelia.entrypoints")


class Lifespan:
    """Starts and ends one application. An application that knows no lifespan is let alone, as the specification has it."""

    def __init__(self, app: ASGIApp) -> None:
        self.state: dict[str, Any] = {}
        """What the application gives its requests."""
        self._app = app
        self._task: asyncio.Task[None] | None = None
        self._answered = asyncio.Event()
        self._ending = asyncio.Event()
        self._failure: str | None = None

    async def startup(self, timeout: float) -> str | None:
        """Return when the application is ready; if it says that it does not start, or is not ready in time, why.

        Args:
            timeout: seconds that it has.

        Raises:
            Exception: what it raised after it said so.
        """
        self._task = asyncio.create_task(self._run(), name="mycelia:http:lifespan")
        try:
            async with asyncio.timeout(timeout):
                await self._answered.wait()
        except TimeoutError:  # `shutdown()` cancels it
            return self._failure or f"it is not ready after {duration_text(timeout)}"
        if self._failure is not None:
            await self._task
        return self._failure

    async def shutdown(self) -> None:
        """Return when the application has ended; cancelled if it has not got ready. Idempotent. Raises what it raised."""
        task, self._task = self._task, None
        if task is None:
            return
        self._ending.set()
        if not self._answered.is_set():
            task.cancel()
        try:
            await asyncio.wait((task,))
        finally:
            task.cancel()
        if not task.cancelled():
            task.result()

    async def _run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
        }
        try:
            await self._app(scope, self._receive, self._send)
        except Exception as exc:
            if self._failure is not None or self._answered.is_set():
                raise
            log.debug(event("lifespan_unknown", error=describe(exc)))
        finally:
            self._answered.set()

    async def _receive(self) -> Message:
        if self._answered.is_set():
            await self._ending.wait()
            return {"type": "lifespan.shutdown"}
        return {"type": "lifespan.startup"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            self._answered.set()
        elif message["type"] == "lifespan.startup.failed":
            self._failure = message.get("message", "")
        elif message["type"] == "lifespan.shutdown.failed":
            log.error(event("lifespan_failed", detail=message.get("message", "")))
