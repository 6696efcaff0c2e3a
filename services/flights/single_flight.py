"""A cache in which concurrent misses for one key share one call."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

__all__ = ["CacheStatistics", "SingleFlightCache"]

T = TypeVar("T")


@dataclass(slots=True)
class CacheStatistics:
    """Counts since the cache was made."""

    hits: int = 0
    shared: int = 0
    """Misses that waited for another one's call."""
    loads: int = 0
    failures: int = 0
    evicted: int = 0


class SingleFlightCache(Generic[T]):
    """Keeps the `max_entries` values used last; a value may be `None`, which is kept like any other.

    Of several tasks that miss the same key at once the first one calls, the others wait for its result. If the call fails, all
    of them get its error and nothing is kept. If the caller is cancelled, the next one calls in its place: nobody
    is failed by another's cancellation. Belongs to one event loop.
    """

    def __init__(self, max_entries: int = 10_000) -> None:
        self.max_entries = max_entries
        self.statistics = CacheStatistics()
        self._values: OrderedDict[Any, T] = OrderedDict()
        self._pending: dict[Any, asyncio.Future[bool]] = {}

    def __len__(self) -> int:
        return len(self._values)

    async def get(self, key: Any, load: Callable[[], Awaitable[T]]) -> T:
        """The value of `key`, from the cache or from `load()`.

        Raises:
            Exception: what `load()` raised, here or in the task whose call this one shared.
        """
        waited = False
        while True:
            if key in self._values:
                self.statistics.hits += not waited
                self._values.move_to_end(key)
                return self._values[key]
            pending = self._pending.get(key)
            if pending is None:
                return await self._load(key, load)
            self.statistics.shared += not waited
            waited = True
            # Shielded: a waiter's cancellation must not cancel what the others wait for.
            await asyncio.shield(pending)

    async def _load(self, key: Any, load: Callable[[], Awaitable[T]]) -> T:
        """Calls, and tells the waiters to look again; their next look finds the value, or nobody calling."""
        pending: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._pending[key] = pending
        self.statistics.loads += 1
        try:
            value = await load()
        except BaseException as exc:
            self.statistics.failures += 1
            if isinstance(exc, Exception):
                pending.set_exception(exc)
                pending.exception()  # marked as seen: there may be no waiter
            else:
                pending.set_result(False)
            raise
        else:
            self._values[key] = value
            if len(self._values) > self.max_entries:
                self._values.popitem(last=False)
                self.statistics.evicted += 1
            pending.set_result(True)
            return value
        finally:
            del self._pending[key]
