"""What the answers of a flow's instances say together."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mycelia.flow.flow_graph import FlowGraph, GraphEdge, GraphNode
from mycelia.flow.standing import (
    FlowFigures,
    FlowStanding,
    PartitionStanding,
    StageSource,
    StageStanding,
    behind_text,
    flow_figures,
    flow_notes,
    rate_text,
)

GRAPH = FlowGraph(
    nodes=[
        GraphNode(id="departed", name="departed", kind="source"),
        GraphNode(id="hourly", name="hourly", kind="window", has_state=True),
        GraphNode(id="~counts", name="counts", kind="output"),
    ],
    edges=[
        GraphEdge(source="departed", target="hourly"),
        GraphEdge(source="hourly", target="~counts"),
    ],
)
STAGE = StageStanding(
    name="departed",
    partitions=3,
    leased_as="departed",
    sources=[StageSource(name="departed", log="departed", partitions=3)],
)


def partition(number: int, **told: Any) -> PartitionStanding:
    return PartitionStanding(stage="departed", partition=number, **told)


def answer(id: str, at: float, *partitions: PartitionStanding, **told: Any) -> FlowStanding:
    return FlowStanding(
        id=id,
        flow="delays.hourly",
        service="delays",
        method="hourly",
        owner=f"host:{id}",
        at=at,
        stages=[STAGE],
        partitions=list(partitions),
        graph=GRAPH,
        **told,
    )


def figures(
    *answers: FlowStanding, before: list[FlowStanding] | None = None, ends: Any = None
) -> FlowFigures:
    (one,) = flow_figures(answers, {one.id: one for one in before or []}, ends)
    return one


def test_partitions_of_all_instances_are_one_flow_and_those_of_nobody_are_there() -> None:
    one = figures(answer("1", 0, partition(0)), answer("2", 0, partition(2)))

    assert one.instances == ["host:1", "host:2"]
    assert [it.owner for it in one.partitions] == ["host:1", None, "host:2"]
    assert [it.partition for it in one.without_owner] == [1]


def test_rates_are_of_the_time_between_two_answers_of_an_instance() -> None:
    before = [answer("1", 10, partition(0, records=100))]

    one = figures(
        answer("1", 12, partition(0, records=300), partition(1, records=50)), before=before
    )

    assert [it.records_per_s for it in one.partitions] == [100.0, 25.0, None]
    assert one.records_per_s == 125.0


def test_a_partition_that_was_begun_anew_has_no_rate_below_nothing() -> None:
    before = [answer("1", 10, partition(0, records=100))]

    one = figures(answer("1", 12, partition(0, records=20)), before=before)

    assert one.partitions[0].records_per_s == 0


def test_rates_of_steps_are_sums_of_partitions_and_an_engine_that_began_anew_counts_from_nothing() -> (
    None
):
    before = [answer("1", 10, partition(0, gave={"hourly": [100]}), partition(1, gave={}))]
    now = (
        partition(0, gave={"hourly": [10, 2]}),  # less than before
        partition(1, gave={"hourly": [40]}),
    )

    one = figures(answer("1", 12, *now), before=before)

    assert one.gave_per_s == {"hourly": [25.0, 1.0]}


def test_without_an_answer_before_there_are_no_rates() -> None:
    assert figures(answer("1", 10, partition(0, records=100))).records_per_s is None


def test_lag_is_what_lies_before_it() -> None:
    ends = {("departed", 0): 120, ("departed", 1): 7}

    one = figures(
        answer(
            "1", 0, partition(0, offsets={"departed": 100}), partition(1), partition(2, offsets={})
        ),
        ends=ends,
    )

    assert [it.lag for it in one.partitions] == [20, 7, None]
    assert one.lag == 27


def test_of_a_partition_that_moves_the_newest_word_counts() -> None:
    old = partition(0, committed_ms=1000, offsets={"departed": 5})
    new = partition(0, committed_ms=2000, offsets={"departed": 9})

    for answers in (
        (answer("1", 0, old), answer("2", 0, new)),
        (answer("1", 0, new), answer("2", 0, old)),
    ):
        assert figures(*answers).partitions[0].offsets == {"departed": 9}


def test_watermarks_are_the_lowest_and_counts_the_sums() -> None:
    one = figures(
        answer(
            "1",
            0,
            partition(0, watermarks_ms={"hourly": 5_000}, counts={"hourly": {"late": 2}}),
            dead=1,
        ),
        answer(
            "2",
            0,
            partition(1, watermarks_ms={"hourly": 3_000}, counts={"hourly": {"late": 1}}),
            faults=2,
        ),
    )

    assert one.watermarks_ms == {"hourly": 3_000}
    assert (one.late, one.dead, one.faults) == (3, 1, 2)


def test_flows_are_told_apart() -> None:
    other = msgspec.structs.replace(answer("2", 0), flow="other")

    assert [one.flow for one in flow_figures([answer("1", 0), other], {})] == [
        "delays.hourly",
        "other",
    ]


def test_notes_say_lag_watermark_late_and_what_stands_still() -> None:
    before = [answer("1", 10, partition(0), partition(1))]
    one = figures(
        answer(
            "1",
            12,
            partition(
                0,
                records=2000,
                offsets={"departed": 3},
                watermarks_ms={"hourly": 60_000},
                gave={"departed": [2000], "hourly": [50, 4]},
                counts={"hourly": {"late": 4, "repeated": 0}},
            ),
            partition(1, standing_still='operator "hourly", key 1: boom'),
        ),
        before=before,
        ends={("departed", 0): 10},
    )

    notes, flows = flow_notes(one, now_ms=90_000)

    assert notes["departed"].lines == ["lag 7", "standing still: 1 of 3"]
    assert notes["departed"].is_bad
    assert notes["hourly"].lines == [
        "watermark 30 s behind",
        "standing still: 1 of 3",
        "late 4",
    ]
    assert "boom" in notes["hourly"].tooltip
    assert flows == {("departed", 0): "1k/s", ("hourly", 0): "25/s", ("hourly", 1): "2/s"}


def test_answers_travel_as_json() -> None:
    one = answer("1", 3.5, partition(0, standing_still="why", state_bytes=4096))

    assert msgspec.json.decode(msgspec.json.encode(one), type=FlowStanding) == one


@pytest.mark.parametrize(
    ("per_s", "text"),
    [(0, "0/s"), (3.25, "3.25/s"), (999, "999/s"), (12_345, "12.3k/s"), (2_500_000, "2.5M/s")],
)
def test_rates_are_short(per_s: float, text: str) -> None:
    assert rate_text(per_s) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3, "3 s behind"),
        (-2, "2 s ahead"),
        (-3 * 3600, "3 h ahead"),
        (600, "10 min behind"),
        (3 * 3600, "3 h behind"),
        (3 * 86400, "3 d behind"),
    ],
)
def test_times_that_lie_back_are_short(seconds: float, text: str) -> None:
    assert behind_text(seconds) == text
