"""State as bytes and back; timers and watermarks that go on where they were."""

from __future__ import annotations

import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.errors import StateIncompatible
from mycelia.flow import MemoryStore
from mycelia.flow.column_batch import BEGINNING_OF_TIME, END_OF_TIME
from mycelia.flow.state import KeyedState
from mycelia.flow.state_codec import decode_state, encode_plain, encode_state, encode_states
from mycelia.flow.timer_queue import TimerQueue
from mycelia.flow.watermarks import PartitionWatermarks


class Plane(msgspec.Struct, frozen=True):
    tail: str
    seats: int = 0


@dataclass
class Weather:
    wind: float
    at: datetime


Point = namedtuple("Point", "x y")  # untyped ones occur as well


class Carrier(Enum):
    AA = "american"


PLAIN_VALUES = st.text() | st.binary() | st.integers()

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes(timezones=st.just(UTC))
    | st.decimals(allow_nan=False)
    | st.uuids(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(-5, 5), inner)
    ),
    max_leaves=12,
)


@given(PLAIN_VALUES)
def test_plain_values_have_the_same_bytes_by_the_shorter_way(value: str | bytes | int) -> None:
    assert encode_plain(value) == encode_state(value)


@given(st.lists(VALUES))
def test_many_values_have_the_bytes_of_each(values: list[Any]) -> None:
    assert encode_states(values) == list(map(encode_state, values))


@given(VALUES)
def test_what_is_kept_comes_back_as_it_was(value: Any) -> None:
    again = decode_state(encode_state(value))
    assert again == value
    assert type(again) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        {1, "a", None},
        frozenset({(1, 2), (3, 4)}),
        Plane("N1", 3),
        [Weather(3.5, datetime(2013, 1, 1, tzinfo=UTC))],
        Point(1, (2, 3)),
        Carrier.AA,
        {"of": (date(2013, 1, 2), timedelta(days=1, seconds=2, microseconds=3))},
        2**70,
        {(1, "a"): -(2**80)},
        Decimal("1.50"),
        UUID(int=7),
    ],
    ids=lambda value: type(value).__name__,
)
def test_these_come_back_as_well(value: Any) -> None:
    again = decode_state(encode_state(value))
    assert (again, type(again)) == (value, type(value))


class Anything(msgspec.Struct):
    of: Any


@given(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.text(min_size=200, max_size=300)
    | st.binary(min_size=200, max_size=300)
)
def test_plain_fields_have_the_bytes_that_msgpack_gives_them(value: Any) -> None:
    """Records of plain fields are written by another encoder: state that stands is to stay readable, and equal."""
    content = {"of": value}
    if not isinstance(value, int) or -(2**63) <= value < 2**64:
        assert encode_state(Anything(value)).endswith(msgpack.packb(content))
    assert decode_state(encode_state(Anything(value))) == Anything(value)


def test_true_and_one_are_told_apart() -> None:
    assert repr(decode_state(encode_state([True, 1, 1.0]))) == "[True, 1, 1.0]"


def test_bytes_are_the_same_in_every_process() -> None:
    """Text has another hash in each, and sets another order."""
    code = (
        "from mycelia.flow.state_codec import encode_state\n"
        "print(encode_state([{f'k{i}' for i in range(50)}, {'b': 1, 'a': frozenset('xyz')}]).hex())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": "platform", "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_what_cannot_be_kept_is_refused_by_name() -> None:
    class Local(msgspec.Struct):
        x: int

    with pytest.raises(StateIncompatible, match=r"<object object .* is a builtins\.object"):
        encode_state({"x": object()})
    with pytest.raises(StateIncompatible, match="is a class inside a function"):
        encode_state(Local(1))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xc1", "cannot be read"),
        (encode_state([1, 2])[:-1], "cannot be read"),
        (encode_state(Plane("N1")).replace(b"Plane", b"Plain"), "and there is none"),
        (
            encode_state(Plane("N1")).replace(b"seats", b"chairs"[:5]),
            "which it does not take any more",
        ),
        (encode_state(Plane("N1")).replace(b":Plane", b":UUID\0"[:6]), "there is none"),
        (b"\xd4\x63\x00", "an extension 99"),
    ],
)
def test_state_that_is_not_ours_any_more_is_told(data: bytes, said: str) -> None:
    with pytest.raises(StateIncompatible, match=said):
        decode_state(data)


