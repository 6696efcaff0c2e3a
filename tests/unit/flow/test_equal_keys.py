"""Keys that are equal in Python are one key, in memory and in what is written of them: crashes change nothing."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import IntEnum, StrEnum
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.errors import FlowFunctionError, StateIncompatible
from mycelia.flow import (
    Engine,
    FlowPlan,
    KeyContext,
    MemoryStore,
    count,
    counting,
    session,
    sliding,
    source,
    tumbling,
)
from mycelia.flow.equal_keys import has_no_equal, key_state, plain_key
from mycelia.testing import FlowDriver

NOON = datetime(2020, 1, 1, 12, tzinfo=UTC)
COUNT = 60


class Size(IntEnum):
    SMALL = 1


class Name(StrEnum):
    A = "a"


EQUAL: dict[str, list[Any]] = {
    "numbers": [1, 1.0, True, Decimal(1), Decimal("1.00"), Size.SMALL],
    "fractions": [0.5, Decimal("0.5"), Decimal("0.50")],
    "decimals": [Decimal("0.1"), Decimal("0.10")],
    "zeros": [0, 0.0, -0.0, False],
    "texts": ["a", Name.A],
    "moments": [NOON, NOON.astimezone(timezone(timedelta(hours=2)))],
    "tuples": [("a", 1, (2.0, NOON)), (Name.A, 1.0, (2, NOON))],
    "sets": [frozenset([1, 2]), frozenset([2.0, True])],
}
WINDOWS = {
    "tumbling": tumbling("20s"),
    "session": session("30s"),
    "sliding": sliding("3s"),
    "counting": counting(7),
}


@pytest.mark.parametrize("keys", EQUAL.values(), ids=EQUAL)
def test_equal_keys_have_the_same_bytes(keys: list[Any]) -> None:
    for one, other in pairwise(keys):
        assert one == other
        assert key_state(one) == key_state(other)
    assert plain_key(keys[0]) == keys[0]


@given(
    st.lists(
        st.one_of(
            st.integers(-3, 3),
            st.integers(),
            st.floats(allow_nan=False),
            st.booleans(),
            st.decimals(allow_nan=False, allow_infinity=False),
            st.text(max_size=2),
            st.uuids(),
        ),
        min_size=2,
        max_size=6,
    )
)
def test_keys_have_the_same_bytes_exactly_if_they_are_equal(keys: list[Any]) -> None:
    for one, other in pairwise(keys):
        assert (key_state(one) == key_state(other)) == (one == other)
        assert (key_state((one, "x")) == key_state((other, "x"))) == (one == other)


@pytest.mark.parametrize("key", ["a", b"a", 7, 2**70, None, ("a", 1), NOON, UUID(int=1)])
def test_plain_key_is_itself(key: Any) -> None:
    assert plain_key(key) is key or plain_key(key) == key


def counted(window: Any, keys: list[Any], seed: int, crash_rate: float) -> list[int]:
    rows = source("in", tuple).event_time(lambda row: row[1], unit="s").key_by(lambda row: row[0])
    out = rows.window(window).aggregate(count()).map(lambda one: one.value)
    driver = FlowDriver({"out": out}, seed=seed, crash_rate=crash_rate)
    for number in range(COUNT):
        driver.append("in", [(keys[number % len(keys)], number)], batch=1)
    driver.end()
    return sorted(driver.given("out"))


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("keys", EQUAL.values(), ids=EQUAL)
def test_crashes_leave_one_state_of_equal_keys(keys: list[Any], window: Any) -> None:
    straight = counted(window, keys[:1], 0, 0.0)
    assert counted(window, keys, 0, 0.0) == straight
    for seed in range(3):
        assert counted(window, keys, seed, 0.2) == straight


@pytest.mark.parametrize("key", [math.nan, ("a", math.nan), Decimal("NaN"), (1, (2, math.nan))])
def test_key_that_is_not_equal_to_itself_is_none(key: Any) -> None:
    """Nothing would find again what is kept of it."""
    assert has_no_equal(key)
    keyed = source("in", tuple).key_by(lambda row: row[0]).window(counting(1)).aggregate(count())
    engine = Engine(FlowPlan({"out": keyed.port}), {"in": [0]})
    (gave,) = engine.feed("in", 0, [("a",), (key,), ("b",)], [0, 0, 0])

    assert [one.key for one in gave.values] == ["a", "b"]
    (rejected,) = engine.take_rejected()
    assert rejected.position == 1
    assert rejected.operator.startswith("key_by-1")
    assert "gives it no key (" in rejected.reason


class Unkept:
    """Of a class that nothing finds again: it has no place in a state."""


def keeping(store: MemoryStore | None, **options: Any) -> Engine:
    """Keeps of each key the second of its row."""

    def keep(context: KeyContext[Any, Any], row: Any) -> Any:
        context.state = row[1]
        yield row[1]

    keyed = source("in", tuple).key_by(lambda row: row[0])
    out = keyed.process(keep, state=int).named("last")
    return Engine(FlowPlan({"out": out.port}), {"in": [0]}, store=store, **options)


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (Unkept(), "Unkept, which cannot be kept as state"),
        ("\ud800", "UnicodeEncodeError"),
        pytest.param(10**5000, "ValueError", id="huge"),
    ],
)
def test_key_whose_state_cannot_be_kept_is_named_with_its_step(kept: Any, said: str) -> None:
    engine = keeping(MemoryStore())
    engine.feed("in", 0, [("a", 1), ("b", kept), ("c", 3)], [0, 0, 0])
    with pytest.raises(StateIncompatible) as told:
        engine.take_changes()

    assert str(told.value).startswith(
        "step \"last\", key 'b': what is kept of it cannot be written: "
    )
    assert said in str(told.value)


@pytest.mark.parametrize("collects", [False, True])
def test_records_whose_key_cannot_be_kept_are_named(collects: bool) -> None:
    rows = [("a", 1), (Unkept(), 2), ("c", 3), ("\ud800", 4)]
    with pytest.raises(FlowFunctionError, match=r'"last", record 1 of the batch.*Unkept') as told:
        keeping(MemoryStore(), collects=collects).feed("in", 0, rows, [0] * 4)
    assert [one.position for one in (told.value, *told.value.also)] == [1, 3]
