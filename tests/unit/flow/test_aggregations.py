"""Aggregations say the same of records however they are split; quantiles are as near as they promise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.errors import ConfigError
from mycelia.flow import (
    Aggregation,
    aggregation,
    collect,
    count,
    distinct,
    first,
    last,
    max_of,
    mean,
    min_of,
    quantile,
    sum_of,
    top,
)
from mycelia.flow.aggregations import all_of
from mycelia.flow.quantile_sketch import quantile_of, sketch_of
from mycelia.flow.state_codec import decode_state, encode_state


def own() -> Aggregation[int, int]:
    """The greatest common divisor, as a user might write it."""
    return aggregation(
        of=lambda values: math.gcd(*values), merge=math.gcd, result=lambda value: value, name="gcd"
    )


def itself(value: int) -> int:
    return value


CASES: list[tuple[Aggregation[Any, Any], Callable[[list[int]], Any]]] = [
    (count(), len),
    (sum_of(itself), sum),
    (mean(itself), lambda values: sum(values) / len(values)),
    (min_of(itself), min),
    (max_of(itself), max),
    (top(3, by=itself), lambda values: sorted(values, reverse=True)[:3]),
    (distinct(lambda value: value % 7), lambda values: len({value % 7 for value in values})),
    (first(), lambda values: values[0]),
    (last(), lambda values: values[-1]),
    (collect(), list),
    (own(), lambda values: math.gcd(*values)),
    (quantile(itself, 0.5), lambda values: quantile_of(sketch_of(values, 0.01), 0.5, 0.01)),
    (
        all_of((count(), max_of(itself), collect())),
        lambda values: (len(values), max(values), values),
    ),
]


@pytest.mark.parametrize(
    ("one", "plain"), CASES, ids=lambda case: str(case) if isinstance(case, Aggregation) else ""
)
@given(parts=st.lists(st.lists(st.integers(-1000, 1000), min_size=1), min_size=1, max_size=6))
def test_result_of_merged_parts_is_that_of_all_records(
    one: Aggregation[Any, Any], plain: Callable[[list[int]], Any], parts: list[list[int]]
) -> None:
    """Through bytes after each merge, as state goes."""
    held = one.of(list(parts[0]))
    for part in parts[1:]:
        other = one.of(list(part))
        before = encode_state(other)
        held = decode_state(encode_state(one.merge(held, other)))
        assert encode_state(other) == before  # the second is left as it was

    assert one.result(held) == plain([value for part in parts for value in part])
    assert one.result(held) == one.result(held)


@pytest.mark.parametrize(
    ("one", "plain"), CASES, ids=lambda case: str(case) if isinstance(case, Aggregation) else ""
)
def test_copy_is_independent(one: Aggregation[Any, Any], plain: Any) -> None:
    held = one.of([3, 1, 2])
    before = one.result(held)

    one.merge(one.copy(held), one.of([5, 4]))

    assert one.result(held) == before


@pytest.mark.parametrize(
    ("one", "nothing"),
    [
        (count(), 0),
        (sum_of(itself), 0),
        (top(2, by=itself), []),
        (distinct(itself), 0),
        (collect(), []),
        (all_of((count(), collect())), (0, [])),
    ],
    ids=str,
)
def test_some_can_say_what_nothing_is(one: Aggregation[Any, Any], nothing: Any) -> None:
    assert one.empty is not None
    assert one.result(one.empty()) == nothing
    assert one.result(one.merge(one.empty(), one.of([1]))) == one.result(one.of([1]))


def test_what_cannot_say_it_makes_several_that_cannot() -> None:
    assert mean(itself).empty is None
    assert all_of((count(), mean(itself))).empty is None


@dataclass
class Flight:
    delay: int


def test_field_is_an_attribute_or_a_key() -> None:
    assert max_of("delay").of([Flight(3), Flight(5)]) == 5
    assert max_of("delay").of([{"delay": 3}, {"delay": 5}]) == 5


def test_top_keeps_those_that_came_first_of_equals() -> None:
    one = top(2, by=lambda pair: pair[0])
    held = one.merge(one.of([(1, "a"), (2, "b")]), one.of([(2, "c"), (1, "d")]))
    assert one.result(held) == [(2, "b"), (2, "c")]


NUMBERS = st.floats(-1e12, 1e12).filter(lambda value: value == 0 or abs(value) > 1e-9)


@given(
    st.lists(NUMBERS, min_size=1, max_size=60), st.floats(0, 1), st.sampled_from([0.001, 0.01, 0.1])
)
def test_quantile_is_within_its_error_of_the_exact_one(
    values: list[float], q: float, error: float
) -> None:
    exact = sorted(values)[int(q * (len(values) - 1))]
    found = quantile_of(sketch_of(values, error), q, error)

    assert abs(found - exact) <= abs(exact) * error * (1 + 1e-6)


@given(st.lists(NUMBERS, min_size=2), st.data())
def test_sketch_does_not_depend_on_how_its_values_are_split(
    values: list[float], data: st.DataObject
) -> None:
    one = quantile(float, 0.9)
    mixed = data.draw(st.permutations(values))
    at = data.draw(st.integers(1, len(values) - 1))

    merged = one.merge(one.of(mixed[:at]), one.of(mixed[at:]))

    assert one.result(merged) == one.result(one.of(values))


def test_quantile_of_nothing_is_no_number() -> None:
    assert math.isnan(quantile_of(sketch_of([], 0.01), 0.5, 0.01))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_quantile_refuses_what_has_no_place_among_numbers(value: float) -> None:
    with pytest.raises(ValueError, match="has no place"):
        sketch_of([value], 0.01)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: quantile("x", 99), "expected a share from 0 to 1"),
        (lambda: quantile("x", 0.5, error=0), "error=0"),
        (lambda: top(0, by="x"), "top(0)"),
        (lambda: mean(3), "mean(): expected a function of a record, or the name of a field; got 3"),  # type: ignore[call-overload]
        (lambda: all_of(()), "of what?"),
        (lambda: all_of((count,)), "Call it: count()."),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_refused_by_name(make: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert said in str(caught.value)