def test_only_records_are_made_of_what_state_names() -> None:
    data = encode_state(Plane("N1")).replace(
        f"{__name__}:Plane".encode(), b"subprocess:Popen".ljust(len(f"{__name__}:Plane"), b" ")
    )
    with pytest.raises(StateIncompatible):
        decode_state(data)


# --- by key ---------------------------------------------------------------------------------------


class CountingStore(MemoryStore):
    reads = 0

    def read(self, space: str, keys: Any) -> Any:
        self.reads += 1
        return super().read(space, keys)


def same(value: Any) -> Any:
    return value


def test_state_is_read_once_for_the_keys_of_a_batch() -> None:
    store = CountingStore()
    store.write({"w": {encode_state(key): encode_state(key * 10) for key in range(5)}})
    state: KeyedState[int] = KeyedState("w", store, same, same)

    assert state.load([1, 2, 7]) == {1: 10, 2: 20}
    assert store.reads == 1
    state.load([1, 2])
    assert store.reads == 1


def test_what_changed_is_told_and_what_is_gone() -> None:
    store = MemoryStore()
    state: KeyedState[int] = KeyedState("w", store, same, same)
    state.live.update(a=1, b=2)
    state.touch("ab")
    store.write({"w": state.take_changes()})
    assert state.take_changes() == {}

    del state.live["a"]
    state.touch("a")
    state.load("a")  # not read again: it is gone, though the store does not know yet
    assert "a" not in state.live
    store.write({"w": state.take_changes()})
    assert [decode_state(key) for key, _ in store.scan("w")] == ["b"]


def test_memory_is_left_after_a_checkpoint_when_there_are_too_many_keys() -> None:
    store = MemoryStore()
    state: KeyedState[int] = KeyedState("w", store, same, same, keep=2)
    state.live.update(a=1, b=2, c=3)
    state.touch("abc")
    store.write({"w": state.take_changes()})

    assert state.live == {}
    assert state.load("b") == {"b": 2}


# --- timers ---------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["set", "cancel", "take", "restart"]),
            st.integers(0, 9),
            st.sampled_from(["a", ("b", 1)]),
        )
    )
)
def test_timers_fire_in_order_of_time_and_then_of_asking_and_outlive_restarts(
    actions: list[tuple[str, int, Any]],
) -> None:
    store = MemoryStore()
    timers = TimerQueue("t", store)
    plain: list[tuple[int, Any]] = []
    for action, time, payload in actions:
        if action == "set":
            timers.set(time, payload)
            if (time, payload) not in plain:
                plain.append((time, payload))
        elif action == "cancel":
            timers.cancel(time, payload)
            plain = [one for one in plain if one != (time, payload)]
        elif action == "take":
            first = min((one for one, _ in plain), default=None)
            assert timers.next_time() == first
            due = [one for one in plain if one[0] == first and one[0] <= time]
            assert timers.take_next(time) == due
            plain = [one for one in plain if one not in due]
        else:
            store.write({"t": timers.take_changes()})
            assert len(store) == len(plain)
            timers = TimerQueue("t", store)
        assert len(timers) == len(plain)


def test_timers_of_one_time_keep_their_order_over_a_restart() -> None:
    store = MemoryStore()
    timers = TimerQueue("t", store)
    for payload in ("b", "a", "c"):
        timers.set(5, payload)
    rows = timers.take_changes()
    store.write({"t": dict(sorted(rows.items()))})  # as a database gives them: by key
    timers = TimerQueue("t", store)
    timers.set(5, "0")

    assert timers.take_next(5) == [(5, "b"), (5, "a"), (5, "c"), (5, "0")]


# --- watermarks -----------------------------------------------------------------------------------


def test_watermark_is_that_of_the_partition_behind() -> None:
    partitions = PartitionWatermarks([0, 1], 10, None)
    partitions.heard(0, 100, 0)
    assert partitions.advance(0) == BEGINNING_OF_TIME  # the other has said nothing
    partitions.heard(1, 50, 0)
    assert partitions.advance(0) == 40
    partitions.heard(1, 200, 0)
    assert partitions.advance(0) == 90


