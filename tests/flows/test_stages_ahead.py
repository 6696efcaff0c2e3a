"""A stage is ahead of the next one by so much and no more: whoever has that, while it stands still, while nobody has it, and through sinks."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.cli.commands import MyceliaCommand
from tests.flows.carriers import BY_CARRIER, LEFT, Delayed, Left, closing, enriched, flights
from tests.flows.counting import Tally
from tests.flows.test_stage_savepoints import (
    BETWEEN,
    Gated,
    append,
    given,
    has_given,
    valid,
    wanted,
)

from mycelia import Client
from mycelia.flow import FlowHandler, FlowOutput, FlowStatistics, SinkRecord, Stream, flow
from mycelia.flow.stage import Stage
from mycelia.testing import ServiceBed, eventually, run_services

MAX_BYTES = 20_000


@pytest.fixture(autouse=True)
def gate() -> asyncio.Event:
    Gated.gate = asyncio.Event()
    return Gated.gate


def config(state: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    return {"mycelia": {"flows": {"state": str(state), "ahead_bytes": max_bytes}}}


def handler(bed: ServiceBed, service: type = Gated) -> FlowHandler:
    (found,) = [e for e in bed.container(service).entrypoints if isinstance(e, FlowHandler)]
    return found


def statistics(*beds: ServiceBed) -> list[FlowStatistics]:
    return [handler(bed).statistics() for bed in beds]


async def is_held_up(*beds: ServiceBed) -> None:
    """All partitions of the first stage wait for the next."""
    await eventually(
        lambda: sum(len(one.stages["gated.counted"].waiting) for one in statistics(*beds)) == 4, 30
    )


def taken(*beds: ServiceBed) -> int:
    return sum(one.records for one in statistics(*beds))


async def test_stage_waits_for_the_next_one_and_goes_on_with_it(
    broker: str,
    tmp_path: Path,
    gate: asyncio.Event,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("mycelia.flow.next_stages.TOLD_AFTER", 0.5)
    caplog.set_level(logging.INFO, "mycelia.flow")
    left = flights(8_000)
    async with Client(broker) as client:
        tally = Tally(client, BY_CARRIER)
        async with run_services(Gated, broker=broker, config=config(tmp_path)) as bed:
            await append(client, left)
            await is_held_up(bed)
            before = taken(bed)
            ahead = statistics(bed)[0].ahead_bytes
            await eventually(lambda: caplog.text.count("flow_waits_for_next_stage") == 4, 30)
            after = taken(bed)
            gate.set()
            await eventually(lambda: caplog.text.count("flow_goes_on") == 4, 30)
            await append(client, closing())
            await has_given(tally, left)
        await tally.aclose()

    assert before == after < len(left)
    assert 4 * MAX_BYTES <= ahead < 10 * 4 * MAX_BYTES, "a commit may be above it"
    assert given(tally) == wanted(left)


async def test_stage_hears_of_what_another_instance_has_taken(
    rabbit_uri: str, tmp_path: Path, gate: asyncio.Event
) -> None:
    """Of two instances each has some partitions of both stages, so each needs the other's word."""
    left = flights(12_000)
    other = type("Gated", (Gated,), {})
    async with Client(rabbit_uri) as client:
        tally = Tally(client, BY_CARRIER)
        async with (
            run_services(Gated, broker=rabbit_uri, config=config(tmp_path)) as one,
            run_services(other, broker=rabbit_uri, config=config(tmp_path)) as two,
        ):
            handlers = handler(one), handler(two, other)

            def shared() -> bool:
                stages = [stage for it in handlers for stage in it.statistics().stages.values()]
                return [len(stage.partitions) for stage in stages] == [2, 2, 2, 2]

            await eventually(shared, 40)
            await append(client, left)
            await eventually(lambda: sum(len(it.statistics().waiting) for it in handlers) == 4, 30)
            gate.set()
            await append(client, closing())
            await has_given(tally, left)
        await tally.aclose()

    assert given(tally) == wanted(left)


def nobody_told(one: FlowStatistics) -> str | None:
    return next((why for why in one.waiting.values() if "no instance" in why), None)


