"""Which partition a key belongs to: fixed for ever, and even."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.errors import ContractError
from mycelia.logs.partitioning import partition_of, partitions_of

KINDS = {
    "whole numbers": list(range(1000, 2000)),
    "every eighth number": [8 * number for number in range(1000)],
    "names with a number": [f"user-{number:05}" for number in range(1000)],
    "tail numbers": [
        f"N{100 + number}{letter}A" for number in range(100) for letter in "ABCDEFGHIJ"
    ],
}


@pytest.mark.parametrize("keys", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("partitions", [2, 4, 8, 12, 16])
def test_keys_that_differ_little_fall_evenly(keys: list[int | str], partitions: int) -> None:
    share = Counter(partition_of(key, partitions) for key in keys)

    assert len(share) == partitions
    assert max(share.values()) <= 1.25 * len(keys) / partitions


def test_whole_number_is_its_decimal_text() -> None:
    assert partition_of(-17, 64) == partition_of("-17", 64) == partition_of(b"-17", 64)


def test_records_without_a_key_go_where_they_are_sent() -> None:
    turns = iter([5, 6])

    assert partitions_of([None, "JFK", None], 8, lambda: next(turns)) == [
        *(5, partition_of("JFK", 8), 6)
    ]


@given(st.lists(st.text() | st.integers() | st.binary(), max_size=20), st.integers(1, 1024))
def test_many_at_once_are_as_one_by_one(keys: list[str | int | bytes], partitions: int) -> None:
    try:
        expected = [partition_of(key, partitions) for key in keys]
    except ContractError:  # half a surrogate pair
        with pytest.raises(ContractError):
            partitions_of(keys, partitions, lambda: 0)
    else:
        assert partitions_of(keys, partitions, lambda: 0) == expected
        assert all(0 <= one < partitions for one in expected)


@pytest.mark.parametrize("key", [1.5, True, ("a", 1), "\ud800"])
def test_what_is_no_key_is_refused_by_name(key: object) -> None:
    with pytest.raises(ContractError, match="key "):
        partition_of(key, 8)  # type: ignore[arg-type]
