"""The call of a worker that a foreign entrypoint asked for, and how the entrypoint hears what came of it."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

import msgspec

from mycelia.call import Call, Outcome, current_call
from mycelia.errors import MyceliaError
from mycelia.log_event import event
from mycelia.nameko.managed_thread import run_in_daemon_thread
from mycelia.nameko.queue_consumer import bury_unhandled

__all__ = ["SpawnedCall", "WorkerAborted", "container_being_killed", "observed"]

log = logging.getLogger("mycelia.nameko")


class WorkerAborted(MyceliaError):
    """A method ended with something that is no `Exception` (`SystemExit`, a cancellation); its cause says what.

    Nameko's entrypoints catch `Exception`, and would leave whoever waits without an answer.
    """


def _exc_info(error: BaseException | None) -> Any:
    """`sys.exc_info()` for an entrypoint's `handle_result`."""
    if error is not None and not isinstance(error, Exception):
        aborted = WorkerAborted(f"{type(error).__name__}: {error}")
        aborted.__cause__ = error
        error = aborted
    return None if error is None else (type(error), error, error.__traceback__)


class SpawnedCall(Call, eq=False, kw_only=True):
    """A call with what its entrypoint's thread waits for, and what it wants to hear."""

    handle_result: Any = None
    """The entrypoint's callback, or `None`."""
    worker_ctx: Any = None
    """The worker as the entrypoint and foreign providers know it."""
    begun: threading.Event = msgspec.field(default_factory=threading.Event)
    """The worker's method has begun, or never will."""
    is_refused: bool = False
    """The worker will not run: the service stops."""
    is_handled: bool = False
    result: Any = None
    """What `handle_result` made of the result. It may be there beside an error, and providers are told both."""
    _lock: threading.Lock = msgspec.field(default_factory=threading.Lock)

    def refuse(self) -> None:
        self.is_refused = True
        self.begun.set()

    def finish(self, value: Any, error: BaseException | None) -> Any:
        """Tell `handle_result`, once; return the value it wants, or raise the error it wants."""
        with self._lock:
            first, self.is_handled = not self.is_handled, True
        if self.handle_result is not None and first:
            try:
                value, exc_info = self.handle_result(self.worker_ctx, value, _exc_info(error))
            except Exception as exc:
                bury_unhandled(self.handle_result, exc)
                raise
            self.result = value
            if exc_info is None:
                error = None
            elif not isinstance(exc_info[1], WorkerAborted):
                error = exc_info[1]
        if error is not None:
            raise error
        return value

    def tell_later(self, outcome: Outcome, who: object) -> None:
        """`finish()` in a thread of its own, which may block; what it raises beyond the outcome's error is logged."""

        def tell() -> None:
            try:
                self.finish(outcome.value, outcome.error)
            except BaseException as exc:
                if exc is not outcome.error:
                    log.exception(event("handle_result_failed", entrypoint=repr(who)))

        threading.Thread(target=tell, name="mycelia:handle_result", daemon=True).start()


def container_being_killed(service: str) -> Exception:
    """Nameko's own class, which entrypoints catch to put their message back."""
    error: Exception = sys.modules["nameko.exceptions"].ContainerBeingKilled(
        f"service {service} stops"
    )
    return error


def observed(method: Callable[..., Any]) -> Callable[..., Any]:
    """The service's method, with its outcome told to `handle_result` before the dependencies see it."""

    def begin(service: Any) -> SpawnedCall:
        spawned = current_call.get()
        assert isinstance(spawned, SpawnedCall)
        spawned.worker_ctx.service = service
        spawned.begun.set()
        return spawned

    if inspect.iscoroutinefunction(method):

        @wraps(method)
        async def run_async(service: Any, *args: Any, **kwargs: Any) -> Any:
            spawned = begin(service)
            value, error = None, None
            try:
                value = await method(service, *args, **kwargs)
            except BaseException as exc:  # noqa: BLE001  raised again below
                error = exc
            if spawned.handle_result is None or isinstance(error, asyncio.CancelledError):
                return spawned.finish(value, error)
            # It was written for a thread of its own, and may block.
            return await run_in_daemon_thread(
                lambda: spawned.finish(value, error), f"{method.__name__}.handle_result"
            )

        return run_async

    @wraps(method)
    def run(service: Any, *args: Any, **kwargs: Any) -> Any:
        spawned = begin(service)
        value, error = None, None
        try:
            value = method(service, *args, **kwargs)
        except BaseException as exc:  # noqa: BLE001  raised again by `finish`
            error = exc
        return spawned.finish(value, error)

    return run
