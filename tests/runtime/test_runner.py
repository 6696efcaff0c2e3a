"""The runner and its containers: several services, shared extensions, mistakes in words, stopping."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest
from tests.runtime.conftest import Invoke, Serve

from mycelia import (
    DependencyProvider,
    Entrypoint,
    Extension,
    Runner,
    SharedExtension,
    event_handler,
    rpc,
    timer,
)
from mycelia.amqp import Link
from mycelia.errors import ConfigError, RemoteError, RuntimeStateError
from mycelia.testing import DrivenClock, eventually


class Pool(SharedExtension):
    """Counts its life cycle."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def setup(self) -> None:
        self.log.append("setup")

    async def start(self) -> None:
        self.log.append("start")

    def stop(self) -> None:
        self.log.append("stop")


LOG: list[str] = []


class UsesPool(DependencyProvider):
    pool = Pool(LOG)

    def get_dependency(self, worker_ctx: Any) -> int:
        return id(self.pool)


class First:
    name = "first"
    a: Any = UsesPool()
    b: Any = UsesPool()

    @rpc
    async def pools(self) -> list[int]:
        return [self.a, self.b]


class Second:
    name = "second"
    a: Any = UsesPool()

    @rpc
    def pools(self) -> list[int]:
        return [self.a]


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    LOG.clear()


async def test_shared_extension_is_one_for_each_container(serve: Serve, invoke: Invoke) -> None:
    runner = await serve(First, Second)
    assert LOG == ["setup", "start"] * 2

    first = await invoke("first", "pools")
    second = await invoke("second", "pools")

    assert first[0] == first[1]
    assert first[0] != second[0]
    await runner.stop()
    assert LOG == ["setup", "start"] * 2 + ["stop"] * 2


async def test_services_of_one_runner_share_a_link(serve: Serve) -> None:
    runner = await serve(First, Second)

    assert runner.service_names == ["first", "second"]
    assert runner.container_of(Second).host is runner.container_of(First).host
    with pytest.raises(RuntimeStateError, match="Pool is not run by this runner"):
        runner.container_of(Pool)


def make_named(value: Any) -> type:
    class Named:
        name = value

        @rpc
        def method(self) -> None: ...

    return Named


class Nameless:
    @rpc
    def method(self) -> None: ...


