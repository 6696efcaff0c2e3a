"""The bridge: extensions written for Nameko, run as they are, third-party ones above all.

Nameko's own `bind()` makes the instance, with the container's face in the container's place; a bridged counterpart
calls its hooks. Importing this module imports nothing of Nameko: that happens when a service declares such an
extension, and so has imported it.

| Nameko's | here |
|---|---|
| `setup`, `start`, `stop`, `kill` | in a daemon thread each: they may block |
| per-worker hooks of a `def` method | in the worker's own thread |
| per-worker hooks of an `async def` method | on the event loop: they must not block |
| `container.spawn_managed_thread(f)` | a daemon thread with `wait`, `link`, `kill`, `dead` |
| `container.spawn_worker(…, handle_result=…)` | a worker in a lane of that entrypoint; blocks the calling thread until it begins |
| `eventlet.Event` | works between threads (`thread_event.py`) |
| `eventlet.sleep`, `Timeout`, `spawn`, queues, semaphores | within one thread, whose own hub runs them; not between threads |
| Nameko's consumers over kombu (`QueueConsumer` and what builds on it) | work on kombu messages that come over Mycelia's link (`queue_consumer.py`) |
"""

from __future__ import annotations

from functools import cache
from typing import Any

from mycelia.nameko.managed_thread import run_in_daemon_thread
from mycelia.nameko.thread_event import pause_here, thread_event_methods
from mycelia.runtime import Container, Extension

__all__ = ["BridgedExtension", "use_thread_events"]


@cache
def use_thread_events() -> None:
    """Let `eventlet.Event` wake waiters in other threads. Once; in a process whose workers are real threads."""
    from eventlet import event

    for name, method in thread_event_methods(event.NOT_USED, pause_here).items():
        setattr(event.Event, name, method)


class BridgedExtension(Extension):
    """Runs the life cycle of a bound foreign extension, in threads of its own.

    Args:
        foreign: the bound extension.
    """

    container: Container

    def __init__(self, foreign: Any) -> None:
        self.foreign = foreign

    async def setup(self) -> None:
        await self._call("setup")
        self.foreign.container.refuse_later_patches(self)

    async def start(self) -> None:
        await self._call("start")

    async def stop(self) -> None:
        await self._call("stop")

    async def kill(self) -> None:
        await self._call("kill")

    async def _call(self, hook: str) -> None:
        from nameko.extensions import Extension as NamekoExtension

        if getattr(type(self.foreign), hook) is not getattr(NamekoExtension, hook):
            name = f"{type(self.foreign).__name__}.{hook}"
            await run_in_daemon_thread(getattr(self.foreign, hook), name)

    def __repr__(self) -> str:
        return f"<{type(self.foreign).__qualname__}, written for Nameko>"
