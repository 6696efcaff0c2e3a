"""Batches of flows are calls: middleware, traces and metrics see each commit; what stands still is seen by probes."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.flows.carriers import BY_CARRIER, LEFT, Carriers, closing
from tests.flows.carriers import flights as carrier_flights
from tests.flows.counting import (
    COUNTED,
    DEPARTED,
    PARTITIONS,
    Counting,
    Departed,
    Failing,
    Tally,
    append,
    config,
    departures,
    expected,
    sentinels,
    statistics,
)
from tests.metrics.conftest import Scrape
from tests.ports import free_port
from tests.tracing.conftest import receiver

from mycelia import Call, CallKind, Client, Next, Outcome
from mycelia.call import Direction, Middleware, Target, get_current_call
from mycelia.flow import FlowHandler
from mycelia.flow.flow_call import FlowCall
from mycelia.logs import AppendCall
from mycelia.providers.metrics.told import samples_of
from mycelia.testing import ReceivedSpan, SpanReceiver, eventually, run_services

__all__ = ["receiver"]


class Around:
    """A source of middleware that keeps what it sees of the flow's calls."""

    def __init__(self, layer: Any = None) -> None:
        self.calls: list[FlowCall] = []
        self.outcomes: list[Outcome] = []
        self.current: list[Call | None] = []
        self._layer = layer

    def middleware(self, direction: Direction, target: Target) -> Middleware | None:
        is_flow = direction is Direction.INBOUND and target.kind is CallKind.LOG
        return self.around if is_flow else None

    async def around(self, call: Call, next: Next) -> Outcome:
        assert isinstance(call, FlowCall)
        self.calls.append(call)
        self.current.append(get_current_call())
        outcome = await (next(call) if self._layer is None else self._layer(call, next))
        self.outcomes.append(outcome)
        return outcome


async def test_each_commit_is_a_call_with_what_it_took(broker: str, tmp_path: Path) -> None:
    seen = Around()
    async with (
        Client(broker) as client,
        run_services(Counting, broker=broker, config=config(tmp_path), middleware=[seen]) as bed,
    ):
        await append(client, departures(2_000) + sentinels())
        await eventually(lambda: statistics(bed).records == 2_000 + PARTITIONS, 30)
        commits = statistics(bed).commits

    assert {call.target.name for call in seen.calls} == {"counting.by_origin"}
    assert sum(call.item_count for call in seen.calls) == 2_000 + PARTITIONS
    assert len(seen.calls) >= commits
    assert seen.current == seen.calls
    assert all(outcome.error is None for outcome in seen.outcomes)
    for partition in range(PARTITIONS):  # each entry is in one commit
        spans = [
            call.offsets[DEPARTED.name]
            for call in seen.calls
            if call.partition == partition and call.offsets
        ]
        assert all(later[0] == earlier[1] + 1 for earlier, later in pairwise(spans))


