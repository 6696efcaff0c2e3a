"""Closed-loop RPC load: N callers, each with one call in flight at a time."""

from __future__ import annotations

import argparse
import asyncio
import math
import resource
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.peers.protocol import ECHOED, say


@dataclass(frozen=True, slots=True)
class Levels:
    """What to measure: each level of calls in flight, for so many seconds after a warm-up."""

    in_flight: tuple[int, ...]
    seconds: float
    warm_up: float

    @classmethod
    def from_arguments(cls, argv: Sequence[str]) -> Levels:
        """Read `--in-flight 1,64 --seconds 2 --warm-up 0.5`."""
        parser = argparse.ArgumentParser()
        parser.add_argument("--in-flight", required=True)
        parser.add_argument("--seconds", type=float, required=True)
        parser.add_argument("--warm-up", type=float, required=True)
        given = parser.parse_args(argv)
        levels = tuple(int(level) for level in given.in_flight.split(","))
        return cls(levels, given.seconds, given.warm_up)


async def drive(call: Callable[[], Awaitable[Any]], levels: Levels) -> None:
    """Measure every level with an asyncio client and report each. `call` echoes `ECHOED`."""
    for in_flight in levels.in_flight:
        await _closed_loop(call, in_flight, levels.warm_up)
        say("measuring", in_flight=in_flight)
        used, started = cpu_used(), time.perf_counter()
        latencies = await _closed_loop(call, in_flight, levels.seconds)
        report(in_flight, latencies, time.perf_counter() - started, cpu_used() - used)


class Blocking(Protocol):
    """A client that does not await: used from one thread at a time."""

    def submit(self) -> Any:
        """Send a call and return without its reply."""

    def collect(self, handle: Any) -> Any:
        """Block until the reply of what `submit` returned is there, and return it."""


def drive_in_threads(clients: Sequence[Blocking], levels: Levels) -> None:
    """The same with blocking clients, a thread for each: calls in flight are shared out evenly."""
    for in_flight in levels.in_flight:
        used_clients = clients[:in_flight]
        windows = [in_flight // len(used_clients)] * len(used_clients)
        for extra in range(in_flight % len(used_clients)):
            windows[extra] += 1
        _windows(used_clients, windows, levels.warm_up)
        say("measuring", in_flight=in_flight)
        used, started = cpu_used(), time.perf_counter()
        latencies = _windows(used_clients, windows, levels.seconds)
        report(in_flight, latencies, time.perf_counter() - started, cpu_used() - used)


def report(in_flight: int, latencies: list[float], elapsed: float, cpu: float) -> None:
    """Report one level: latencies in seconds, over `elapsed` seconds, for `cpu` seconds of CPU."""
    latencies.sort()
    say(
        "sample",
        in_flight=in_flight,
        count=len(latencies),
        elapsed_s=elapsed,
        p50_ms=quantile(latencies, 0.50) * 1e3,
        p99_ms=quantile(latencies, 0.99) * 1e3,
        p999_ms=quantile(latencies, 0.999) * 1e3,
        client_cpu_s=cpu,
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank quantile of what is already in order: the smallest value that at least
    `share` of all do not pass."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def cpu_used() -> float:
    """Processor seconds this process has used so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def check(answer: Any) -> None:
    """An echo that says something else is a broken peer, not a fast one."""
    if answer != ECHOED:
        raise RuntimeError(f"the echo of {ECHOED!r} was {answer!r}")


async def _closed_loop(
    call: Callable[[], Awaitable[Any]], in_flight: int, seconds: float
) -> list[float]:
    latencies: list[float] = []
    clock = time.perf_counter
    end = clock() + seconds

    async def caller() -> None:
        while True:
            sent = clock()
            answer = await call()
            received = clock()
            latencies.append(received - sent)
            check(answer)
            if received >= end:
                return

    async with asyncio.TaskGroup() as callers:
        for _ in range(in_flight):
            callers.create_task(caller())
    return latencies


def _windows(clients: Sequence[Blocking], windows: Sequence[int], seconds: float) -> list[float]:
    with ThreadPoolExecutor(len(clients)) as pool:
        parts = pool.map(_window, clients, windows, [seconds] * len(clients))
        return [latency for part in parts for latency in part]


def _window(client: Blocking, in_flight: int, seconds: float) -> list[float]:
    """A sliding window of calls: the oldest is collected first, then another is sent."""
    latencies: list[float] = []
    clock = time.perf_counter
    end = clock() + seconds
    pending: deque[tuple[float, Any]] = deque()
    is_open = True
    while is_open or pending:
        while is_open and len(pending) < in_flight:
            pending.append((clock(), client.submit()))
        sent, handle = pending.popleft()
        answer = client.collect(handle)
        received = clock()
        latencies.append(received - sent)
        check(answer)
        is_open = received < end
    return latencies
