"""The bounded thread pool for `def` methods, with one hand-over each way.

A worker goes to a thread through one queue; results come back in batches: the first of a batch wakes the loop, the
others ride along. A wake-up for each result, which is what `run_in_executor` does, costs about twice as much.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context
from queue import SimpleQueue

import msgspec

from mycelia.call import Call, Outcome
from mycelia.runtime.thread_locals import empty_locals

__all__ = ["ThreadPool", "ThreadStatistics"]

MAX_ABANDONED = 1000
"""Threads of methods that never return, which can only be left alone. Arbitrary; each takes some 100 KB."""

RunInThread = Callable[[Call], Outcome]
Done = Callable[[Call, Outcome], None]


class ThreadStatistics(msgspec.Struct, frozen=True):
    """A thread pool's state now."""

    size: int
    """Threads at most, without those that were abandoned."""
    started: int
    busy: int
    """Calls that run in a thread, the abandoned ones included, or wait for one."""
    abandoned: int
    """Threads that nobody waits for any more."""


class ThreadPool:
    """Runs calls in up to `size` daemon threads, which start when first needed.

    Bounded by its users: each lane submits no more than its concurrency. Daemon threads, because a thread cannot be
    stopped from outside: a handler that never returns must not keep the process alive.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, size: int, name: str) -> None:
        self._loop = loop
        self._size = size
        self._name = name
        self._work: SimpleQueue[tuple[RunInThread, Call, Done, Context] | None] = SimpleQueue()
        self._results: deque[tuple[Done, Call, Outcome]] = deque()
        self._drain_scheduled = False
        self._threads: list[threading.Thread] = []
        self._busy = 0
        self._abandoned: set[Call] = set()
        """Calls whose threads nobody waits for; each has a substitute as long as it lasts."""

    @property
    def size(self) -> int:
        """Threads at most, without those that were abandoned."""
        return self._size - len(self._abandoned)

    @property
    def abandoned(self) -> int:
        """Threads that nobody waits for any more."""
        return len(self._abandoned)

    def resize(self, size: int) -> None:
        """Have up to `size` threads from now on; those above a lower one end when they have nothing to do."""
        self._size = size + len(self._abandoned)
        while len(self._threads) > self._size:
            self._end_one()

    def _end_one(self) -> None:
        """Let a thread end: whichever comes by next."""
        self._threads.pop()
        self._work.put(None)

    def statistics(self) -> ThreadStatistics:
        return ThreadStatistics(
            size=self.size,
            started=len(self._threads),
            busy=self._busy,
            abandoned=len(self._abandoned),
        )

    def abandon(self, call: Call) -> bool:
        """Wait for `call` no more, and let another thread take its place. What it comes to is dropped.

        Returns whether there is another thread: past `MAX_ABANDONED` there is none, and the pool shrinks.
        """
        if len(self._abandoned) >= MAX_ABANDONED:
            return False
        self._abandoned.add(call)
        self._size += 1
        return True

    def submit(self, run: RunInThread, call: Call, done: Done, context: Context) -> None:
        """Run `run(call)` in a thread, in `context`, then `done(call, outcome)` on the loop. Call on the loop.

        `context` must be a copy of the caller's own: what middleware has set (a tracer's span) is there in the thread,
        and what the method leaves in context variables dies with it.
        """
        self._busy += 1
        if self._busy > len(self._threads) and len(self._threads) < self._size:
            self._start_thread()
        self._work.put((run, call, done, context))

    def close(self) -> None:
        """Let idle threads end. Threads that are busy end with their call; nobody waits for them."""
        for _ in self._threads:
            self._work.put(None)
        self._threads.clear()

    def _start_thread(self) -> None:
        thread = threading.Thread(
            target=self._serve, name=f"{self._name}-{len(self._threads)}", daemon=True
        )
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        get, append, loop = self._work.get, self._results.append, self._loop
        while (item := get()) is not None:
            run, call, done, context = item
            append((done, call, context.run(run, call)))
            empty_locals()
            # Order matters: the result is in before the flag is read, and `_drain` clears the flag before it reads
            # the results; so a result is never left behind. Two wake-ups for one batch can happen and do no harm.
            if not self._drain_scheduled:
                self._drain_scheduled = True
                try:
                    loop.call_soon_threadsafe(self._drain)
                except RuntimeError:
                    return  # the loop is closed: the process is going down

    def _drain(self) -> None:
        self._drain_scheduled = False
        results = self._results
        while results:
            done, call, outcome = results.popleft()
            self._busy -= 1
            if self._abandoned and call in self._abandoned:
                self._abandoned.discard(call)
                self._size -= 1
                if len(self._threads) > self._size:  # its substitute, or any other that comes by
                    self._end_one()
            done(call, outcome)
