"""Settings that change while services run: whoever has copied one is told."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from tests.runtime.conftest import Invoke, Serve

from mycelia import Client, EventDispatcher, RpcProxy, Runner, event_handler, rpc
from mycelia.errors import ConfigError, MyceliaError, RpcTimeout
from mycelia.runtime import Settings
from mycelia.runtime.extensions import Extension
from mycelia.testing import eventually


class Gate:
    """Counts those inside, and lets them out."""

    def __init__(self) -> None:
        self.inside = 0
        self.opened = asyncio.Event()

    async def pass_through(self) -> None:
        self.inside += 1
        await self.opened.wait()


def gated(gate: Gate) -> type:
    class Gated:
        name = "gated"
        emit = EventDispatcher()

        @event_handler("feed", "departed")
        async def on_departed(self, payload: Any) -> None:
            await gate.pass_through()

        @rpc
        async def hold(self, value: Any = None) -> Any:
            await gate.pass_through()
            return value

        @rpc
        async def echo(self, value: Any = None) -> Any:
            return value

    return Gated


def told(runner: Runner, service: str = "gated") -> Any:
    return runner.statistics().services[service]


async def test_a_higher_limit_starts_what_waits_and_fetches_more(
    serve: Serve, client: Client
) -> None:
    gate = Gate()
    runner = await serve(gated(gate), config={"max_workers": 1})
    for n in range(10):
        await client.publish("feed", "departed", n)
    await eventually(lambda: told(runner).lanes["gated.on_departed"].waiting == 1)
    assert gate.inside == 1

    runner.host.change_settings({"max_workers": 6})

    await eventually(lambda: gate.inside == 6)
    await eventually(lambda: told(runner).extensions["EventHandler:on_departed"].prefetch == 12)
    assert told(runner).lanes["gated.on_departed"].limit == 6
    assert told(runner).max_workers == 6
    gate.opened.set()


async def test_a_lower_limit_lets_running_workers_end(serve: Serve, client: Client) -> None:
    gate = Gate()
    runner = await serve(gated(gate), config={"max_workers": 4})
    for n in range(8):
        await client.publish("feed", "departed", n)
    await eventually(lambda: gate.inside == 4)

    runner.host.change_settings({"max_workers": 1})
    await eventually(lambda: told(runner).extensions["EventHandler:on_departed"].prefetch == 2)

    assert told(runner).active_workers == 4
    gate.opened.set()
    await eventually(lambda: told(runner).lanes["gated.on_departed"].finished == 8)


async def test_the_window_of_requests_follows_the_limit(serve: Serve) -> None:
    runner = await serve(gated(Gate()), config={"mycelia": {"async_concurrency": 5}})
    assert told(runner).extensions["RpcConsumer"].prefetch == 20

    runner.host.change_settings({"mycelia": {"async_concurrency": 8}})
    await eventually(lambda: told(runner).extensions["RpcConsumer"].prefetch == 32)
    runner.host.change_settings({"mycelia": {"async_concurrency": 2}})

    await eventually(lambda: told(runner).extensions["RpcConsumer"].prefetch == 8)


async def test_many_changes_at_once_end_with_the_last(serve: Serve) -> None:
    runner = await serve(gated(Gate()))

    for n in range(1, 51):
        runner.host.change_settings({"max_workers": n})

    await eventually(lambda: told(runner).extensions["EventHandler:on_departed"].prefetch == 100)
    assert told(runner).lanes["gated.on_departed"].limit == 50


async def test_a_proxy_that_has_called_before_has_the_new_timeout(
    serve: Serve, invoke: Invoke
) -> None:
    gate = Gate()

    class Caller:
        name = "caller"
        back = RpcProxy("gated")
        patient = RpcProxy("gated", timeout=20)

        @rpc
        async def ask(self, method: str) -> str | None:
            try:
                return await self.back[method]("answered")
            except RpcTimeout:
                return "too late"

        @rpc
        def ask_in_thread(self, method: str) -> str | None:
            try:
                return self.back[method]("answered")
            except RpcTimeout:
                return "too late"

        @rpc
        async def ask_patiently(self) -> str:
            return await self.patient.hold("answered")

    runner = await serve(gated(gate), Caller)
    for method in ("ask", "ask_in_thread"):
        assert await invoke("caller", method, "echo") == "answered"

    runner.host.change_settings({"mycelia": {"rpc_timeout": 0.05}})

    for method in ("ask", "ask_in_thread"):  # the client waits five seconds, not thirty
        assert await invoke("caller", method, "hold") == "too late"
    patient = asyncio.ensure_future(invoke("caller", "ask_patiently"))
    await eventually(lambda: gate.inside >= 3)
    gate.opened.set()
    assert await patient == "answered"


async def test_handlers_get_the_new_timeout(
    serve: Serve, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    runner = await serve(gated(gate))
    await client.publish("feed", "departed", 1)
    await eventually(lambda: gate.inside == 1)

    runner.host.change_settings({"mycelia": {"handler_timeout": 0.05}})

    await eventually(lambda: told(runner).lanes["gated.on_departed"].timed_out == 1)
    assert "HandlerTimeout: gated.on_departed: not done after 0.05 s" in caplog.text


async def test_slow_workers_are_said_by_the_new_bound(
    serve: Serve, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    runner = await serve(gated(gate))
    await client.publish("feed", "departed", 1)
    await eventually(lambda: gate.inside == 1)

    runner.host.change_settings({"mycelia": {"slow_after": 0.05}})

    await eventually(lambda: "worker_slow" in caplog.text)


async def test_larger_bodies_are_decoded_from_then_on(serve: Serve, invoke: Invoke) -> None:
    runner = await serve(gated(Gate()), config={"mycelia": {"max_body_bytes": 1000}})
    body = "x" * 2000
    with pytest.raises(MyceliaError, match="1000"):
        await invoke("gated", "echo", body)

    runner.host.change_settings({"mycelia": {"max_body_bytes": 10_000}})

    assert await invoke("gated", "echo", body) == body


async def test_listeners_are_told_of_old_and_new_though_one_raises(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    runner = await serve(gated(Gate()))
    heard: list[tuple[float, float]] = []

    def bad(old: Settings, new: Settings) -> None:
        raise RuntimeError("a listener's own")

    def good(old: Settings, new: Settings) -> None:
        heard.append((old.mycelia.slow_after, new.mycelia.slow_after))

    runner.host.on_change(bad)
    remove = runner.host.on_change(good)
    runner.host.change_settings({"mycelia": {"slow_after": 10}})
    runner.host.change_settings({"mycelia": {"slow_after": 10.0}})
    remove()
    remove()
    runner.host.change_settings({"mycelia": {"slow_after": 20}})

    assert heard == [(30.0, 10.0)]
    assert runner.host.settings.mycelia.slow_after == 20
    assert caplog.text.count("settings_listener_failed") == 2


async def test_an_extension_that_cannot_follow_leaves_the_others(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    class Bad(Extension):
        def reconfigure(self, old: Settings, new: Settings) -> None:
            raise RuntimeError("an extension's own")

    class Emitter(EventDispatcher):
        bad = Bad()

    class Service(gated(Gate())):  # type: ignore[misc]
        name = "gated"
        announce = Emitter()

    runner = await serve(Service)

    runner.host.change_settings({"max_workers": 3})

    await eventually(lambda: told(runner).extensions["EventHandler:on_departed"].prefetch == 6)
    assert caplog.text.count("extension_hook_failed") == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"AMQP_URI": "memory://elsewhere"}, "AMQP_URI cannot change"),
        ({"mycelia": {"connect_timeout": 1, "grace": 3}}, "mycelia.connect_timeout cannot change"),
        (
            {"HEARTBEAT": 3, "mycelia": {"middleware": ["a.b"]}},
            "HEARTBEAT, mycelia.middleware cannot change",
        ),
        ({"colour": "red"}, "colour"),
        ({"mycelia": {"rpc_timeuot": 1}}, "rpc_timeout"),
        ({"mycelia": {"rpc_timeout": "long"}}, "mycelia.rpc_timeout"),
        ({"mycelia": {"rpc_timeout": -1}}, "rpc_timeout"),
        ({"mycelia": 5}, "mycelia"),
        ({"max_workers": 0}, "max_workers"),
        ({"max_workers": "many"}, "max_workers"),
    ],
)
async def test_what_cannot_change_is_named_and_nothing_changes(
    serve: Serve, changes: dict[str, Any], named: str
) -> None:
    runner = await serve(gated(Gate()))
    before, heard = runner.host.settings, []
    runner.host.on_change(lambda old, new: heard.append(new))

    with pytest.raises(ConfigError, match=named):
        runner.host.change_settings(changes)

    assert runner.host.settings is before
    assert heard == []


async def test_a_change_during_the_start_reaches_what_was_set_up_before_it(uri: str) -> None:
    class Slow(Extension):
        def start(self) -> None:
            assert self.container is not None
            self.container.host.change_settings({"max_workers": 3})

    class Emitter(EventDispatcher):
        slow = Slow()

    class Service(gated(Gate())):  # type: ignore[misc]
        name = "gated"
        announce = Emitter()

    async with Runner({"AMQP_URI": uri, "max_workers": 1}, [Service]) as runner:
        await eventually(lambda: told(runner).extensions["EventHandler:on_departed"].prefetch == 6)
        assert {lane.limit for lane in told(runner).lanes.values()} == {3}


async def test_a_stopped_service_is_told_nothing(uri: str) -> None:
    runner = Runner({"AMQP_URI": uri}, [gated(Gate())])
    await runner.start(5)
    await runner.stop()

    runner.host.change_settings({"max_workers": 3})

    assert told(runner).lanes["gated.hold"].limit == 100


async def test_the_log_level_follows() -> None:
    from mycelia.providers import follow_log_level

    root = logging.getLogger()
    before = root.level
    old = Settings()
    try:
        follow_log_level(old, old.changed({"mycelia": {"log_level": "ERROR"}}))
        assert root.level == logging.ERROR
    finally:
        root.setLevel(before)
