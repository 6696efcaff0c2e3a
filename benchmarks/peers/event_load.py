"""Bursts of events, as the harness orders them on standard input: `count N` or `seconds S`.

A burst is published through a window of `PUBLISH_WINDOW` unconfirmed events. When all are
confirmed, one more follows, which tells the handler how many there were.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator

from benchmarks.peers.protocol import PUBLISH_WINDOW, Event, make_event, say


async def publish_bursts(publish: Callable[[Event], Awaitable[object]]) -> None:
    """Publish what is ordered until the orders end. `publish` returns once confirmed."""
    say("ready")
    loop = asyncio.get_running_loop()
    for burst in itertools.count(1):
        order = await loop.run_in_executor(None, sys.stdin.readline)
        if not order:
            return
        first_at = time.time()
        numbers = _numbers(order)
        count = 0

        async def publisher(burst: int, numbers: Iterator[int]) -> None:
            nonlocal count
            for number in numbers:
                await publish(make_event(burst, number))
                count += 1

        async with asyncio.TaskGroup() as publishers:
            for _ in range(PUBLISH_WINDOW):
                publishers.create_task(publisher(burst, numbers))
        await publish(make_event(burst, count, total=count + 1))
        _published(burst, count + 1, first_at)


def publish_bursts_in_threads(publish: Callable[[Event], object], threads: int) -> None:
    """The same for a client whose `publish` blocks until confirmed."""
    say("ready")
    for burst, order in enumerate(sys.stdin, 1):
        first_at = time.time()
        numbers = _numbers(order)
        lock = threading.Lock()
        counts = [0] * threads

        def publisher(
            slot: int, burst: int, numbers: Iterator[int], lock: threading.Lock, counts: list[int]
        ) -> None:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                publish(make_event(burst, number))
                counts[slot] += 1

        running = [
            threading.Thread(target=publisher, args=(slot, burst, numbers, lock, counts))
            for slot in range(threads)
        ]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        publish(make_event(burst, sum(counts), total=sum(counts) + 1))
        _published(burst, sum(counts) + 1, first_at)


def _numbers(order: str) -> Iterator[int]:
    """0, 1, 2 … for as many events, or as long, as the order says (the last event not counted)."""
    word, _, amount = order.strip().partition(" ")
    if word == "count":
        return iter(range(int(amount) - 1))
    if word == "seconds":
        end = time.perf_counter() + float(amount)
        return itertools.takewhile(lambda _: time.perf_counter() < end, itertools.count())
    raise ValueError(f"orders are 'count N' and 'seconds S', not {order!r}")


def _published(burst: int, count: int, first_at: float) -> None:
    say("published", burst=burst, count=count, first_at=first_at, confirmed_at=time.time())
