"""Waiting for a condition."""

from __future__ import annotations

import asyncio

import pytest

from mycelia.testing.eventually import eventually


async def test_first_true_value_is_returned() -> None:
    answers = iter([0, "", None, "ready"])

    assert await eventually(lambda: next(answers)) == "ready"


async def test_async_predicate_is_awaited() -> None:
    async def answer() -> str:
        await asyncio.sleep(0)
        return "ready"

    assert await eventually(answer) == "ready"


async def test_failing_asserts_count_as_not_yet() -> None:
    seen: list[int] = []

    def three_seen() -> bool:
        seen.append(1)
        assert len(seen) == 3
        return True

    assert await eventually(three_seen)


async def test_time_out_names_the_condition_and_the_last_value() -> None:
    with pytest.raises(AssertionError, match=r"not within 0\.02 s: three messages; last value: 0"):
        await eventually(lambda: 0, 0.02, what="three messages")


async def test_time_out_carries_the_last_failed_assert() -> None:
    def wrong() -> bool:
        raise AssertionError("one is not two")

    with pytest.raises(AssertionError, match="last failure: one is not two"):
        await eventually(wrong, 0.02)


async def test_other_errors_end_the_wait_at_once() -> None:
    def broken() -> bool:
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        await eventually(broken, 60)


async def test_predicate_is_asked_even_without_time() -> None:
    assert await eventually(lambda: 1, 0) == 1
