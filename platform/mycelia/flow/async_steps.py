"""Steps that await: `map_async()` and `flat_map_async()`, on an event loop beside the engine's thread.

To the engine such a step is a function of a batch as any other: it returns when it has the results of all records, in their order. What
runs the coroutines is handed to the engine, which itself has no loop: that of the service, or one of its own in tests.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from itertools import chain, repeat
from random import Random
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from mycelia.errors import FlowError
from mycelia.flow.column_batch import ColumnBatch, Spread
from mycelia.flow.operators import MAIN, Operator
from mycelia.flow.user_code import is_called_off
from mycelia.policies.retry import Retry

__all__ = [
    "ASYNC_KINDS",
    "Awaiting",
    "AwaitingOptions",
    "OnLoop",
    "RunsCoroutines",
    "StepsCancelled",
    "in_own_loop",
]

R = TypeVar("R")

ASYNC_KINDS: Final = ("map_async", "flat_map_async")


class StepsCancelled(FlowError):
    """What was awaited was called off, as the partition is to be left. The engine is spent."""


class RunsCoroutines(Protocol):
    """Runs a coroutine to its end, and blocks the calling thread meanwhile."""

    def __call__(self, coroutine: Coroutine[Any, Any, R], /) -> R: ...


def in_own_loop(coroutine: Coroutine[Any, Any, R]) -> R:
    """In a loop of its own, in a thread of its own: there may be one running in this one."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


class OnLoop:
    """On the loop of a service, called from other threads, until it is `cancel()`led: then what runs is called off, and what would begin too."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._running: set[concurrent.futures.Future[Any]] = set()
        self._lock = threading.Lock()
        self._is_cancelled = False

    def __call__(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """
        Raises:
            StepsCancelled: it was called off.
        """
        with self._lock:
            if self._is_cancelled:
                coroutine.close()
                raise StepsCancelled("the partition is left")
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
            self._running.add(future)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise StepsCancelled("the partition is left") from None
        finally:
            with self._lock:
                self._running.discard(future)

    def cancel(self) -> None:
        """From the loop's thread, or any other. Idempotent."""
        with self._lock:
            self._is_cancelled = True
            running = list(self._running)
        for future in running:
            future.cancel()


class AwaitingOptions(NamedTuple):
    """How records are awaited.

    Attributes:
        concurrency: calls of the function at a time, for a partition.
        timeout: seconds that a call may take; None: any.
        retry: when it is called again.
    """

    concurrency: int
    timeout: float | None
    retry: Retry | None


class Awaiting(Operator):
    """Calls an `async def` function with each record of a batch, so many at a time, and gives what came of it in the records' order.

    Args:
        is_flat: whether it gives several.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[Any], Awaitable[Any]],
        options: AwaitingOptions,
        run: RunsCoroutines,
        *,
        is_flat: bool,
    ) -> None:
        super().__init__(name)
        self._function = function
        self._options = options
        self._run = run
        self._is_flat = is_flat
        self._random = Random()

    def process(self, port: int, batch: ColumnBatch) -> None:
        made, errors = self._run(self._all(batch.values))
        if errors:
            if not self.collects:
                first = min(errors)
                raise self.fail(errors[first], batch, first) from errors[first]
            for position in sorted(errors):
                error = self.fail(errors[position], batch, position)
                error.__cause__ = errors[position]
                self.failed.append(error)
            made = [one for position, one in enumerate(made) if position not in errors]
            batch = batch.only([position not in errors for position in range(len(batch))])
        times, keys, trail = batch.times, batch.keys, batch.trail
        if self._is_flat:
            counts = list(map(len, made))
            made = list(chain.from_iterable(made))
            times = list(chain.from_iterable(map(repeat, times, counts)))
            keys = None if keys is None else list(chain.from_iterable(map(repeat, keys, counts)))
            trail = None if trail is None else (*trail, Spread(counts))
        if made:
            self.out.append((MAIN, ColumnBatch(times, made, keys, batch.channel, trail)))

    async def _all(self, values: list[Any]) -> tuple[list[Any], dict[int, BaseException]]:
        """The results by position, and the errors of those that have none. Without `collects` nothing further begins after the first error."""
        made: list[Any] = [None] * len(values)
        errors: dict[int, BaseException] = {}
        waiting = iter(enumerate(values))
        workers = [
            asyncio.create_task(self._work(waiting, made, errors), name=f"mycelia:{self.name}")
            for _ in range(min(self._options.concurrency, len(values)))
        ]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.wait(workers)
        return made, errors

    async def _work(
        self,
        waiting: Iterator[tuple[int, Any]],
        made: list[Any],
        errors: dict[int, BaseException],
    ) -> None:
        for position, value in waiting:
            try:
                made[position] = await self._called(value)
            except BaseException as exc:
                if is_called_off(exc):
                    raise
                errors[position] = exc
                if not self.collects:
                    return
            if errors and not self.collects:
                return

    async def _called(self, value: Any) -> Any:
        options, attempt = self._options, 0
        while True:
            attempt += 1
            try:
                async with asyncio.timeout(options.timeout):
                    result = await self._function(value)
                return list(result) if self._is_flat else result
            except Exception as exc:
                pause = (
                    None
                    if options.retry is None
                    else options.retry.delay_after(exc, attempt, self._random)
                )
                if pause is None:
                    raise
            except asyncio.CancelledError as exc:
                if is_called_off(exc):
                    raise
                raise FlowError("the function was cancelled by itself") from None
            await asyncio.sleep(pause)