@pytest.mark.long_variants("memory")
async def test_stage_whose_next_one_nobody_has_waits_also_after_a_restart_and_says_so(
    broker: str,
    tmp_path: Path,
    gate: asyncio.Event,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """However often its owner begins anew, no more is written than the bound; and with the next stage it goes on."""
    monkeypatch.setattr("mycelia.flow.next_stages.TOLD_AFTER", 0.5)
    caplog.set_level(logging.INFO, "mycelia.flow")
    gate.set()
    left = flights(8_000)
    start = Stage.start
    monkeypatch.setattr(Stage, "start", lambda self: start(self) if self.name != BETWEEN else None)
    async with Client(broker) as client:
        tally = Tally(client, BY_CARRIER)
        counts = []
        for number in range(3):
            async with run_services(Gated, broker=broker, config=config(tmp_path)) as bed:
                if not number:
                    await append(client, left)
                await is_held_up(bed)
                counts.append(taken(bed))
                told = await eventually(lambda: nobody_told(statistics(bed)[0]), 30)
                await eventually(lambda: "flow_waits_for_next_stage" in caplog.text, 30)
        monkeypatch.setattr(Stage, "start", start)
        async with run_services(Gated, broker=broker, config=config(tmp_path)) as bed:
            await append(client, closing())
            await has_given(tally, left)
        await tally.aclose()

    assert 0 < counts[0] < len(left)
    assert counts[1:] == [0, 0]
    assert f'stage "{BETWEEN}", partition ' in told
    assert given(tally) == wanted(left)


async def test_what_waits_is_told_by_the_command_and_by_metrics(
    rabbit_uri: str, tmp_path: Path, gate: asyncio.Event, mycelia: MyceliaCommand
) -> None:
    def told(*argv: str) -> str:
        done = mycelia(
            "flow", *argv, "gated.counted", "--interval", "0.3", cwd=tmp_path, AMQP_URI=rabbit_uri
        )
        assert (done.returncode, done.stderr) == (0, "")
        return str(done.stdout)

    async with Client(rabbit_uri) as client:
        async with run_services(Gated, broker=rabbit_uri, config=config(tmp_path)) as bed:
            await append(client, flights(8_000))
            await is_held_up(bed)
            lag = json.loads(await asyncio.to_thread(told, "lag", "--json"))
            text = await asyncio.to_thread(told, "lag")
            shown = await asyncio.to_thread(told, "show")
            samples = list(statistics(bed)[0].samples("gated", "counted"))
            gate.set()

    waits = [one for one in lag if one["waits_for"] is not None]
    assert [(one["stage"], one["partition"]) for one in waits] == [
        ("gated.counted", number) for number in range(4)
    ]
    assert all(one["ahead_bytes"] >= MAX_BYTES for one in waits)
    line = "gated.counted, partition 2 waits, "
    assert line in text
    assert line in shown
    figures = {
        (one.name, one.labels["stage"]): one.value for one in samples if "stage" in one.labels
    }
    assert figures["mycelia_flow_waiting_for_next", "gated.counted"] == 4
    assert figures["mycelia_flow_waiting_for_next", BETWEEN] == 0
    assert figures["mycelia_flow_ahead_bytes", "gated.counted"] >= 4 * MAX_BYTES
    assert figures["mycelia_flow_delivered", "gated.counted"] == 0
    assert figures["mycelia_flow_sink_waiting_bytes", BETWEEN] == 0


class Slow:
    """Its sink takes nothing until it may."""

    name = "slow"
    gate: ClassVar[asyncio.Event]
    took: ClassVar[list[Delayed]]

    @flow(LEFT, commit_every="50ms")
    def sunk(self, left: Stream[Left]) -> FlowOutput:
        return (
            left.filter(lambda one: one.delay >= 0)
            .map(enriched)
            .key_by(lambda one: one.carrier)
            .dedup(lambda one: (one.at_ms, one.off, one.delay, id(one)), within="1ms")
            .to(SlowSink(), name="slow")
        )


class SlowSink:
    async def write(self, records: list[SinkRecord[Delayed]]) -> None:
        await Slow.gate.wait()
        Slow.took += [one.value for one in records]


async def test_slow_sink_slows_its_source_down_through_several_stages(
    broker: str, tmp_path: Path, gate: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mycelia.flow.delivery.MAX_WAITING_BYTES", MAX_BYTES)
    Slow.gate, Slow.took = gate, []
    left = flights(12_000)
    async with Client(broker) as client:
        async with run_services(Slow, broker=broker, config=config(tmp_path)) as bed:
            await append(client, left)
            it = handler(bed, Slow)
            await eventually(lambda: len(it.statistics().waiting) == 4, 30)
            held = it.statistics()
            await eventually(lambda: sum(it.statistics().lag.values()) > 0, 20)
            gate.set()
            await eventually(lambda: len(Slow.took) == valid(left), 60)

    assert held.records < len(left)
    assert held.waiting_bytes >= MAX_BYTES
    sunk = {one.name: one.value for one in held.samples("slow", "sunk") if "stage" in one.labels}
    assert sunk["mycelia_flow_sink_waiting_bytes"] >= MAX_BYTES, "of the last stage"