async def test_without_anybody_who_looks_no_call_is_made(
    broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("a call was made")

    monkeypatch.setattr("mycelia.flow.flow_call.FlowCall", refuse)
    monkeypatch.setattr("mycelia.flow.flow_call.TakenSince", refuse)
    async with (
        Client(broker) as client,
        run_services(Counting, broker=broker, config=config(tmp_path)) as bed,
    ):
        await append(client, departures(500))
        await eventually(lambda: statistics(bed).records == 500, 30)


async def test_a_middleware_that_goes_on_twice_commits_once(broker: str, tmp_path: Path) -> None:
    async def twice(call: Call, next: Next) -> Outcome:
        await next(call)
        return await next(call)

    seen = Around(twice)
    async with (
        Client(broker) as client,
        run_services(Counting, broker=broker, config=config(tmp_path), middleware=[seen]) as bed,
    ):
        await append(client, departures(500))
        await eventually(lambda: statistics(bed).records == 500, 30)
        assert statistics(bed).commits == len(seen.calls)


@pytest.mark.parametrize("answers", [False, True])
async def test_a_middleware_that_does_not_go_on_stops_the_partition_and_nothing_is_committed(
    broker: str, tmp_path: Path, answers: bool
) -> None:
    async def refuse(call: Call, next: Next) -> Outcome:
        if answers:
            return Outcome()
        raise PermissionError("not now")

    async with (
        Client(broker) as client,
        run_services(
            Counting, broker=broker, config=config(tmp_path), middleware=[Around(refuse)]
        ) as bed,
    ):
        await append(client, departures(100))
        await eventually(lambda: statistics(bed).standing_still, 30)
        told = statistics(bed)

    (why, *_) = told.standing_still.values()
    assert ("without going on" if answers else "PermissionError: not now") in why
    assert told.records == told.commits == 0


async def test_a_function_that_raises_is_a_call_that_failed(broker: str, tmp_path: Path) -> None:
    seen = Around()
    async with (
        Client(broker) as client,
        run_services(Failing, broker=broker, config=config(tmp_path), middleware=[seen]),
    ):
        await append(client, [Departed("BAD", 1_000_000)])
        await eventually(lambda: any(one.error for one in seen.outcomes), 30)

    (error, *_) = [one.error for one in seen.outcomes if one.error]
    assert "no such airport" in str(error)


# --- traces, metrics, probes -------------------------------------------------------------------------


async def test_a_commit_s_span_says_what_it_took_and_links_to_the_appends(
    broker: str, tmp_path: Path, receiver: SpanReceiver
) -> None:
    settings: dict[str, Any] = config(tmp_path)
    settings["mycelia"]["tracing"] = {"endpoint": receiver.endpoint}
    ids = [f"{number:032x}" for number in range(1, 4)]

    def is_enough(spans: list[ReceivedSpan]) -> bool:
        counts = [span.attributes.get("messaging.batch.message_count", 0) for span in spans]
        return sum(map(int, counts)) >= len(ids)

    async with (
        Client(broker, middleware=[_Tracing(ids)]) as client,
        run_services(Counting, broker=broker, config=settings),
    ):
        for _ in ids:
            await client.append(DEPARTED, Departed("JFK", 1_000_000))
        await asyncio.to_thread(receiver.wait_for, is_enough)

    spans = [
        span for span in receiver.spans if span.attributes.get("messaging.batch.message_count")
    ]
    assert {span.name for span in spans} == {"process counting.by_origin"}
    assert {span.kind for span in spans} == {"CONSUMER"}
    assert [trace for span in spans for trace, _ in span.links] == ids
    attributes = spans[0].attributes
    assert attributes["messaging.destination.name"] == DEPARTED.name
    assert attributes["flow.offsets"].startswith(f"{DEPARTED.name}:0-")


async def test_a_trace_goes_from_what_came_in_over_the_batch_to_what_is_appended(
    broker: str, tmp_path: Path, receiver: SpanReceiver
) -> None:
    """Over the stages, too: the batch behind a cut links to the append before it."""
    settings: dict[str, Any] = config(tmp_path)
    settings["mycelia"]["tracing"] = {"endpoint": receiver.endpoint}

    def appends(spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
        return [span for span in spans if span.name == f"append {BY_CARRIER.name}"]

    async with (
        Client(broker) as client,
        run_services(Carriers, broker=broker, config=settings),
    ):
        await client.append_many(LEFT, carrier_flights(200) + closing())
        await asyncio.to_thread(receiver.wait_for, lambda spans: bool(appends(spans)))

    batches = {span.span_id: span for span in receiver.spans if span.kind == "CONSUMER"}
    given = [span for span in receiver.spans if span.name.startswith("append carriers.")]
    (append_between, *_) = given
    (append_out, *_) = appends(receiver.spans)
    for leaving in (append_between, append_out):
        assert leaving.kind == "PRODUCER"
        assert leaving.attributes["messaging.batch.message_count"] > 0
        batch = batches[leaving.parent_id]
        assert batch.trace_id == leaving.trace_id
    linked = {span for _, span in batches[append_out.parent_id].links}
    assert linked & {span.span_id for span in given}, "of what was appended between the stages"


async def test_outputs_to_logs_are_calls_and_all_else_is_not(broker: str, tmp_path: Path) -> None:
    """One for each batch; what only says how far time has come is none."""
    seen: list[AppendCall] = []

    class Appends:
        def middleware(self, direction: Direction, target: Target) -> Middleware | None:
            is_append = direction is Direction.OUTBOUND and target.kind is CallKind.LOG
            return self.around if is_append else None

        async def around(self, call: Call, next: Next) -> Outcome:
            assert isinstance(call, AppendCall)
            seen.append(call)
            call.headers = {**(call.headers or {}), "x-seen": len(seen)}
            await next(call)
            return await next(call)  # sent twice, and read once

    flights = departures(1_000)
    async with (
        Client(broker) as client,
        run_services(
            Counting, broker=broker, config=config(tmp_path), middleware=[Appends()]
        ) as bed,
    ):
        tally = Tally(client)
        await append(client, flights + sentinels())
        await eventually(lambda: statistics(bed).records == 1_000 + PARTITIONS, 30)
        wanted = expected(flights)
        await eventually(lambda: tally.has(len(wanted)), 20)
        counts, repeated = tally.counts(), tally.repeated
        await tally.aclose()

    assert counts == wanted
    assert {call.target.name for call in seen} == {f"{COUNTED.name}.append"}
    assert sum(call.item_count for call in seen) == len(wanted)
    assert repeated == len(seen) > 0
    (record, *_) = seen[0].args[0]
    assert wanted[record.value.origin, record.value.start_ms] == record.value.flights


async def test_a_middleware_that_keeps_an_output_back_stops_the_partition_and_loses_nothing(
    broker: str, tmp_path: Path
) -> None:
    keeps = True

    class Keeping:
        def middleware(self, direction: Direction, target: Target) -> Middleware | None:
            is_append = direction is Direction.OUTBOUND and target.kind is CallKind.LOG
            return self.around if is_append else None

        async def around(self, call: Call, next: Next) -> Outcome:
            return Outcome() if keeps else await next(call)

    flights = departures(500)
    async with (
        Client(broker) as client,
        run_services(
            Counting, broker=broker, config=config(tmp_path), middleware=[Keeping()]
        ) as bed,
    ):
        tally = Tally(client)
        await append(client, flights + sentinels())
        await eventually(lambda: statistics(bed).standing_still, 30)
        (why, *_) = statistics(bed).standing_still.values()
        keeps = False
        wanted = expected(flights)
        await eventually(lambda: tally.has(len(wanted)), 30)
        counts = tally.counts()
        await tally.aclose()

    assert "without going on" in why
    assert counts == wanted


class _Tracing:
    """Gives each append a trace of its own."""

    def __init__(self, ids: list[str]) -> None:
        self._ids = list(ids)

    def middleware(self, direction: Direction, target: Target) -> Middleware:
        async def around(call: Call, next: Next) -> Outcome:
            trace = f"00-{self._ids.pop(0)}-{'1' * 16}-01"
            call.headers = {**(call.headers or {}), "traceparent": trace}
            return await next(call)

        return around


async def test_metrics_and_readiness_tell_how_a_flow_is(rabbit_uri: str, tmp_path: Path) -> None:
    port = free_port()
    settings: dict[str, Any] = config(tmp_path)
    at = {"port": port, "host": "127.0.0.1"}
    settings["mycelia"] |= {"metrics": at, "health": at}
    async with (
        Client(rabbit_uri) as client,
        run_services(Counting, Failing, broker=rabbit_uri, config=settings) as bed,
    ):
        await append(client, departures(2_000) + sentinels())
        await eventually(lambda: statistics(bed).records == 2_000 + PARTITIONS, 30)
        await append(client, departures(10))
        await eventually(lambda: statistics(bed).records == 2_010 + PARTITIONS, 30)
        before = await asyncio.to_thread(Scrape.of, port, "/ready")
        await append(client, [Departed("BAD", 1_000_000)])
        await eventually(lambda: statistics(bed, Failing).standing_still, 30)
        after = await asyncio.to_thread(Scrape.of, port, "/ready")
        scrape = await asyncio.to_thread(Scrape.of, port, "/metrics")

    assert before.status == 200
    assert after.status == 503
    (why,) = after.json["not_ready"]
    assert why.startswith("flow failing.checked: partition ")
    assert "no such airport" in why
    of = {"group": "counting.by_origin"}
    assert scrape.sum("mycelia_flow_records_total", **of) >= 2_010 + PARTITIONS
    assert scrape.sum("mycelia_flow_commits_total", **of) >= PARTITIONS
    assert scrape.sum("mycelia_flow_published_total", **of) >= 1
    assert scrape.sum("mycelia_flow_standing_still", **of) == 0
    assert scrape.sum("mycelia_flow_standing_still", group="failing.checked") == 1
    assert scrape.sum("mycelia_flow_counted_records_total", what="late", **of) in (10, 11)
    assert scrape.sum("mycelia_flow_watermark_behind_seconds", **of) > 1_000_000_000
    assert scrape.sum("mycelia_flow_state_bytes", **of) > 0
    assert (
        scrape.sum("mycelia_calls_total", kind="log", method="by_origin", outcome="ok")
        >= PARTITIONS
    )
    assert scrape.sum("mycelia_calls_total", kind="log", method="checked", outcome="error") >= 1
    assert (
        scrape.sum("mycelia_call_duration_seconds_count", kind="log", method="by_origin")
        >= PARTITIONS
    )


async def test_what_was_counted_goes_on_when_a_partition_begins_anew(
    broker: str, tmp_path: Path
) -> None:
    """A counter never goes back, although each engine counts from nothing."""
    async with (
        Client(broker) as client,
        run_services(Counting, broker=broker, config=config(tmp_path)) as bed,
    ):
        (handler,) = [
            one for one in bed.container(Counting).entrypoints if isinstance(one, FlowHandler)
        ]
        await append(client, sentinels())
        await eventually(lambda: statistics(bed).records == PARTITIONS, 30)
        await append(client, departures(40))
        await eventually(lambda: statistics(bed).counted.get("window-1", {}).get("late") == 40, 30)
        for stage in handler.stages:
            for partition in stage.partitions:
                stage._leave(partition)  # it is taken again, with a new engine
        await append(client, departures(2))
        await eventually(lambda: statistics(bed).counted["window-1"]["late"] == 42, 30)
        told = list(samples_of(bed.runner.host.statistics()))

    late = [one.value for one in told if one.name == "mycelia_flow_counted_records"]
    assert sum(late) == 42
