"""A flow that is cut where its keys change gives what it gives in one piece."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.errors import ConfigError
from mycelia.flow import Engine, FlowPlan, collect, count, source, stages_of, tumbling
from mycelia.flow.column_batch import END_OF_TIME

Row = tuple[str, str, int]
"""By which the source is split, by which the cut splits, and the event time."""


def plan() -> FlowPlan:
    rows = source("in", tuple).event_time(lambda row: row[2], unit="ms", disorder=0.01)
    firsts = rows.key_by(lambda row: row[0]).window(tumbling(0.01)).aggregate(collect())
    seconds = (
        firsts.flat_map(lambda w: w.value)
        .key_by(lambda row: row[1])
        .named("anew")
        .window(tumbling(0.02))
        .aggregate(count(), collect())
    )
    return FlowPlan({"firsts": firsts.port, "seconds": seconds.port})


def split(key: str) -> int:
    return ord(key) % 2


class Parts:
    """The runner's part: two partitions of the source and two behind the cut, an engine for each."""

    def __init__(self) -> None:
        before, behind = stages_of(plan(), ["anew"])
        self.before = [Engine(before, {"in": [number]}, flow=str(number)) for number in (0, 1)]
        self.behind = [Engine(behind, {"anew": [0, 1]}, flow=str(number)) for number in (0, 1)]
        self.given: dict[str, list[Any]] = {"firsts": [], "seconds": []}

    def feed(self, number: int, rows: list[Row]) -> None:
        self._pass_on(number, self.before[number].feed("in", number, list(rows), [0] * len(rows)))

    def end(self, number: int) -> None:
        self._pass_on(number, self.before[number].end("in", number))

    def _pass_on(self, number: int, given: Any) -> None:
        for one in given:
            if one.output != "anew":
                self.given[one.output] += one.values
                continue
            for to, engine in enumerate(self.behind):
                mine = [at for at, key in enumerate(one.keys) if split(key) == to]
                columns = (
                    [column[at] for at in mine] for column in (one.values, one.times, one.keys)
                )
                self._note(engine.feed("anew", number, *columns))
        for engine in self.behind:
            self._note(engine.relay("anew", number, self.before[number].watermark_of("anew")))

    def _note(self, given: Any) -> None:
        for one in given:
            self.given[one.output] += one.values


def shown(results: list[Any]) -> Counter[str]:
    return Counter(
        f"{one.key} {one.start_ms} {one.timing} {sorted(map(repr, one.value[-1] if one.value and isinstance(one.value, tuple) else one.value))}"
        for one in results
    )


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from("wxyz"), st.integers(0, 9)), max_size=40
    ),
    st.integers(0, 1000),
)
def test_parts_give_what_the_whole_gives(rows: list[Row], seed: int) -> None:
    """Event time goes on as they come, with some disorder, and nothing is late."""
    rows = [(a, b, number * 3 + late) for number, (a, b, late) in enumerate(rows)]
    whole = Engine(plan(), {"in": [0]})
    wanted: dict[str, list[Any]] = {"firsts": [], "seconds": []}
    for one in [*whole.feed("in", 0, list(rows), [0] * len(rows)), *whole.end("in", 0)]:
        wanted[one.output] += one.values

    parts, chance = Parts(), Random(seed)
    waiting = {number: [row for row in rows if split(row[0]) == number] for number in (0, 1)}
    while any(waiting.values()):
        number = chance.choice([number for number, left in waiting.items() if left])
        size = chance.randrange(1, 6)
        parts.feed(number, waiting[number][:size])
        waiting[number] = waiting[number][size:]
    parts.end(0)
    parts.end(1)

    assert shown(parts.given["firsts"]) == shown(wanted["firsts"])
    assert shown(parts.given["seconds"]) == shown(wanted["seconds"])
    assert parts.behind[0].watermark_of("seconds") == END_OF_TIME


def test_records_of_a_relay_do_not_move_time_but_what_is_relayed_does() -> None:
    _, behind = stages_of(plan(), ["anew"])
    engine = Engine(behind, {"anew": ["p", "q"]})

    assert engine.feed("anew", "p", [("a", "w", 5)], [5], ["w"]) == []
    assert engine.feed("anew", "p", [("a", "w", 500)], [500], ["w"]) == []
    assert engine.relay("anew", "p", 30) == []
    (gave,) = engine.relay("anew", "q", 20)
    assert [one.value for one in gave.values] == [(1, [("a", "w", 5)])]
    assert engine.relay("anew", "q", 10) == []
    for writer in ("p", "q"):
        assert engine.feed("anew", writer, [("b", "x", 900)], [900], ["x"]) == []
    assert engine.watermark_of("seconds") == 20


def test_steps_keep_their_names_and_parts_are_drawn() -> None:
    before, behind = stages_of(plan(), ["anew"])
    assert list(before.outputs) == ["anew", "firsts"]
    assert (before.sources, behind.sources) == (["in"], ["anew"])
    assert "window-2" in behind.signatures()
    assert behind.draw().splitlines()[0] == "anew"
    (whole,) = stages_of(plan(), [])
    assert whole.draw() == plan().draw()


def test_where_a_flow_cannot_be_cut_is_said() -> None:
    keyed = source("in", str).key_by(lambda one: one)
    other = source("other", str).key_by(lambda one: one)
    joined = keyed.join_interval(other, after="1m").port
    both = FlowPlan({"both": keyed.join_interval(keyed.key_by(len).key_by(str), after="1m").port})

    with pytest.raises(ConfigError, match=r'"map-1" is none. There are: key_by-1, key_by-2'):
        stages_of(FlowPlan({"out": joined}), ["map-1"])
    with pytest.raises(ConfigError, match='output "key_by-1" has the name of a step'):
        stages_of(FlowPlan({"key_by-1": joined}), ["key_by-1"])
    with pytest.raises(
        ConfigError, match="also has records that come there without being split anew"
    ):
        stages_of(both, ["key_by-3"])
    assert len(stages_of(FlowPlan({"out": joined}), ["key_by-1", "key_by-2"])) == 3
    with pytest.raises(ConfigError, match="comes from its records, and is not relayed"):
        Engine(plan(), {"in": [0]}).relay("in", 0, 5)
