"""Retention has passed what a flow has to take next, and the broker has deleted it: the partition stands still with the two ways out, which work."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.flows.carriers import LEFT, Left, flights
from tests.flows.counting import Departed, config, statistics

from mycelia import Client, Log
from mycelia.flow import FlowOutput, KeyContext, StageStatistics, Stream, flow
from mycelia.flow.reset import reset_flow
from mycelia.flow.stage import Stage
from mycelia.flow.stage_savepoints import save_flow
from mycelia.flow.state_home import state_home
from mycelia.logs.layout import stream_name
from mycelia.logs.stream_ends import first_offset
from mycelia.testing import eventually, run_services

SHRINKING: Log[Departed] = Log(
    "shrinking",
    of=Departed,
    key="origin",
    partitions=1,
    retain=None,
    retain_bytes=20_000,
    segment_bytes=10_000,
    compression=None,
)
GROUP = "passing.by"
STAGES = "carriers.counted"
BETWEEN = f"{STAGES}.key_by-1"


class Passing:
    name = "passing"

    @flow(SHRINKING, commit_every="20ms")
    def by(self, flights: Stream[Departed]) -> FlowOutput:
        return flights.emit("passed")


class Carriers:
    name = "carriers"
    stands_still: ClassVar = False

    @flow(LEFT, commit_every="20ms", retain_between="3s", retain_between_bytes=None)
    def counted(self, left: Stream[Left]) -> FlowOutput:
        by_carrier = left.key_by(lambda one: one.carrier)
        return by_carrier.process(_carried, state=int).emit("carried")


def _carried(context: KeyContext[str, int], one: Left) -> list[int]:
    if Carriers.stands_still:
        raise RuntimeError("not now")
    context.state += 1
    return [context.state]


async def shrinks(client: Client, stream: str, append: Callable[[], Any], beyond: int) -> int:
    """Append until the broker has deleted the stream's beginning, and where it begins then."""
    first = 0

    async def is_gone() -> bool:
        nonlocal first
        await append()
        first = await first_offset(client.link, stream) or 0
        return first > beyond

    await eventually(is_gone, 90, what=f"the first segments of {stream} are deleted", interval=0.1)
    return first


async def test_log_that_has_been_cut_before_a_flows_place_stops_it_until_it_is_reset(
    rabbit_uri: str, tmp_path: Path
) -> None:
    async def append() -> None:
        for number in range(10):
            await client.append(SHRINKING, Departed("J" * 400, number))

    state = config(tmp_path)
    async with Client(rabbit_uri) as client:
        await append()
        async with run_services(Passing, broker=rabbit_uri, config=state) as bed:
            await eventually(lambda: statistics(bed, Passing).records == 10, 30)
        first = await shrinks(client, stream_name(SHRINKING.name, 0), append, 10)
        async with run_services(Passing, broker=rabbit_uri, config=state) as bed:
            await eventually(lambda: 0 in statistics(bed, Passing).standing_still, 30)
            told = statistics(bed, Passing)

        await reset_flow(client.link, state_home(str(tmp_path)), GROUP, "first")
        async with run_services(Passing, broker=rabbit_uri, config=state) as bed:
            await eventually(lambda: statistics(bed, Passing).records > 0, 30)
            await eventually(lambda: statistics(bed, Passing).lag == {0: 0}, 30)
            after = statistics(bed, Passing)

    (why,) = told.standing_still.values()
    assert re.search(rf"go on from offset 1\d, but the log begins at {first} now", why)
    assert f"mycelia flow reset {GROUP} --from first" in why
    assert f"mycelia flow reset {GROUP} --savepoint" in why
    assert told.records == 0, "it has not jumped to what is left"
    assert not after.standing_still


@pytest.mark.long_variants("begun")
@pytest.mark.parametrize("has_begun", [True, False], ids=["begun", "new"])
async def test_log_between_stages_that_has_been_cut_before_the_second_stops_that_and_both_ways_out_work(
    rabbit_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_begun: bool
) -> None:
    """Also where the second stage has never taken anything: it does not begin with what is left."""
    small = {**_defaults(), "segment_bytes": 10_000}
    monkeypatch.setattr("mycelia.logs.log._DEFAULTS", small)
    state, home = config(tmp_path / "state"), state_home(str(tmp_path / "state"))
    sent = 0

    async def append() -> None:
        nonlocal sent
        await client.append_many(LEFT, flights(500, seed=sent))
        sent += 500
        await eventually(lambda: statistics(bed, Carriers).records >= sent - before, 30)

    def stage() -> StageStatistics:
        return statistics(bed, Carriers).stages[BETWEEN]

    async with Client(rabbit_uri) as client:
        before = 0
        if has_begun:
            async with run_services(Carriers, broker=rabbit_uri, config=state) as bed:
                await append()
                await eventually(lambda: stage().records > 400, 30)
            await save_flow(client.link, home, STAGES, tmp_path / "saved")
            before = sent
        with monkeypatch.context() as patched:
            if has_begun:
                patched.setattr(Carriers, "stands_still", True)
            else:
                start = Stage.start
                patched.setattr(
                    Stage, "start", lambda self: start(self) if self.name != BETWEEN else None
                )
            async with run_services(Carriers, broker=rabbit_uri, config=state) as bed:
                for partition in range(LEFT.partitions):
                    stream = stream_name(BETWEEN, partition)
                    await shrinks(client, stream, append, 20 if has_begun else 0)
        async with run_services(Carriers, broker=rabbit_uri, config=state) as bed:
            await eventually(lambda: len(stage().standing_still) == LEFT.partitions, 60)
            told = stage()

        to = tmp_path / "saved" if has_begun else "first"
        await reset_flow(client.link, home, STAGES, to)
        async with run_services(Carriers, broker=rabbit_uri, config=state) as bed:
            await eventually(lambda: stage().records > 400, 60)
            after = stage()

    for why in told.standing_still.values():
        assert "but the log begins at" in why
        assert "mycelia flow reset --savepoint" in why
        assert "mycelia flow reset --from" in why
    assert told.records == 0, "nothing was passed over"
    assert not after.standing_still


def _defaults() -> dict[str, Any]:
    from mycelia.logs import log

    return dict(log._DEFAULTS)
