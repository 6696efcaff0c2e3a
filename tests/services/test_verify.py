"""The comparison with the batch query."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from services.flights.dataset import Tables
from services.flights.delay_book import DelayBook
from services.flights.verify import Batch, Comparison, compare
from tests.services.pipeline_by_hand import enriched_events
from tests.services.tables import FORTNIGHT

TABLES = FORTNIGHT._replace(flights=FORTNIGHT.flights[6000:6300])


@pytest.fixture(scope="module")
def counted() -> dict[str, Any]:
    book = DelayBook("run-1")
    for event in enriched_events(TABLES):
        book.count(event, 101.0)
    return {
        "changes": book.changes(),
        "hourly": book.hourly(),
        "legs": book.legs(),
        "worst": book.worst(20),
    }


def compared(figures: dict[str, Any], tables: Tables = TABLES) -> Comparison:
    batch = Batch(tables)
    try:
        return compare(batch, **figures)
    finally:
        batch.close()


def test_true_figures_do_not_differ(counted: dict[str, Any]) -> None:
    result = compared(counted)

    assert result.differences == []
    assert result.figures > 3_000


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all numbers in `value`."""
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, (*path, key))]
    if isinstance(value, list):
        return [leaf for place, inner in enumerate(value) for leaf in leaves(inner, (*path, place))]
    return [path] if isinstance(value, int | float) else []


NOT_STATISTICS = {"version", "duplicates", "first_emitted_at", "last_counted_at", "latency"}
NOT_STATISTICS |= {"flights", "aircraft", "recent"}


def test_each_figure_that_is_wrong_by_one_is_found(counted: dict[str, Any]) -> None:
    """Every number the pipeline reports is compared: change any one of them, and the comparison says so."""
    paths = [
        path
        for path in leaves(counted)
        if not NOT_STATISTICS & set(path) and path[1:2] != ("worst",)
    ]
    batch = Batch(TABLES)
    unnoticed = []
    for path in paths[:: max(1, len(paths) // 150)]:
        wrong = copy.deepcopy(counted)
        inner = wrong
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] += 1
        if not compare(batch, **wrong).differences:
            unnoticed.append(path)
    batch.close()

    assert unnoticed == []
    assert len(paths) > 3_000


def test_a_missing_row_is_found(counted: dict[str, Any]) -> None:
    result = compared(counted | {"hourly": counted["hourly"][:-1]})

    assert any("hourly: rows" in difference for difference in result.differences)


def test_a_difference_names_the_figure_and_both_values(counted: dict[str, Any]) -> None:
    wrong = copy.deepcopy(counted)
    wrong["changes"]["total"]["cancelled"] += 7

    (difference,) = compared(wrong).differences

    true = counted["changes"]["total"]["cancelled"]
    assert difference == f"total: cancelled: {true + 7}, the batch query says {true}"


def test_labels_are_compared_but_not_counted_as_figures() -> None:
    result = Comparison()
    result.value("a", "JFK", "LGA")
    result.value("b", 1, 1)

    assert (result.figures, len(result.differences)) == (1, 1)
