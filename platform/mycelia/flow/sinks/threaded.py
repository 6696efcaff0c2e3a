"""Threads for sinks that block, and what records are as plain data."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import msgspec

from mycelia.errors import UnserializableValueError

__all__ = ["SinkThreads", "fields_of_record"]

R = TypeVar("R")

_THREADS: Final = 4
_END_WAITS: Final = 5.0


class SinkThreads:
    """A few threads beside the event loop, made when they are first needed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pool: ThreadPoolExecutor | None = None

    async def run(self, function: Callable[..., R], *args: Any) -> R:
        """Run it beside the loop. Cancelled, it waits for its end, some seconds at most: what has begun cannot be called off."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, self._name)
        running = asyncio.get_running_loop().run_in_executor(self._pool, function, *args)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running], timeout=_END_WAITS)
            if running.done() and not running.cancelled():
                running.exception()  # nobody else asks for it
            raise

    def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


def fields_of_record(value: Any, what: str) -> dict[str, Any]:
    """A record's fields by name: of a mapping, a dataclass, a `msgspec.Struct` or a named tuple.

    Raises:
        UnserializableValueError: it is nothing that has names.
    """
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, msgspec.Struct):
        return {name: getattr(value, name) for name in value.__struct_fields__}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        fields: dict[str, Any] = value._asdict()
        return fields
    raise UnserializableValueError(
        f"{what}: {value!r:.80} has no fields with names. Make it a dataclass or a mapping before, with map()."
    )
