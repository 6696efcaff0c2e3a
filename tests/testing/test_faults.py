"""Faults that tests inject, and those that a configuration names."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mycelia import Client, EventDispatcher, RpcProxy, Runner, event_handler, rpc, timer
from mycelia.amqp import LinkState
from mycelia.errors import ConfigError, RemoteError, RpcTimeout
from mycelia.policies.faults import InjectedFault
from mycelia.testing import (
    DrivenClock,
    entrypoint_waiter,
    eventually,
    faults,
    replace_dependencies,
    run_services,
)


class Registry:
    name = "registry"
    ran: list[str] = []  # noqa: RUF012  for the tests to read

    @rpc
    async def get(self, tail: str) -> str:
        self.ran.append(tail)
        return f"plane {tail}"


class Enrich:
    name = "enrich"
    registry = RpcProxy("registry", timeout=2)
    emit = EventDispatcher()
    handled: list[str] = []  # noqa: RUF012  for the tests to read

    @rpc
    async def look_up(self, tail: str) -> str:
        return await self.registry.get(tail)

    @rpc
    async def announce(self, tail: str) -> None:
        await self.emit("enriched", tail)

    @event_handler("feed", "departed")
    async def departed(self, tail: str) -> str:
        self.handled.append(tail)
        return tail


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    Registry.ran.clear()
    Enrich.handled.clear()
    yield
    faults.clear()


async def test_failing_call_does_not_run_its_method_and_its_caller_hears_the_error() -> None:
    async with run_services(Registry, middleware=[faults]) as bed:
        with faults.fail("registry.get", error=LookupError, message="gone") as fault:
            with pytest.raises(RemoteError, match="LookupError gone"):
                await bed.client.call("registry", "get", "N1")
        assert await bed.client.call("registry", "get", "N2") == "plane N2"

    assert (fault.met, fault.hit) == (1, 1)
    assert Registry.ran == ["N2"]


async def test_failing_after_the_method_loses_the_result_of_work_that_is_done() -> None:
    async with run_services(Registry, middleware=[faults]) as bed:
        with faults.fail("registry.get", after=True):
            with pytest.raises(RemoteError, match="InjectedFault"):
                await bed.client.call("registry", "get", "N1")

    assert Registry.ran == ["N1"]


async def test_rate_and_seed_choose_the_same_calls_each_time() -> None:
    async def run() -> list[bool]:
        answers = []
        async with run_services(Registry, middleware=[faults]) as bed:
            with faults.fail("registry.get", rate=0.3, seed=5):
                for _ in range(30):
                    try:
                        answers.append(bool(await bed.client.call("registry", "get", "N1")))
                    except RemoteError:
                        answers.append(False)
        return answers

    first = await run()
    assert first == await run()
    assert 2 < first.count(False) < 20


async def test_error_of_a_call_that_leaves_is_raised_at_its_caller_and_nothing_is_sent() -> None:
    async with run_services(Registry, Enrich, middleware=[faults]) as bed:
        with faults.fail("registry.get", InjectedFault("no net"), direction="outbound"):
            with pytest.raises(RemoteError, match="no net"):
                await bed.client.call("enrich", "look_up", "N1")

    assert Registry.ran == []


async def test_failing_event_is_treated_as_a_handlers_error() -> None:
    async with run_services(Enrich, middleware=[faults]) as bed:
        with faults.fail("enrich.departed", times=1):
            async with entrypoint_waiter(bed.container(Enrich), "departed") as result:
                await bed.client.publish("feed", "departed", "N1")
        with pytest.raises(InjectedFault):
            result.get()


async def test_nth_reply_is_dropped_and_its_caller_times_out() -> None:
    with DrivenClock() as clock:
        async with run_services(Registry, middleware=[faults], timeout=30) as bed:
            with faults.drop("registry.get", nth=2):
                assert await bed.client.call("registry", "get", "N1") == "plane N1"
                calling = asyncio.create_task(bed.client.call("registry", "get", "N2"))
                await clock.advance("31s")
                with pytest.raises(RpcTimeout):
                    await calling
                assert await bed.client.call("registry", "get", "N3") == "plane N3"

    assert Registry.ran == ["N1", "N2", "N3"]


async def test_dropped_request_runs_nothing_and_is_acknowledged(broker: str) -> None:
    async with run_services(Registry, middleware=[faults], timeout=1, broker=broker) as bed:
        with faults.drop("registry.get", lost="request", times=1):
            with pytest.raises(RpcTimeout):
                await bed.client.call("registry", "get", "N1")
        assert Registry.ran == []
        assert await bed.client.call("registry", "get", "N2") == "plane N2"
        assert await bed.runner.host.link.message_count("rpc-registry") == 0


async def test_call_that_leaves_and_is_dropped_waits_for_its_deadline() -> None:
    with DrivenClock() as clock:
        async with run_services(Registry, Enrich, middleware=[faults]) as bed:
            with faults.drop("registry.get", lost="request", direction="outbound"):
                calling = asyncio.create_task(bed.client.call("enrich", "look_up", "N1"))
                await clock.advance("3s")
                with pytest.raises(
                    (RemoteError, RpcTimeout), match=r"registry.get: no reply within 2 s"
                ):
                    await calling

    assert Registry.ran == []


async def test_dropped_event_is_handled_by_nobody_and_lies_nowhere() -> None:
    async with run_services(Enrich, middleware=[faults]) as bed:
        with faults.drop("enrich.departed", nth=1):
            async with entrypoint_waiter(
                bed.container(Enrich), "departed", callback=lambda _, result, __: result == "N2"
            ):
                await bed.client.publish("feed", "departed", "N1")
                await bed.client.publish("feed", "departed", "N2")
        assert Enrich.handled == ["N2"]
        assert await bed.runner.host.link.message_count("evt-feed-departed--enrich.departed") == 0


async def test_event_that_leaves_and_is_dropped_is_said_to_be_sent() -> None:
    class Heard:
        name = "heard"
        heard: list[str] = []  # noqa: RUF012  for the test to read

        @event_handler("enrich", "enriched")
        async def enriched(self, tail: str) -> None:
            self.heard.append(tail)

    async with run_services(Enrich, Heard, middleware=[faults]) as bed:
        with faults.drop("enrich.enriched", nth=1, direction="outbound"):
            await bed.client.call("enrich", "announce", "N1")
            await bed.client.call("enrich", "announce", "N2")
        await eventually(lambda: Heard.heard == ["N2"])


async def test_delayed_call_takes_longer_by_the_clock() -> None:
    with DrivenClock() as clock:
        async with run_services(Registry, middleware=[faults], timeout=30) as bed:
            with faults.delay("registry.get", "10s"):
                calling = asyncio.create_task(bed.client.call("registry", "get", "N1"))
                await clock.advance("9s")
                assert not calling.done()
                await clock.advance("2s")
                assert await calling == "plane N1"


async def test_delay_and_failure_of_one_call_come_one_after_the_other() -> None:
    async with run_services(Registry, middleware=[faults]) as bed:
        with faults.delay("registry.get", (0.01, 0.02)), faults.fail("registry.*"):
            began = time.monotonic()
            with pytest.raises(RemoteError):
                await bed.client.call("registry", "get", "N1")
            assert time.monotonic() - began >= 0.01


async def test_dropped_tick_runs_nothing_and_the_next_comes() -> None:
    class Ticking:
        name = "ticking"
        ticks = 0

        @timer(60)
        async def tick(self) -> None:
            type(self).ticks += 1

    with DrivenClock() as clock:
        async with run_services(Ticking, middleware=[faults]):
            with faults.drop("ticking.tick", nth=[1, 2]):
                await clock.advance("3m")
    assert Ticking.ticks == 1


async def test_fault_that_met_no_call_fails_the_test_and_tells_what_it_could_have_met() -> None:
    async with run_services(Registry, middleware=[faults]) as bed:
        with pytest.raises(
            AssertionError, match=r'no call of "registri.get" .*registry.get \(inbound\)'
        ):
            with faults.fail("registri.get"):
                await bed.client.call("registry", "get", "N1")
        with faults.fail("registry.get", may_miss=True):
            pass
    faults.clear()
    with pytest.raises(AssertionError, match=r"run the services with middleware=\[faults\]"):
        with faults.fail("registry.get"):
            pass


async def test_blocks_own_error_comes_before_that_of_an_idle_fault() -> None:
    with pytest.raises(ZeroDivisionError):
        with faults.fail("registry.get"):
            raise ZeroDivisionError


async def test_faults_meet_a_client_too() -> None:
    async with run_services(Registry) as bed:
        async with Client(bed.broker, middleware=[faults]) as client:
            with faults.fail("registry.get", ConnectionError, direction="outbound"):
                with pytest.raises(ConnectionError):
                    await client.call("registry", "get", "N1")


# --- connections ------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["bed", "client", "link"])
async def test_disconnect_cuts_the_connection_and_the_link_comes_back(broker: str, by: str) -> None:
    async with run_services(Registry, broker=broker, timeout=20) as bed:
        link = {"bed": bed.runner.host.link, "client": bed.client.link, "link": bed.client.link}[by]
        states: list[LinkState] = []
        link.on_state_change(states.append)
        faults.disconnect({"bed": bed, "client": bed.client, "link": link}[by])

        await eventually(lambda: LinkState.RECONNECTING in states, 30)
        await eventually(lambda: link.state is LinkState.CONNECTED, 30)
        assert await bed.client.call("registry", "get", "N1") == "plane N1"


async def test_call_under_way_survives_a_cut(broker: str) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    class Slow:
        name = "slow"

        @rpc(idempotent=True)
        async def work(self) -> int:
            begun.set()
            await release.wait()
            return 7

    async with run_services(Slow, broker=broker, timeout=20) as bed:
        calling = asyncio.create_task(bed.client.call("slow", "work"))
        await begun.wait()
        faults.disconnect(bed)
        release.set()
        assert await calling == 7


def test_disconnect_of_something_else_says_what_it_takes() -> None:
    with pytest.raises(ConfigError, match="is no link; expected"):
        faults.disconnect(7)  # type: ignore[arg-type]


# --- by configuration -----------------------------------------------------------------------------------


def with_faults(*rules: dict[str, Any]) -> dict[str, Any]:
    entry = {"mycelia.policies.faults.ConfiguredFaults": {"seed": 1, "rules": list(rules)}}
    return {"mycelia": {"middleware": [entry]}}


async def test_configured_faults_hit_a_running_service(caplog: pytest.LogCaptureFixture) -> None:
    config = with_faults({"fail": "registry.get", "error": "ConnectionError", "nth": [2]})
    async with run_services(Registry, Enrich, config=config) as bed:
        assert await bed.client.call("registry", "get", "N1") == "plane N1"
        with pytest.raises(RemoteError, match="ConnectionError injected on purpose"):
            await bed.client.call("registry", "get", "N2")
        assert await bed.client.call("registry", "get", "N3") == "plane N3"

    assert "faults_are_injected" in caplog.text
    assert "never in production" in caplog.text


def test_wrong_rule_stops_the_start_and_is_named() -> None:
    with pytest.raises(ConfigError, match=r"ConfiguredFaults.*fault rule 1 .*from 0 to 1"):
        Runner(with_faults({"fail": "registry.get", "rate": 20}), [Registry])


def test_option_that_there_is_none_of_is_named_at_once() -> None:
    with pytest.raises(TypeError, match="unknown option rte; did you mean rate"):
        faults.delay("registry.get", by="1s", rte=0.5)  # type: ignore[call-arg]


async def test_faults_do_not_touch_what_a_mock_answers() -> None:
    """A replaced proxy calls nobody, so nothing leaves that a fault could meet."""

    def prepare(bed: Any) -> None:
        replace_dependencies(bed.container(Enrich), "registry").get.return_value = "plane"

    async with run_services(Enrich, middleware=[faults], prepare=prepare) as bed:
        with faults.fail("registry.get", direction="outbound", may_miss=True) as fault:
            assert await bed.client.call("enrich", "look_up", "N1") == "plane"
        assert fault.met == 0
