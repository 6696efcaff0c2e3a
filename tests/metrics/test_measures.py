"""What is counted of calls: by outcome, by error, how long they took and waited; nothing where nobody asks for it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from prometheus_client import REGISTRY
from tests.metrics.conftest import Scrape

from mycelia import (
    EventDispatcher,
    Metrics,
    Outcome,
    RpcProxy,
    Runner,
    event_handler,
    rpc,
    timer,
)
from mycelia.amqp import Message, Properties, connect
from mycelia.errors import ConfigError, IncorrectSignature, MethodNotFound, RemoteError
from mycelia.providers.metrics.measures import OUTCOMES, outcome_name
from mycelia.providers.metrics.monitoring import Monitoring
from mycelia.testing import ServiceBed, eventually, run_services

MEASURED = {"mycelia": {"metrics": {"port": 0, "host": "127.0.0.1"}}}


class Shop:
    name = "shop"
    emit = EventDispatcher()
    own = RpcProxy("shop")

    @rpc
    async def add(self, a: int, b: int) -> int:
        return a + b

    @rpc
    def add_in_thread(self, a: int, b: int) -> int:
        return a + b

    @rpc
    async def fail(self, name: str) -> None:
        raise type(name, (Exception,), {})("no")

    @rpc
    async def slow(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @rpc
    async def nest(self) -> int:
        await self.emit("sold", {})
        total: int = await self.own.add(1, 2)
        return total

    @event_handler("shop", "sold")
    async def on_sold(self, payload: Any) -> None:
        pass

    @event_handler("other", "broken", requeue_on_error=True)
    async def on_broken(self, payload: Any) -> None:
        raise ValueError("never")

    @timer(3600)
    async def tick(self) -> None:
        pass


def part_of(bed: ServiceBed) -> Monitoring:
    (part,) = bed.runner.host.parts
    assert isinstance(part, Monitoring)
    return part


async def scrape(bed: ServiceBed, path: str = "/metrics", **headers: str) -> Scrape:
    (port,) = part_of(bed).ports
    return await asyncio.to_thread(Scrape.of, port, path, headers)


async def test_without_the_section_there_is_nothing(tmp_path: Any) -> None:
    async with run_services(Shop) as bed:
        assert bed.runner.host.parts == []
        assert bed.runner.host.middleware == ()


async def test_calls_are_counted_by_how_they_end() -> None:
    async with run_services(Shop, config=MEASURED) as bed:
        for n in range(5):
            assert await bed.client.call("shop", "add", 1, n) == 1 + n
        assert await bed.client.call("shop", "add_in_thread", 1, 1) == 2
        for name in ("Sold", "Out", "Out"):
            with pytest.raises(RemoteError):
                await bed.client.call("shop", "fail", name)
        with pytest.raises(IncorrectSignature):
            await bed.client.call("shop", "add", 1)
        with pytest.raises(MethodNotFound):
            await bed.client.call("shop", "no_such_method")
        seen = await scrape(bed)

    calls = "mycelia_calls_total"
    add = {"direction": "inbound", "kind": "rpc", "service": "shop", "method": "add"}
    assert seen.sum(calls, **add, outcome="ok") == 5
    assert seen.sum(calls, **add, outcome="refused") == 1
    assert seen.sum(calls, method="add_in_thread", outcome="ok") == 1
    assert seen.sum(calls, method="fail", outcome="error") == 3
    assert seen.sum(calls, method="*", outcome="refused", kind="rpc") == 1
    assert seen.sum("mycelia_errors_total", method="fail", error="Out") == 2
    assert seen.sum("mycelia_errors_total", method="fail", error="Sold") == 1
    assert seen.sum("mycelia_errors_total", method="add", error="IncorrectSignature") == 1
    assert seen.sum("mycelia_call_duration_seconds_count", **add) == 6


async def test_call_that_takes_too_long_is_a_timeout_and_its_caller_s_an_error() -> None:
    class Impatient:
        name = "impatient"
        shop = RpcProxy("shop", timeout=1)

        @rpc
        async def ask(self) -> None:
            await self.shop.slow(5)

    async with run_services(Shop, Impatient, config=MEASURED) as bed:
        with pytest.raises(RemoteError, match="RpcTimeout"):
            await bed.client.call("impatient", "ask")
        await eventually(
            lambda: bed.runner.statistics().services["shop"].lanes["shop.slow"].timed_out
        )
        seen = await scrape(bed)

    calls = "mycelia_calls_total"
    assert seen.sum(calls, direction="inbound", method="slow", outcome="timeout") == 1
    assert (
        seen.sum(calls, direction="outbound", service="shop", method="slow", outcome="error") == 1
    )
    assert seen.sum("mycelia_errors_total", direction="outbound", error="RpcTimeout") == 1
    lasted = seen.sum("mycelia_call_duration_seconds_sum", direction="outbound", method="slow")
    assert 1 <= lasted < 4


async def test_time_from_publishing_is_known_by_the_millisecond_between_measured_processes() -> (
    None
):
    async with run_services(Shop, config=MEASURED) as bed:
        await bed.client.call("shop", "nest")
        await eventually(
            lambda: bed.runner.statistics().services["shop"].lanes["shop.on_sold"].finished
        )
        seen = await scrape(bed)

    for method in ("add", "on_sold"):
        for metric in ("queue_time", "critical_time"):
            assert seen.sum(f"mycelia_{metric}_seconds_count", method=method) == 1
            assert seen.sum(f"mycelia_{metric}_seconds_sum", method=method) < 0.5
    assert seen.sum("mycelia_queue_time_seconds_count", method="nest") == 0  # nobody said when


@pytest.mark.parametrize(
    ("headers", "timestamp", "least", "most"),
    [
        ({"x-mycelia-published-ms": lambda now: int(now * 1000) - 60_000}, None, 60, 65),
        ({"timestamp_in_ms": lambda now: int(now * 1000) - 60_000}, None, 60, 65),
        ({}, lambda now: int(now) - 60, 59, 65),
        ({}, lambda now: int(now), 0, 4),
        ({"x-mycelia-published-ms": lambda now: "soon"}, lambda now: int(now) - 60, 59, 65),
        ({"x-mycelia-published-ms": lambda now: int(now * 1000) + 3_600_000}, None, 0, 0),
    ],
)
async def test_publishing_time_is_ours_or_the_broker_s_or_amqp_s(
    headers: dict[str, Any], timestamp: Any, least: float, most: float
) -> None:
    now = time.time()
    properties = Properties(
        headers={name: value(now) for name, value in headers.items()},
        timestamp=None if timestamp is None else timestamp(now),
        content_type="application/json",
        content_encoding="utf-8",
    )
    async with run_services(Shop, config=MEASURED) as bed:
        link = connect(bed.broker)
        await link.open(5)
        await link.publish(Message("shop.events", "sold", b"{}", properties))
        await eventually(
            lambda: bed.runner.statistics().services["shop"].lanes["shop.on_sold"].finished
        )
        seen = await scrape(bed)
        await link.aclose()

    for metric in ("queue_time", "critical_time"):
        assert least <= seen.sum(f"mycelia_{metric}_seconds_sum", method="on_sold") <= most


async def test_message_without_a_publishing_time_has_no_waiting_time() -> None:
    async with run_services(Shop, config=MEASURED) as bed:
        link = connect(bed.broker)
        await link.open(5)
        await link.publish(
            Message("shop.events", "sold", b"{}", Properties(content_type="application/json"))
        )
        await eventually(
            lambda: bed.runner.statistics().services["shop"].lanes["shop.on_sold"].finished
        )
        seen = await scrape(bed)
        await link.aclose()

    assert seen.sum("mycelia_calls_total", method="on_sold", outcome="ok") == 1
    assert seen.sum("mycelia_queue_time_seconds_count", method="on_sold") == 0


async def test_further_attempts_and_dead_letters_are_counted() -> None:
    config = {"mycelia": {**MEASURED["mycelia"], "requeue_attempts": 3}}
    async with run_services(Shop, config=config) as bed:
        await bed.client.publish("other", "broken", {})
        await eventually(
            lambda: bed.runner.statistics().services["shop"].extensions["DeadLetters"].buried
        )
        seen = await scrape(bed)

    assert seen.sum("mycelia_retried_calls_total", method="on_broken") == 2
    assert seen.sum("mycelia_calls_total", method="on_broken", outcome="error") == 3
    assert seen.sum("mycelia_dead_letters_total", service="shop") == 1
    assert seen.sum("mycelia_queue_time_seconds_count", method="on_broken") == 1
    assert seen.sum("mycelia_critical_time_seconds_count", method="on_broken") == 0


async def test_state_of_workers_queues_link_and_loop_is_told() -> None:
    async with run_services(Shop, config=MEASURED) as bed:
        call = asyncio.ensure_future(bed.client.call("shop", "slow", 30))
        await eventually(lambda: bed.runner.statistics().services["shop"].lanes["shop.slow"].active)
        await eventually(lambda: asyncio.sleep(0.05, _delays(bed) > 1), timeout=10)
        seen = await scrape(bed)
        call.cancel()
        await bed.runner.kill()

    assert seen.sum("mycelia_workers", service="shop", method="slow") == 1
    assert seen.sum("mycelia_workers_limit", method="slow") == 100
    assert seen.sum("mycelia_calls_waiting", method="slow") == 0
    assert seen.sum("mycelia_consumers", queue="rpc-shop") == 1
    assert seen.sum("mycelia_consumer_prefetch", queue="rpc-shop") > 1
    assert seen.sum("mycelia_consumer_unsettled", queue="rpc-shop") == 1
    assert seen.sum("mycelia_link_state", state="connected") == 1
    assert seen.sum("mycelia_link_state") == 1
    assert seen.sum("mycelia_link_reconnects_total") == 0
    assert seen.sum("mycelia_timer_ticks_total", method="tick") == 0
    assert seen.sum("mycelia_processes") == 1
    assert seen.sum("mycelia_extension", extension="ReplyListener", name="pending") == 0


def _delays(bed: ServiceBed) -> float:
    measures = part_of(bed).measures
    assert measures is not None
    (reading,) = (
        r for r in measures.cells.read() if r.series.name == "mycelia_event_loop_delay_seconds"
    )
    return sum(reading.values[:-1])


async def test_messages_that_wait_in_queues_are_counted_now_and_then() -> None:
    config = {"mycelia": {"metrics": {"port": 0, "host": "127.0.0.1", "queue_depth_every": 0.05}}}

    class OneAtATime:
        name = "one"

        @event_handler("feed", "said", concurrency=1, prefetch=1)
        async def on_said(self, payload: Any) -> None:
            await asyncio.sleep(60)

    async with run_services(OneAtATime, config=config) as bed:
        for _ in range(5):
            await bed.client.publish("feed", "said", {})

        async def waiting() -> bool:
            seen = await scrape(bed)
            name = "mycelia_queue_messages"
            return any(sample == name and value == 4 for sample, _, value in seen.samples())

        await eventually(waiting)
        await bed.runner.kill()


async def test_errors_have_a_bounded_number_of_series() -> None:
    async with run_services(Shop, config=MEASURED) as bed:
        for number in range(30):
            with pytest.raises(RemoteError):
                await bed.client.call("shop", "fail", f"Error{number}")
        seen = await scrape(bed)

    errors = {
        labels["error"]: value
        for name, labels, value in seen.samples()
        if name == "mycelia_errors_total"
    }
    assert len(errors) == 21
    assert errors["other"] == 10
    assert sum(errors.values()) == 30


async def test_events_without_number_are_one_series() -> None:
    class Chatty:
        name = "chatty"
        emit = EventDispatcher()

        @rpc
        async def talk(self) -> None:
            for number in range(50):
                await self.emit(f"said{number}", {})

    async with run_services(Chatty, config=MEASURED) as bed:
        await bed.client.call("chatty", "talk")
        seen = await scrape(bed)

    assert (
        seen.sum(
            "mycelia_calls_total", direction="outbound", kind="event", method="*", outcome="ok"
        )
        == 50
    )
    assert not any("said1" in labels.values() for _, labels, _ in seen.samples())


def test_every_outcome_has_a_name_that_is_counted() -> None:
    assert outcome_name(Outcome(1)) == "ok"
    assert outcome_name(Outcome(error=asyncio.CancelledError())) == "cancelled"
    assert set(OUTCOMES) == {"ok", "error", "refused", "expired", "shed", "timeout", "cancelled"}


# --- the user's own ---------------------------------------------------------------------------------


async def test_own_metrics_are_scraped_beside_them() -> None:
    class Counting:
        name = "counting"
        metrics = Metrics()

        @rpc
        async def sell(self, what: str) -> None:
            self.metrics.counter("sold_things_total", "Things sold.", ["what"]).labels(what).inc()
            self.metrics.gauge("stock_level", "Things there.").set(7)
            self.metrics.histogram("price_euros", "Prices.", buckets=[1, 10]).observe(3)

    async with run_services(Counting, config=MEASURED) as bed:
        for what in ("tea", "tea", "jam"):
            await bed.client.call("counting", "sell", what)
        seen = await scrape(bed)

    assert seen.sum("sold_things_total", what="tea") == 2
    assert seen.sum("stock_level") == 7
    assert seen.sum("price_euros_bucket", le="10.0") == 3
    assert seen.sum("process_cpu_seconds_total") > 0  # what the library brings


async def test_metric_of_a_name_that_is_another_is_told() -> None:
    class Confused:
        name = "confused"
        metrics = Metrics()

        @rpc
        async def confuse(self) -> str:
            self.metrics.counter("confusions_total", "Confusions.", ["of"])
            with pytest.raises(ConfigError) as caught:
                self.metrics.counter("confusions_total", "Confusions.")
            return str(caught.value)

    async with run_services(Confused) as bed:
        told = await bed.client.call("confused", "confuse")

    assert "Confused.metrics" in told
    assert 'there is a metric "confusions_total" that is another' in told
    assert "a counter with labels (of), not a counter with labels ()" in told


async def test_collector_that_raises_costs_only_what_is_not_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        def collect(self) -> Any:
            raise OSError("no disk")

    broken = Broken()
    async with run_services(Shop, config=MEASURED) as bed:
        REGISTRY._collector_to_names[broken] = []  # type: ignore[index]  # registering it would ask it
        try:
            seen = await scrape(bed)
        finally:
            del REGISTRY._collector_to_names[broken]  # type: ignore[arg-type]

    assert seen.status == 200
    assert seen.sum("mycelia_processes") == 1
    assert "collector_raised" in caplog.text


async def test_openmetrics_is_spoken_to_who_asks_for_it() -> None:
    async with run_services(Shop, config=MEASURED) as bed:
        seen = await scrape(bed, Accept="application/openmetrics-text;version=1.0.0")

    assert seen.content_type.startswith("application/openmetrics-text")
    assert seen.body.endswith("# EOF\n")
    assert seen.body.count("# EOF") == 1


# --- configuration ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"metrics": {"prot": 9000}}, ["mycelia.metrics.prot", 'Did you mean "port"']),
        ({"metrics": {"port": "9000"}}, ["mycelia.metrics.port", "int"]),
        ({"metrics": {"port": 70000}}, ["port must be from 0 to 65535"]),
        ({"metrics": {"buckets": [2, 1]}}, ["buckets"]),
        ({"metrics": {"buckets": []}}, ["buckets"]),
        ({"metrics": {"queue_depth_every": -1}}, ["queue_depth_every must be 0 or more"]),
        ({"health": {}}, ["port"]),
        ({"health": {"prt": 1}}, ["mycelia.health.prt", 'Did you mean "port"']),
        ({"metrcs": {}}, ["mycelia.metrcs", 'Did you mean "metrics"']),
    ],
)
def test_wrong_configuration_is_told_by_its_key(section: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Runner({"AMQP_URI": "memory://x", "mycelia": section}, [Shop])

    for word in words:
        assert word in str(caught.value)


async def test_settings_can_change_beside_the_section() -> None:
    async with run_services(Shop, config=MEASURED) as bed:
        bed.runner.host.change_settings({"mycelia": {"rpc_timeout": 5}})
        with pytest.raises(ConfigError, match=r"mycelia\.metrics cannot change"):
            bed.runner.host.change_settings({"mycelia": {"metrics": None}})
