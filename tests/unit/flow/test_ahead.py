"""How far a stage is ahead of those behind it: counted by sequences, over any number of readers, producers and owners."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.amqp import Message
from mycelia.flow.ahead import UNKNOWN_BYTES, Ahead, Reader
from mycelia.logs.batch_format import entry_properties

OWN = "flow/g/0"
LOGS = {"a": ("x",), "b": ("x", "y")}


def batch(log: str, partition: int, sequence: int, size: int = 10, producer: str = OWN) -> Message:
    properties = entry_properties(1, producer, sequence)
    return Message(log, str(partition), b"." * size, properties, mandatory=True)


class Taken:
    """What each reader has committed."""

    def __init__(self, is_known: bool = True) -> None:
        self.is_known = is_known
        self.up_to: dict[tuple[Reader, str], int] = {}

    def put(self, stage: str, log: str, partition: int, sequence: int, by: str = OWN) -> None:
        self.up_to[Reader(stage, log, partition), by] = sequence

    def __call__(self, reader: Reader, producer: str) -> int | None:
        return self.up_to.get((reader, producer), -1 if self.is_known else None)


def test_what_has_been_written_counts_until_its_last_reader_has_taken_it() -> None:
    ahead, taken = Ahead(OWN, LOGS, {}, 100), Taken()
    ahead.wrote([batch("b", 0, 0), batch("b", 0, 1), batch("a", 3, 0), batch("else", 0, 0)])
    ahead.look(taken)
    assert ahead.bytes == 30

    taken.put("x", "b", 0, 1)
    ahead.look(taken)
    assert ahead.bytes == 30, "y has taken nothing"
    assert ahead.waits_for == {Reader("y", "b", 0): True, Reader("x", "a", 3): True}

    taken.put("y", "b", 0, 0)
    taken.put("x", "a", 3, 0)
    ahead.look(taken)
    assert (ahead.bytes, ahead.has_room) == (10, True)
    assert ahead.waits_for == {Reader("y", "b", 0): True}


def test_room_ends_with_the_bound_and_comes_back() -> None:
    ahead, taken = Ahead(OWN, LOGS, {}, 100), Taken(is_known=False)
    assert (ahead.has_room, ahead.is_far) == (True, False)
    ahead.wrote([batch("a", 0, 0, 60)])
    assert (ahead.has_room, ahead.is_far) == (True, True)
    ahead.wrote([batch("a", 0, 1, 60)])
    ahead.look(taken)
    assert not ahead.has_room

    taken.put("x", "a", 0, 0)
    ahead.look(taken)
    assert ahead.has_room


def test_owner_that_follows_another_waits_until_it_knows_what_is_still_to_be_taken() -> None:
    ahead, taken = Ahead(OWN, LOGS, {"a/0": 5, "other/0": 9, "~~gives/a": 0}, 100), Taken(False)
    assert ahead.is_far
    ahead.look(taken)
    assert not ahead.has_room
    assert ahead.waits_for == {Reader("x", "a", 0): False}

    taken.put("x", "a", 0, 2)
    ahead.look(taken)
    assert ahead.bytes == 2 * UNKNOWN_BYTES
    assert not ahead.has_room

    taken.put("x", "a", 0, 4)
    ahead.look(taken)
    assert (ahead.bytes, ahead.has_room, ahead.is_far) == (0, True, False)


def test_what_the_owner_before_left_in_the_outbox_counts_once() -> None:
    ahead, taken = Ahead(OWN, LOGS, {"a/0": 5}, 100), Taken()
    ahead.wrote([batch("a", 0, 3), batch("a", 0, 4)])
    taken.put("x", "a", 0, 2)
    ahead.look(taken)

    assert ahead.bytes == 20


def test_batches_of_a_former_generation_count_as_its_readers_have_taken_them() -> None:
    ahead, taken = Ahead(OWN, LOGS, {}, 100), Taken()
    ahead.wrote([batch("a", 0, 7, producer="flow/former/0"), batch("a", 0, 0)])
    taken.put("x", "a", 0, 7, by="flow/former/0")
    ahead.look(taken)

    assert ahead.bytes == 10


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from("ab"), st.integers(0, 2), st.integers(1, 40)),
        st.tuples(
            st.just("take"),
            st.sampled_from(["xa", "xb", "yb"]),
            st.integers(0, 2),
            st.integers(0, 9),
        ),
        st.tuples(st.just("follow"), st.just(""), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@pytest.mark.timeout(120)
@given(OPERATIONS)
def test_it_is_never_less_than_what_is_still_to_be_taken(operations: list[Any]) -> None:
    """And exactly that, as long as one owner writes."""
    taken = Taken()
    sequences: dict[str, int] = {}
    written: dict[tuple[str, int], list[int]] = {}
    ahead, has_followed = Ahead(OWN, LOGS, {}, 100), False
    for what, where, partition, number in operations:
        if what == "write":
            sequence = sequences.get(f"{where}/{partition}", 0)
            sequences[f"{where}/{partition}"] = sequence + 1
            written.setdefault((where, partition), []).append(number)
            ahead.wrote([batch(where, partition, sequence, number)])
        elif what == "take":
            stage, log = where
            last = sequences.get(f"{log}/{partition}", 0) - 1
            before = taken.up_to.get((Reader(stage, log, partition), OWN), -1)
            taken.put(stage, log, partition, max(min(number, last), before))
        else:
            ahead, has_followed = Ahead(OWN, LOGS, sequences, 100), True
        ahead.look(taken)

        still = 0
        for (log, at), sizes in written.items():
            up_to = min(taken.up_to.get((Reader(stage, log, at), OWN), -1) for stage in LOGS[log])
            still += sum(sizes[up_to + 1 :])
        assert ahead.bytes >= still
        assert has_followed or ahead.bytes == still
        assert (still == 0) == (ahead.bytes == 0)
