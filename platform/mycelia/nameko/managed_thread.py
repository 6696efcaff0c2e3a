"""Real threads for what third-party extensions run: consume loops, and hooks that block.

Daemon threads, never the loop's executor: a hook or a loop that does not come back must not keep the process alive.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from mycelia.log_event import event

__all__ = ["ManagedThread", "ManagedThreadKilled", "run_in_daemon_thread"]

log = logging.getLogger("mycelia.nameko")

T = TypeVar("T")


class ManagedThreadKilled(BaseException):
    """Raised inside a managed thread by `kill()`; a `BaseException`, so that `except Exception` lets it through."""


class ManagedThread:
    """A thread with the four things that Nameko's extensions use of a greenthread.

    Args:
        function: called without arguments, in the thread.
        name: for logs.
        on_exit: called in the thread, last of all, with this object.
    """

    def __init__(
        self, function: Callable[[], Any], name: str, on_exit: Callable[[ManagedThread], None]
    ) -> None:
        self.name = name
        self.error: BaseException | None = None
        self._function = function
        self._result: Any = None
        self._on_exit = on_exit
        self._links: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"mycelia:{name}", daemon=True)

    def start(self) -> ManagedThread:
        self._thread.start()
        return self

    @property
    def dead(self) -> bool:
        return self._ended.is_set()

    def wait(self) -> Any:
        """Block until the function has ended; return what it returned, or raise what it raised.

        `None` for a thread that was killed.
        """
        self._ended.wait()
        if self.error is not None:
            raise self.error
        return self._result

    def link(self, callback: Callable[..., Any], *args: Any) -> None:
        """Call `callback(self, *args)` when the thread ends; at once if it has."""
        with self._lock:
            if not self._ended.is_set():
                self._links.append((callback, args))
                return
        callback(self, *args)

    def kill(self) -> None:
        """Raise `ManagedThreadKilled` in the thread, at its next step of Python code. Does not wait.

        A call that blocks outside of Python (a socket read, a sleep) ends first; the thread is a daemon, so one that
        never ends dies with the process. Killing a thread that has ended does nothing.
        """
        ident = self._thread.ident
        with self._lock:
            if self._ended.is_set() or ident is None:
                return
            import ctypes  # not at every start

            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(ident), ctypes.py_object(ManagedThreadKilled)
            )

    def join(self, timeout: float) -> bool:
        """Block until the thread and its links have ended, at most `timeout` seconds; whether they have."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            try:
                self._result = self._function()
            except ManagedThreadKilled:
                pass
            except BaseException as exc:  # noqa: BLE001  the thread's boundary: waiters and links learn of it
                self.error = exc
            with self._lock:  # from here on `kill()` finds an ended thread
                self._ended.set()
        except ManagedThreadKilled:
            self._ended.set()
        for callback, args in (*self._links, (self._on_exit, ())):
            try:
                callback(self, *args)
            except Exception:
                log.exception(event("managed_thread_link_failed", thread=self.name))

    def __repr__(self) -> str:
        return f"<ManagedThread {self.name}{' dead' if self.dead else ''}>"


def run_in_daemon_thread(function: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Call `function()` in a thread of its own; awaited on the loop. Cancelling gives up waiting, not the thread."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def run() -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = function()
        except BaseException as exc:  # noqa: BLE001  the thread's boundary
            error = exc
        try:
            loop.call_soon_threadsafe(deliver, result, error)
        except RuntimeError:
            log.warning(event("late_hook_result", thread=name, detail="the event loop is closed"))

    threading.Thread(target=run, name=f"mycelia:{name}", daemon=True).start()
    return future
