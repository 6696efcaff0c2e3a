"""Waiting for what services in other processes come to."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tests.progress import STALLED_S

__all__ = ["taken", "wait_until"]


def wait_until(condition: Callable[[], bool], stalled_s: float = STALLED_S) -> None:
    """Ask again and again until it is true."""
    deadline = time.monotonic() + stalled_s
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not come true in {stalled_s:g} s"
        time.sleep(0.02)


def taken(take: Callable[[], list[Any]], count: int) -> list[Any]:
    """What `take()` gives, taken until there are `count`; fails when nothing more comes."""
    found: list[Any] = []
    while len(found) < count:
        before = len(found)

        def has_more() -> bool:
            found.extend(take())
            return len(found) > before  # noqa: B023  asked within this round

        wait_until(has_more)
    return found
