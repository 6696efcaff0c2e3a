"""Whether two logs say the same: by identity, in order, and what is told where they do not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.errors import ConfigError
from mycelia.logs.log_diff import DiffRoom, LogComparison, LogDifference, LogDiffReport
from mycelia.logs.record import Record


def rec(key: Any, value: Any, time: int | None = None, headers: Any = None) -> Record[Any]:
    return Record(key, time, headers, value)


def compared(left: list[Record[Any]], right: list[Record[Any]], **options: Any) -> LogDiffReport:
    comparison = LogComparison(**options)
    room = DiffRoom()
    comparison.add(False, map(comparison.packed, left), room)
    comparison.add(True, map(comparison.packed, right), room)
    return comparison.report()


def test_same_records_in_another_order_of_keys_are_the_same() -> None:
    left = [rec("a", 1), rec("b", 2), rec("a", 3)]
    right = [rec("b", 2), rec("a", 1), rec("a", 3)]

    report = compared(left, right)

    assert report.is_same
    assert (report.same, report.left_records, report.right_records) == (2, 3, 3)


def test_what_differs_is_told_with_its_place() -> None:
    left = [rec("a", 1), rec("a", 2), rec("b", 1), rec("c", 1)]
    right = [rec("a", 1), rec("a", 7), rec("d", 1), rec("c", 1), rec("c", 2)]

    report = compared(left, right)

    assert (report.same, report.different, report.only_left, report.only_right) == (0, 2, 1, 1)
    assert report.differences == [
        LogDifference(identity=["a"], at=1, left=2, right=7, has_left=True, has_right=True),
        LogDifference(identity=["b"], at=0, left=1, right=None, has_left=True, has_right=False),
        LogDifference(identity=["c"], at=1, left=None, right=2, has_left=False, has_right=True),
        LogDifference(identity=["d"], at=0, left=None, right=1, has_left=False, has_right=True),
    ]


def test_order_of_a_key_counts_and_that_of_a_map_s_fields_does_not() -> None:
    assert not compared([rec("a", 1), rec("a", 2)], [rec("a", 2), rec("a", 1)]).is_same
    assert compared([rec("a", {"x": 1, "y": 2})], [rec("a", {"y": 2, "x": 1})]).is_same


def test_parts_of_values_and_headers_may_identify_and_may_not_count() -> None:
    left = [rec("a", {"hour": 1, "n": 5, "by": {"pid": 1, "host": "x"}}, headers={"id": 1})]
    right = [rec("z", {"hour": 1, "n": 5, "by": {"pid": 2, "host": "x"}}, headers={"id": 1})]

    assert not compared(left, right, by=["value.hour"]).is_same
    assert compared(left, right, by=["value.hour", "headers.id"], ignore=["by.pid"]).is_same
    assert not compared(left, right, by=["value.hour"], ignore=["by.nothing"]).is_same


def test_last_of_an_identity_may_be_all_that_counts() -> None:
    left, right = [rec("a", 1), rec("a", 2)], [rec("a", 2)]

    assert not compared(left, right).is_same
    assert compared(left, right, last_only=True).is_same


def test_what_is_kept_is_bounded_and_said() -> None:
    comparison, room = LogComparison(), DiffRoom(max_records=3, max_bytes=2**20)
    comparison.add(False, map(comparison.packed, [rec("a", 1), rec("a", 2), rec("b", 1)]), room)

    with pytest.raises(ConfigError, match=r"\(3 records, 1 MiB\): say a later --from"):
        comparison.add(True, [comparison.packed(rec("a", 1))], room)


def test_large_records_count_as_what_they_are() -> None:
    comparison, room = LogComparison(), DiffRoom(max_bytes=2**20)
    large = [comparison.packed(rec(key, "x" * 300_000)) for key in "abcd"]

    with pytest.raises(ConfigError, match="1 MiB"):
        comparison.add(False, large, room)


def test_what_is_replaced_takes_no_room() -> None:
    comparison, room = LogComparison(last_only=True), DiffRoom(max_records=1)

    comparison.add(False, [comparison.packed(rec("a", number)) for number in range(9)], room)

    assert comparison.report().left_records == 9


@pytest.mark.parametrize("by", ["name", "value", "value.", "headers", "keys", ""])
def test_what_identifies_nothing_is_refused(by: str) -> None:
    with pytest.raises(ConfigError, match="compared by"):
        LogComparison([by])
    with pytest.raises(ConfigError, match="compared by"):
        LogComparison([])


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
records = st.lists(st.builds(rec, st.sampled_from(["a", "b", 1, None, b"a"]), values))


@given(records)
def test_anything_is_the_same_as_itself(some: list[Record[Any]]) -> None:
    assert compared(some, some, by=["key", "time", "value.x"]).is_same


@given(records, records)
def test_sides_may_be_exchanged(left: list[Record[Any]], right: list[Record[Any]]) -> None:
    one, other = compared(left, right), compared(right, left)

    assert (one.same, one.different) == (other.same, other.different)
    assert (one.only_left, one.only_right) == (other.only_right, other.only_left)
