"""`tests.progress.until`: slow is no failure, standing still is one."""

from __future__ import annotations

from itertools import count

import pytest
from tests.progress import until


async def test_slow_progress_is_waited_for_longer_than_a_stall_may_last() -> None:
    steps = count()
    reached = 0

    def step() -> int:
        nonlocal reached
        reached = next(steps)
        return reached

    await until(lambda: reached >= 20, step, what="20 steps", stalled_s=0.05, interval=0.01)

    assert reached >= 20  # 0.2 s, four times what a stall may last


async def test_standing_still_fails_and_says_where() -> None:
    def never() -> bool:
        raise AssertionError("2 messages left")

    with pytest.raises(AssertionError, match=r"no progress for 0.05 s, at 7: empty: 2 messages"):
        await until(never, lambda: 7, what="empty", stalled_s=0.05, interval=0.01)
