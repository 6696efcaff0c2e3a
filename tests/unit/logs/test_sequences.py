"""Which batches are repetitions: by producer and sequence, in whatever order they come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.errors import ContractError
from mycelia.logs.sequences import MAX_PRODUCERS, SEQUENCE_WINDOW, SeenSequences


def news(*sequences: int, producer: str = "p") -> list[bool]:
    seen = SeenSequences()
    return [seen.is_new(producer, sequence) for sequence in sequences]


def test_batches_in_order_are_new_once() -> None:
    assert news(0, 1, 2, 2, 1, 0, 3) == [True, True, True, False, False, False, True]


def test_repeated_batch_behind_later_ones_is_known() -> None:
    assert news(0, 1, 2, 3, 1) == [True, True, True, True, False]


def test_batch_that_comes_for_the_first_time_behind_later_ones_is_new() -> None:
    """ "Last seen" alone would drop 1, which nobody has read."""
    assert news(0, 2, 3, 1, 1) == [True, True, True, True, False]


def test_producers_do_not_know_of_each_other() -> None:
    seen = SeenSequences()

    assert [seen.is_new(producer, 0) for producer in ("a", "b", "a", "b")] == [
        *(True, True),
        *(False, False),
    ]


def test_reader_that_begins_in_the_middle_loses_none() -> None:
    assert news(7, 5, 5, 6, 8) == [True, True, False, True, True]


def test_what_is_below_the_window_counts_as_come() -> None:
    assert news(0, SEQUENCE_WINDOW + 5, 1, 4, 5) == [True, True, False, False, True]


def test_a_jump_beyond_the_window_is_taken() -> None:
    far = 10**15

    assert news(0, far, far - 1, far - SEQUENCE_WINDOW, far - SEQUENCE_WINDOW - 1, far) == [
        *(True, True, True, True),
        *(False, False),
    ]


def test_producer_silent_for_longest_is_forgotten_first() -> None:
    seen = SeenSequences()
    for number in range(MAX_PRODUCERS):
        seen.is_new(f"p{number}", 0)
    seen.is_new("p0", 1)
    seen.is_new("one more", 0)

    assert len(seen) == MAX_PRODUCERS
    assert not seen.is_new("p0", 1)
    assert seen.is_new("p1", 0)


arrivals = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 60) | st.integers(0, 3 * SEQUENCE_WINDOW)),
    max_size=80,
)


@given(arrivals)
def test_within_the_window_it_is_a_set(batches: list[tuple[str, int]]) -> None:
    seen, model, highest = SeenSequences(), set(), {}
    for producer, sequence in batches:
        if sequence >= highest.get(producer, sequence) - SEQUENCE_WINDOW:
            expected = (producer, sequence) not in model
            assert seen.is_new(producer, sequence) == expected
        else:
            assert not seen.is_new(producer, sequence)
        model.add((producer, sequence))
        highest[producer] = max(highest.get(producer, sequence), sequence)


@given(arrivals, arrivals)
def test_checkpoint_brings_the_same_memory_back(
    before: list[tuple[str, int]], after: list[tuple[str, int]]
) -> None:
    seen = SeenSequences()
    for batch in before:
        seen.is_new(*batch)

    restored = SeenSequences.from_plain(seen.to_plain())
    copied = seen.copy()

    assert restored.to_plain() == seen.to_plain()
    expected = [seen.is_new(*batch) for batch in after]
    assert [restored.is_new(*batch) for batch in after] == expected
    assert [copied.is_new(*batch) for batch in after] == expected


@pytest.mark.parametrize(
    "plain", [{"p": 3}, {"p": [1, [1]]}, {"p": [9, ["x"]]}, {"p": [9, [-9999]]}, []]
)
def test_checkpoint_of_another_form_is_refused(plain: object) -> None:
    with pytest.raises(ContractError, match="sequences in a checkpoint"):
        SeenSequences.from_plain(plain)  # type: ignore[arg-type]