def test_idle_partition_holds_nobody_up_and_watermark_never_goes_back() -> None:
    partitions = PartitionWatermarks([0, 1], 0, 1000)
    partitions.heard(0, 100, now_ms=0)
    assert partitions.advance(999) == BEGINNING_OF_TIME
    partitions.heard(0, 110, now_ms=1500)
    assert partitions.advance(2000) == 110  # the other was silent since it was looked for, at 999
    partitions.heard(1, 5, now_ms=2000)
    assert partitions.advance(2000) == 110
    partitions.heard(0, 300, now_ms=2100)
    assert partitions.advance(2100) == 110  # which waits for the other again
    partitions.heard(1, 200, now_ms=2100)
    assert partitions.advance(2100) == 200


def test_silence_of_all_says_nothing_of_time() -> None:
    partitions = PartitionWatermarks([0], 0, 1000)
    partitions.heard(0, 100, 0)
    partitions.advance(0)
    assert partitions.advance(10_000) == 100


def test_silence_of_all_lets_time_come_as_far_as_the_one_that_waited_for_the_others() -> None:
    """Whether they fall silent one after the other or all at once makes no difference."""
    partitions = PartitionWatermarks([0, 1], 0, 1000)
    partitions.heard(0, 100, 0)
    partitions.heard(1, 300, 0)
    assert partitions.advance(500) == 100
    assert partitions.advance(1000) == 300
    assert partitions.silence == "idle"
    partitions.heard(0, 250, 1500)
    assert partitions.advance(1500) == 300
    assert partitions.silence == ""


def test_partition_in_which_nothing_ever_came_is_left_out_after_a_while_of_its_own() -> None:
    partitions = PartitionWatermarks([0, 1], 0, None, empty_ms=500)
    partitions.heard(0, 100, 0)
    assert partitions.advance(0) == BEGINNING_OF_TIME
    assert partitions.advance(600) == 100
    partitions.heard(1, 20, 700)
    partitions.heard(0, 200, 700)
    assert partitions.advance(10_000) == 100  # it has had something, and nothing is said of silence


@pytest.mark.parametrize(("idle", "silence"), [(None, "empty"), (500, "idle")])
def test_what_never_had_anything_is_empty_and_idle_only_where_that_was_said(
    idle: int | None, silence: str
) -> None:
    partitions = PartitionWatermarks([0, 1], 0, idle, empty_ms=500)
    assert (partitions.advance(0), partitions.silence) == (BEGINNING_OF_TIME, "")
    assert (partitions.advance(600), partitions.silence) == (BEGINNING_OF_TIME, silence)


def test_relayed_silence_is_kept_with_the_state() -> None:
    partitions = PartitionWatermarks(["a/0", "a/1"], 0, None)
    partitions.relayed("a/0", 100, "idle")
    partitions.relayed("a/1", 200)
    assert partitions.advance(0) == 200
    restored = PartitionWatermarks(["a/0", "a/1"], 0, None)
    restored.restore(decode_state(encode_state(partitions.plain())))
    restored.relayed("a/1", 300)
    assert restored.advance(0) == 300
    restored.relayed("a/0", 150)
    assert restored.advance(0) == 300


def test_watermarks_that_were_kept_by_number_are_read() -> None:
    partitions = PartitionWatermarks(["a/3"], 0, None)
    partitions.restore([90, {0: 100}])
    assert partitions.advance(0) == 100


def test_ended_partitions_are_at_the_end_of_time() -> None:
    partitions = PartitionWatermarks([0, 1], 7, 1000)
    partitions.heard(0, 100, 0)
    partitions.ended(1)
    assert partitions.advance(5) == 93
    partitions.ended(0)
    assert partitions.advance(10_000) == END_OF_TIME


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 100), st.integers(0, 50)), max_size=30),
    st.integers(0, 20),
    st.none() | st.integers(1, 60),
)
def test_watermark_goes_on_as_if_it_had_not_been_restored(
    heard: list[tuple[int, int, int]], disorder: int, idle: int | None
) -> None:
    """Without idleness, which is of processing time: then it is never ahead of what it would be."""
    one = PartitionWatermarks([0, 1, 2], disorder, idle)
    other = PartitionWatermarks([0, 1, 2], disorder, idle)
    now = last = 0
    for channel, time, passed in heard:
        now += passed
        for partitions in (one, other):
            partitions.heard(channel, time, now)
        found = one.advance(now)
        assert found >= last or last == 0
        restored = PartitionWatermarks([0, 1, 2], disorder, idle)
        assert other.advance(now) <= found
        if idle is None:
            assert other.watermark == found
        restored.restore(decode_state(encode_state(other.plain())))
        other, last = restored, found