@pytest.mark.parametrize(
    ("services", "config", "message"),
    [
        ([First, make_named("first")], {}, 'two services are named "first"'),
        ([First, First], {}, 'two services are named "first"'),
        ([], {}, "no service to run"),
        ([Nameless], {}, r'Nameless .* has no name. Give it one: `name = "nameless"`'),
        ([make_named(7)], {}, "`name` must be text, got 7"),
        ([make_named("")], {}, "`name` must be text, got ''"),
        ([First], {"max_workers": "ten"}, 'key "max_workers": expected .*int.*ten'),
        ([First], {"max_workers": 0}, "max_workers must be at least 1"),
        ([First], {"ACCEPT": "json"}, 'key "ACCEPT": expected .*array.*json'),
        ([First], {"AMQP_URI": 7}, 'key "AMQP_URI": expected `str`, got `int`'),
        ([First], {"AMQP_URI": "redis://here"}, 'no link speaks "redis"'),
        ([First], {"serializer": "yamml"}, 'no serializer "yamml"'),
        (
            [First],
            {"mycelia": {"graze": 3}},
            'key "mycelia.graze" is unknown. Did you mean "grace"',
        ),
        (
            [First],
            {"mycelia": {"flows": {"stat": "here"}}},
            'key "mycelia.flows.stat" is unknown. Did you mean "state"',
        ),
        ([First], {"mycelia": {"grace": "long"}}, 'key "mycelia.grace": expected `float`'),
        ([First], {"mycelia": []}, 'key "mycelia": expected `object`, got `array`'),
        ([First], {"mycelia": {"rpc_timeout": 0}}, "rpc_timeout must be greater than 0"),
        ([First], {"mycelia": {"event_queue_type": "fast"}}, 'must be "quorum" or "classic"'),
    ],
)
async def test_mistake_in_services_or_configuration_is_told_in_words(
    uri: str, services: list[type], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        await Runner({"AMQP_URI": uri, **config}, services).start(timeout=1)


async def test_users_own_keys_are_left_alone(serve: Serve) -> None:
    runner = await serve(First, config={"anything": object(), "mycelia": None})

    assert runner.containers[0].started


async def test_failing_setup_stops_what_was_set_up_and_raises_the_first_error(uri: str) -> None:
    stopped: list[str] = []

    class Good(DependencyProvider):
        def stop(self) -> None:
            stopped.append("good")

    class Bad(DependencyProvider):
        async def setup(self) -> None:
            raise OSError("no database")

    class Service:
        name = "service"
        good = Good()
        bad = Bad()

        @rpc
        def method(self) -> None: ...

    runner = Runner({"AMQP_URI": uri}, [First, Service])

    with pytest.raises(OSError, match="no database"):
        await runner.start(timeout=1)

    assert stopped == ["good"]
    assert LOG == ["setup", "start", "stop"]


async def test_failing_stop_is_logged_and_the_rest_stops(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    class Bad(DependencyProvider):
        def stop(self) -> None:
            raise OSError("cannot stop")

    class Service:
        name = "service"
        bad = Bad()
        a = UsesPool()

        @rpc
        def method(self) -> None: ...

    runner = await serve(Service)

    await runner.stop()

    assert "extension_hook_failed hook=stop service=service" in caplog.text
    assert LOG[-1] == "stop"


async def test_runner_starts_once_and_stops_as_often_as_asked(serve: Serve) -> None:
    runner = await serve(First)

    with pytest.raises(RuntimeStateError, match="has been started"):
        await runner.start()
    await asyncio.gather(runner.stop(), runner.stop())
    await runner.stop()
    await runner.wait()

    assert not runner.containers[0].started


async def test_runner_that_was_not_started_cannot_be_waited_for(uri: str) -> None:
    with pytest.raises(RuntimeStateError, match="has not been started"):
        await Runner({"AMQP_URI": uri}, [First]).wait()


async def test_start_given_up_leaves_nothing_running(uri: str) -> None:
    reached = asyncio.Event()

    class Endless(Extension):
        async def setup(self) -> None:
            reached.set()
            await asyncio.Event().wait()

    class Needs(DependencyProvider):
        endless = Endless()

    class Service:
        name = "service"
        needs = Needs()

        @rpc
        def method(self) -> None: ...

    runner = Runner({"AMQP_URI": uri}, [Service])
    starting = asyncio.ensure_future(runner.start())
    await reached.wait()
    starting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await starting
    await runner.wait()


class Opening(DependencyProvider):
    """Takes its time to start, while its neighbours are served already."""

    begun: asyncio.Event
    gate: asyncio.Event

    async def start(self) -> None:
        await asyncio.Event().wait()


class Early:
    name = "early"
    opening = Opening()

    @timer(interval=3600, eager=True)
    async def work(self) -> None:
        Opening.begun.set()
        await Opening.gate.wait()
        LOG.append("finished")


@pytest.mark.parametrize("is_killed", [False, True], ids=["stop", "stop, then kill"])
async def test_worker_that_runs_when_the_start_is_given_up_has_its_grace(
    uri: str, caplog: pytest.LogCaptureFixture, is_killed: bool
) -> None:
    Opening.begun, Opening.gate = asyncio.Event(), asyncio.Event()
    runner = Runner({"AMQP_URI": uri}, [Early, First])  # the second one has not begun at all
    starting = asyncio.ensure_future(runner.start())
    await Opening.begun.wait()

    caplog.set_level(logging.INFO)
    starting.cancel()
    await eventually(lambda: "service_draining" in caplog.text)
    if is_killed:
        await runner.kill()
    else:
        Opening.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await runner.wait()

    assert ([] if is_killed else ["finished"]) == LOG
    assert "extension_hook_failed" not in caplog.text


# --- stopping --------------------------------------------------------------------------------------


class Slow:
    name = "slow"
    gate: asyncio.Event
    begun: int
    ended: int

    @rpc(concurrency=1)
    async def work(self, value: int) -> int:
        type(self).begun += 1
        await self.gate.wait()
        type(self).ended += 1
        return value

    @event_handler("source", "happened", concurrency=1)
    async def happened(self, payload: int) -> None:
        await self.work(payload)


@pytest.fixture
async def gate() -> asyncio.Event:
    Slow.gate, Slow.begun, Slow.ended = asyncio.Event(), 0, 0
    return Slow.gate


async def test_stop_lets_the_running_worker_finish_and_its_reply_leave(
    serve: Serve, invoke: Invoke, link: Link, gate: asyncio.Event
) -> None:
    runner = await serve(Slow)
    calls = [asyncio.ensure_future(invoke("slow", "work", n)) for n in range(2)]
    await eventually(lambda: Slow.begun == 1)

    stopping = asyncio.ensure_future(runner.stop(grace=30))
    await eventually_ready(link, "rpc-slow", 1)  # the one that had not begun goes back
    gate.set()
    await stopping

    assert await calls[0] == 0
    assert Slow.begun == 1
    await serve(Slow)
    assert await calls[1] == 1


async def test_grace_over_puts_the_unfinished_message_back(
    serve: Serve, client: Any, link: Link, gate: asyncio.Event, caplog: pytest.LogCaptureFixture
) -> None:
    runner = await serve(Slow)
    await client.publish("source", "happened", 1)
    await eventually(lambda: Slow.begun == 1)

    await runner.stop(grace=0.05)

    assert Slow.ended == 0
    assert "grace_over service=slow unfinished=1" in caplog.text
    await eventually_ready(link, "evt-source-happened--slow.happened", 1)


async def test_grace_counts_from_the_stop_however_long_an_entrypoint_takes_to_end(
    invoke: Invoke, uri: str
) -> None:
    """Who sent SIGTERM kills after 30 s: the 3 s that a broker without an answer holds up each entrypoint are not on top."""
    begun = asyncio.Event()
    lasted: list[float] = []

    class HeldUp(Entrypoint):
        async def stop(self) -> None:
            await asyncio.sleep(3)

    class Endless:
        name = "endless"

        @rpc
        async def work(self) -> None:
            begun.set()
            since = time.monotonic()
            try:
                await asyncio.Event().wait()
            finally:
                lasted.append(time.monotonic() - since)

        @HeldUp.decorator
        def never(self) -> None: ...

    runner = Runner({"AMQP_URI": uri}, [Endless])
    await runner.start(5)
    call = asyncio.ensure_future(invoke("endless", "work", timeout=300))
    await begun.wait()
    with DrivenClock() as clock:
        stopping = asyncio.ensure_future(runner.stop(grace=20))
        await clock.advance("1m")
        await stopping
    call.cancel()

    assert lasted == [pytest.approx(20, abs=1)]


async def test_kill_during_a_graceful_stop_does_not_wait_for_its_grace(
    serve: Serve, client: Any, link: Link, gate: asyncio.Event
) -> None:
    runner = await serve(Slow)
    await client.publish("source", "happened", 1)
    await eventually(lambda: Slow.begun == 1)
    stopping = asyncio.ensure_future(runner.stop(grace=60))
    await asyncio.sleep(0)

    async with asyncio.timeout(5):
        await runner.kill()
        await stopping

    await eventually_ready(link, "evt-source-happened--slow.happened", 1)


async def test_kill_starts_nothing_that_waited_for_a_slot(
    serve: Serve, client: Any, link: Link, gate: asyncio.Event
) -> None:
    runner = await serve(Slow)
    for n in range(2):  # as many as are prefetched
        await client.publish("source", "happened", n)
    await eventually(lambda: runner.containers[0].lanes[0].waiting == 1)

    await runner.kill()

    assert Slow.begun == 1
    await eventually_ready(link, "evt-source-happened--slow.happened", 2)


async def test_handler_that_catches_its_cancellation_cannot_hold_up_the_stop(
    serve: Serve, invoke: Invoke, caplog: pytest.LogCaptureFixture
) -> None:
    release = asyncio.Event()

    class Deaf:
        name = "deaf"

        @rpc
        async def work(self) -> None:
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue

    caplog.set_level(logging.WARNING)
    runner = await serve(Deaf)
    call = asyncio.ensure_future(invoke("deaf", "work", timeout=0.2))
    await eventually(lambda: runner.containers[0].lanes[0].active == 1)

    async with asyncio.timeout(5):
        await runner.stop(grace=0.05)

    assert "worker_abandoned call=deaf.work" in caplog.text
    release.set()
    await asyncio.wait([call])
    assert call.exception() is not None


async def test_calls_to_a_stopped_service_in_the_same_process_wait_for_the_next(
    serve: Serve, invoke: Invoke
) -> None:
    runner = await serve(First)
    await runner.stop()
    call = asyncio.ensure_future(invoke("first", "pools"))

    await serve(First)

    assert len(await call) == 2


async def test_error_in_one_call_does_not_stop_the_service(serve: Serve, invoke: Invoke) -> None:
    class Fails:
        name = "fails"

        @rpc
        def work(self) -> None:
            raise MemoryError

    runner = await serve(Fails)
    for _ in range(20):
        with pytest.raises(RemoteError, match="MemoryError"):
            await invoke("fails", "work")

    assert runner.containers[0].started


async def eventually_ready(link: Link, queue: str, count: int) -> None:
    async def matches() -> bool:
        return await link.message_count(queue) == count

    await eventually(matches, what=f"{count} messages ready in {queue}")


async def test_wrong_type_of_a_key_stops_only_those_who_use_it() -> None:
    class Ticks:
        name = "ticks"

        @timer(1000)
        async def tick(self) -> None: ...

    class Hears:
        name = "hears"

        @event_handler("source", "happened")
        async def on_happened(self, payload: Any) -> None: ...

    config = {"AMQP_URI": ["x"], "WEB_SERVER_ADDRESS": {}, "HEARTBEAT": "often"}
    runner = Runner(config, [Ticks])
    await runner.start(timeout=5)
    await runner.stop(grace=0)

    with pytest.raises(ConfigError, match=r"AMQP_URI|HEARTBEAT"):
        await Runner(config, [Hears]).start(timeout=5)
