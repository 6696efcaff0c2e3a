"""Appends leave as calls, one for each batch; what a log handler is given arrives as one. Middleware, deadlines, traces, metrics."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any, ClassVar

import pytest
from tests.logs.shapes import Departed, layout, read, records_of, shape
from tests.tracing.conftest import receiver

from mycelia import Call, CallKind, Client, Log, Next, Outcome, Record, context, log_handler, rpc
from mycelia.amqp import Link
from mycelia.call import Direction, Middleware, Target, current_call
from mycelia.errors import BrokerUnavailable
from mycelia.logs import AppendCall, LogCall, lag_watch
from mycelia.logs.layout import declare_log
from mycelia.logs.writer import AppendOptions, LogWriter
from mycelia.providers.metrics.told import samples_of
from mycelia.testing import ReceivedSpan, SpanReceiver, eventually, run_services

__all__ = ["receiver"]

LANDED = Log("landed", of=Departed, key="origin", partitions=2, linger="5ms")


class Seen:
    """A source of middleware that keeps what it sees."""

    def __init__(self, layer: Any = None) -> None:
        self.targets: list[Target] = []
        self.calls: list[Call] = []
        self.outcomes: list[Outcome] = []
        self._layer = layer

    def middleware(self, direction: Direction, target: Target) -> Middleware | None:
        if target.kind is not CallKind.LOG:
            return None
        self.targets.append(target)
        return self.around

    async def around(self, call: Call, next: Next) -> Outcome:
        self.calls.append(call)
        outcome = await (next(call) if self._layer is None else self._layer(call, next))
        self.outcomes.append(outcome)
        return outcome


async def made(link: Link, layer: Any, **options: Any) -> LogWriter[Departed]:
    await declare_log(link, layout(1), 30)
    return LogWriter(
        link,
        layout(1),
        shape(),
        AppendOptions(**options),
        middleware_for=lambda _: (layer,),
    )


async def test_a_client_s_appends_are_one_call_for_each_batch(broker: str) -> None:
    """A batch with a number of its own ends the one before it, so that no time decides how many there are."""
    seen = Seen()
    log = Log("landed", of=Departed, key="origin", partitions=2, linger="60s")
    async with Client(broker, middleware=[seen]) as client:
        values = [Departed("JFK", number, number) for number in range(50)]
        await asyncio.gather(
            *(client.append(log, value) for value in values),
            client.append_many(log, values, producer="test", sequence=0),
        )

    first, second = seen.calls
    assert [target.name for target in seen.targets] == ["landed.append"]
    assert seen.targets[0].direction is Direction.OUTBOUND
    assert isinstance(first, AppendCall)
    assert isinstance(second, AppendCall)
    assert (first.records, second.records) == (50, 50)
    assert [record.value for record in first.args[0]] == values
    assert [record.key for record in second.args[0]] == ["JFK"] * 50
    assert [outcome.error for outcome in seen.outcomes] == [None, None]


async def test_a_middleware_s_error_is_raised_by_the_appends_of_the_batch(link: Link) -> None:
    async def refuse(call: Call, next: Next) -> Outcome:
        return (
            Outcome(error=PermissionError("not now"))
            if call.args[0][0].value.number
            else (await next(call))
        )

    writer = await made(link, refuse, linger=0.0)

    with pytest.raises(PermissionError, match="not now"):
        await writer.append(Departed("JFK", 1))
    await writer.append(Departed("JFK", 0))

    assert [one.value.number for one in records_of(await read(link, layout(1), 0, 1))] == [0]
    assert (writer.statistics().records, writer.statistics().failed) == (1, 1)
    await writer.aclose()


async def test_a_middleware_that_goes_on_twice_leaves_one_batch_for_readers(link: Link) -> None:
    async def twice(call: Call, next: Next) -> Outcome:
        await next(call)
        return await next(call)

    writer = await made(link, twice, linger=0.0)
    for number in range(5):
        await writer.append(Departed("JFK", number))

    numbers = [one.value.number for one in records_of(await read(link, layout(1), 0, 5))]
    assert numbers == [0, 1, 2, 3, 4]
    await writer.aclose()


async def test_headers_of_a_middleware_are_in_the_entry_and_do_not_replace_its_own(
    link: Link,
) -> None:
    async def mark(call: Call, next: Next) -> Outcome:
        call.headers = {**(call.headers or {}), "x-region": "eu", "x-log-count": 99}
        return await next(call)

    writer = await made(link, mark)
    await writer.append(Departed("JFK", 1))

    (entry,) = await read(link, layout(1), 0, 1)
    headers = entry.delivery.properties.headers or {}
    assert (headers["x-region"], headers["x-log-count"]) == ("eu", 1)
    await writer.aclose()


async def test_an_append_waits_no_longer_than_the_call_that_makes_it_may(link: Link) -> None:
    """Its batch is tried for longer where others, who have more time, are in it."""
    held, gates = asyncio.Event(), asyncio.Event()

    async def hold(call: Call, next: Next) -> Outcome:
        held.set()
        await gates.wait()
        return await next(call)

    writer = await made(link, hold, linger=0.0)
    patient = asyncio.create_task(writer.append(Departed("JFK", 1)))
    loop = asyncio.get_running_loop()
    current_call.set(
        Call(Target(Direction.INBOUND, CallKind.RPC, "s", "m"), deadline=loop.time() + 0.2)
    )
    with pytest.raises(BrokerUnavailable, match="left to the call being handled"):
        await writer.append(Departed("JFK", 2))
    current_call.set(None)
    await held.wait()
    gates.set()
    await patient

    await writer.aclose()
    assert {one.value.number for one in records_of(await read(link, layout(1), 0, 2))} == {1, 2}


async def test_middleware_of_a_service_sees_appends_and_what_its_log_handler_is_given(
    broker: str,
) -> None:
    seen = Seen()
    handled: list[int] = []

    class Tower:
        name = "tower"
        landed = LANDED

        @rpc
        async def land(self, count: int) -> None:
            context["user_id"] = 7
            await self.landed.append_many([Departed("JFK", number) for number in range(count)])

        @log_handler(LANDED)
        async def count(self, records: list[Record[Departed]]) -> None:
            handled.extend(record.value.number for record in records)

    async with run_services(Tower, broker=broker, middleware=[seen]) as bed:
        await bed.client.call("tower", "land", 3)
        await eventually(lambda: len(handled) == 3, 20)

    leaving = [call for call in seen.calls if isinstance(call, AppendCall)]
    arrived = [call for call in seen.calls if isinstance(call, LogCall)]
    assert [call.name for call in seen.targets if call.direction is Direction.INBOUND] == [
        "tower.count"
    ]
    assert [call.origins[0].target.name for call in leaving] == ["tower.land"]
    assert [call.item_count for call in arrived] == [3]
    # Of a batch there is one, and its records may be of many callers: who they are does not travel.
    assert arrived[0].context == {}
    assert arrived[0].message is not None


# --- traces ------------------------------------------------------------------------------------------


def traced(receiver: SpanReceiver) -> dict[str, Any]:
    return {"mycelia": {"tracing": {"endpoint": receiver.endpoint}}}


class TracedTower:
    name = "tower"
    landed = LANDED
    handled: ClassVar[list[Any]] = []

    @rpc
    async def land(self, number: int, headers: dict[str, Any] | None = None) -> None:
        await self.landed.append(Departed("JFK", number), headers=headers)

    @log_handler(LANDED)
    async def count(self, records: list[Record[Departed]]) -> None:
        self.handled.extend(records)


async def spans_of(receiver: SpanReceiver, handled: int) -> list[ReceivedSpan]:
    def is_enough(spans: list[ReceivedSpan]) -> bool:
        counts = [span.attributes.get("messaging.batch.message_count", 0) for span in spans]
        consumed = [
            int(count) for span, count in zip(spans, counts, strict=True) if span.kind == "CONSUMER"
        ]
        return sum(consumed) >= handled

    await asyncio.to_thread(receiver.wait_for, is_enough)
    return receiver.spans


async def test_a_record_s_trace_goes_from_its_append_to_its_handler(
    broker: str, receiver: SpanReceiver
) -> None:
    async with run_services(TracedTower, broker=broker, config=traced(receiver)) as bed:
        await bed.client.call("tower", "land", 1)
        spans = await spans_of(receiver, 1)

    named = {span.name: span for span in spans}
    served, append, handled = (
        named["tower/land"],
        named["append landed"],
        named["process tower.count"],
    )
    assert append.kind == "PRODUCER"
    assert (append.trace_id, append.parent_id) == (served.trace_id, served.span_id)
    assert (handled.trace_id, handled.parent_id) == (served.trace_id, append.span_id)
    assert append.links == handled.links == []
    assert append.attributes["messaging.destination.name"].startswith("landed:")


async def test_a_batch_of_many_calls_is_in_one_s_trace_and_links_to_those_of_the_others(
    broker: str, receiver: SpanReceiver
) -> None:
    """To 32 of them at most."""
    log = Log("landed", of=Departed, key="origin", partitions=2, linger="1500ms")
    many = 40
    all_here = asyncio.Barrier(many)  # so that no time decides which of them are in the batch

    class Gathering(TracedTower):
        name = "tower"
        landed = log

        @rpc
        async def land(self, number: int, headers: dict[str, Any] | None = None) -> None:
            await all_here.wait()
            await self.landed.append(Departed("JFK", number), headers=headers)

    async with run_services(
        Gathering, broker=broker, config={**traced(receiver), "max_workers": many}
    ) as bed:
        await asyncio.gather(*(bed.client.call("tower", "land", n) for n in range(many)))
        spans = await spans_of(receiver, many)

    served = {(span.trace_id, span.span_id) for span in spans if span.name == "tower/land"}
    (append,) = [span for span in spans if span.name == "append landed"]
    assert len(served) == many
    assert (append.trace_id, append.parent_id) in served
    assert set(append.links) < served - {(append.trace_id, append.parent_id)}
    assert len(append.links) == 31


async def test_handler_s_span_links_to_the_traces_that_records_name_in_their_headers(
    broker: str, receiver: SpanReceiver
) -> None:
    ids = [f"{number:032x}" for number in range(1, 41)]
    async with run_services(TracedTower, broker=broker, config=traced(receiver)) as bed:
        headers: list[Any] = [{"traceparent": f"00-{one}-{'1' * 16}-01"} for one in ids]
        headers += [{"traceparent": ["no text"]}, {"traceparent": "00-odd"}, None]
        values = [Departed("JFK", number) for number in range(len(headers))]
        await bed.client.append_many(LANDED, values, headers=headers)
        spans = await spans_of(receiver, len(headers))

    (handled,) = [span for span in spans if span.kind == "CONSUMER"]
    assert [trace_id for trace_id, _ in handled.links] == ids[:32]


async def test_a_trace_goes_through_a_service_that_is_not_traced(broker: str) -> None:
    """One that has no middleware at all."""
    seen: list[Any] = []

    class Heard:
        name = "heard"

        @log_handler(LANDED)
        async def count(self, records: list[Record[Departed]]) -> None:
            seen.append(context["traceparent"])

    traceparent = f"00-{'a' * 32}-{'1' * 16}-01"
    async with run_services(TracedTower, Heard, broker=broker) as bed:
        tower = await bed.client.service("tower", context={"traceparent": traceparent})
        await tower.land(1)
        await eventually(lambda: bool(seen), 20)

    assert seen == [traceparent]


# --- figures -----------------------------------------------------------------------------------------


async def test_figures_of_logs_are_metrics_with_the_lag_of_each_partition(
    broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lag_watch, "LOOK_EVERY", 0.2)
    gate = asyncio.Event()

    class Slow:
        name = "slow"
        landed = LANDED

        @log_handler(LANDED, group="slow")
        async def count(self, records: list[Record[Departed]]) -> None:
            if records[0].value.number:
                await gate.wait()

    async with run_services(Slow, broker=broker) as bed:
        for number in range(4):  # an entry each, in one partition
            await bed.client.append(LANDED, Departed("JFK", number))

        def samples() -> dict[tuple[str, str], float]:
            found: dict[tuple[str, str], float] = defaultdict(float)
            for one in samples_of(bed.runner.statistics()):
                found[one.name, one.labels.get("partition", "")] += one.value
            return found

        def lags() -> list[float]:
            return [value for (name, _), value in samples().items() if name.endswith("lag_entries")]

        await eventually(
            lambda: 3.0 in lags() and samples()["mycelia_log_handled_records", ""] == 1, 30
        )
        gate.set()
        await eventually(lambda: len(lags()) == 2 and not any(lags()), 30)
        found = samples()

    assert found["mycelia_log_handled_records", ""] == 4
    assert found["mycelia_log_partitions", ""] == 2


async def test_figures_of_a_service_s_appends_are_metrics(broker: str) -> None:
    async with run_services(TracedTower, broker=broker) as bed:
        for number in range(3):
            await bed.client.call("tower", "land", number)
        told = [one for one in samples_of(bed.runner.statistics()) if "appended" in one.name]

    assert all(one.labels == {"service": "tower", "log": "landed"} for one in told)
    assert sum(one.value for one in told if one.name == "mycelia_log_appended_records") == 3
    assert sum(one.value for one in told if one.name == "mycelia_log_appended_bytes") > 60
