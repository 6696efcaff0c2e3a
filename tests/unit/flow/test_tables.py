"""`as_table()`: of each key what it said last, in event time, through crashes."""

from __future__ import annotations

from typing import Any

import pytest

from mycelia.errors import ConfigError
from mycelia.flow import FlowOutput, KeyedStream, count, source, tumbling
from mycelia.flow.state_codec import encode_state
from mycelia.flow.tables import key_from_wire, row_of
from mycelia.testing import FlowDriver

Reading = tuple[str, int, int]
"""Key, event time, what it says."""


def readings() -> KeyedStream[str, Reading]:
    stream = source("readings", tuple).event_time(lambda one: one[1], unit="ms")
    return stream.key_by(lambda one: one[0])


def driven(output: FlowOutput, *batches: list[Reading], **options: Any) -> FlowDriver:
    driver = FlowDriver({"table": output}, **options)
    for batch in batches:
        driver.append("readings", batch)
    driver.run()
    return driver


def test_newest_record_of_each_key_is_kept() -> None:
    driver = driven(readings().as_table("latest"), [("a", 1000, 1), ("b", 1000, 2), ("a", 2000, 3)])

    assert driver.table("latest") == {"a": ("a", 2000, 3), "b": ("b", 1000, 2)}


def test_an_older_record_that_comes_later_changes_nothing_and_an_equal_one_does() -> None:
    output = readings().as_table("latest")

    driver = driven(output, [("a", 2000, 1)], [("a", 1000, 2)])
    assert driver.table("latest") == {"a": ("a", 2000, 1)}

    driver = driven(output, [("a", 2000, 1)], [("a", 2000, 3)])
    assert driver.table("latest") == {"a": ("a", 2000, 3)}


def test_nothing_leaves_by_a_table() -> None:
    driver = driven(readings().as_table("latest"), [("a", 1000, 1)])

    assert driver.published == []


def test_retractions_take_back_the_windows_that_they_are_of() -> None:
    windows = readings().window(tumbling("1s"), emit="update", mode="retract").aggregate(count())

    driver = driven(windows.as_table("counts"), [("a", 1000, 1)], [("a", 1500, 1)])

    (row,) = driver.table("counts").values()
    assert (row.value, row.is_retraction) == (2, False)


@pytest.mark.parametrize("seed", range(8))
def test_crashes_change_nothing(seed: int) -> None:
    records = [(f"k{n % 7}", n * 10, n) for n in range(500)]
    output = readings().as_table("latest")

    crashing = FlowDriver({"table": output}, seed=seed, crash_rate=0.3)
    crashing.append("readings", records, batch=10)
    crashing.run()

    assert crashing.crashes
    assert crashing.table("latest") == {key: (key, at, n) for key, at, n in records}


def test_rows_are_read_by_key_as_the_wire_brings_it() -> None:
    pairs = readings().key_by(lambda one: (one[0], one[2])).as_table("pairs")
    driver = driven(pairs, [("a", 1000, 1)])

    assert row_of(driver.store, "table-pairs", key_from_wire(["a", 1])) == (1000, ("a", 1000, 1))
    assert row_of(driver.store, "table-pairs", key_from_wire(["a", 2])) is None
    assert encode_state(key_from_wire([["a"], 1])) == encode_state((("a",), 1))


@pytest.mark.parametrize("name", ["", "two words", "a.b", "_private", "1st", 3])
def test_a_name_that_is_no_part_of_a_methods_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match="as_table"):
        readings().as_table(name)


def test_two_tables_of_one_name_are_refused() -> None:
    stream = readings()
    with pytest.raises(ConfigError, match="table-latest"):
        FlowDriver({"a": stream.as_table("latest"), "b": stream.as_table("latest")})
