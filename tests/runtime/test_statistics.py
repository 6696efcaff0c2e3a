"""One tree of statistics: everything that is counted is in it, and it is plain JSON."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import msgspec
import pytest
from tests.runtime.conftest import Invoke, Serve

from mycelia import BlockingClient, Client, RpcProxy, SharedDependency, event_handler, rpc, timer
from mycelia.clients.client import ClientStatistics
from mycelia.errors import RuntimeStateError
from mycelia.runtime import Extension
from mycelia.testing import eventually

released = asyncio.Event()


@pytest.fixture(autouse=True)
def _held() -> None:
    global released
    released = asyncio.Event()


class Mixed:
    name = "mixed"
    open_gate = threading.Event()
    other = RpcProxy("mixed")

    @rpc
    async def double(self, n: int) -> int:
        return 2 * n

    @rpc
    def blocked(self) -> None:
        self.open_gate.wait(10)

    @rpc
    async def nested(self) -> None:
        await self.other.held()

    @rpc
    async def held(self) -> None:
        await released.wait()

    @event_handler("feed", "departed")
    async def on_departed(self, payload: Any) -> None:
        raise ValueError("cannot be handled")

    @timer(0.01)
    async def tick(self) -> None:
        pass


async def test_the_tree_is_plain_json(serve: Serve, invoke: Invoke) -> None:
    runner = await serve(Mixed)
    await invoke("mixed", "double", 1)

    tree = json.loads(json.dumps(msgspec.to_builtins(runner.statistics())))

    assert tree["link_state"] == "connected"
    assert tree["link"]["delivered"] >= 1
    assert tree["services"]["mixed"]["lanes"]["mixed.double"]["finished"] == 1
    assert set(tree["services"]["mixed"]["extensions"]) == {
        "DeadLetters",
        "EventHandler:on_departed",
        "ReplyListener",
        "RpcConsumer",
        "Timer:tick",
    }


async def test_every_extension_tells_what_it_counts(
    serve: Serve, client: Client, invoke: Invoke
) -> None:
    runner = await serve(Mixed)
    for _ in range(3):
        await client.publish("feed", "departed", {})
    call = asyncio.ensure_future(invoke("mixed", "nested"))

    await eventually(
        lambda: runner.statistics().services["mixed"].extensions["DeadLetters"].buried == 3
    )
    await eventually(
        lambda: runner.statistics().services["mixed"].extensions["Timer:tick"].ticks > 2
    )

    await eventually(
        lambda: runner.statistics().services["mixed"].extensions["ReplyListener"].pending == 1
    )
    released.set()
    await call
    told = runner.statistics().services["mixed"]
    assert told.extensions["ReplyListener"].pending == 0
    assert told.extensions["EventHandler:on_departed"].unsettled == 0
    assert told.extensions["RpcConsumer"].queue == "rpc-mixed"
    assert told.lanes["mixed.on_departed"].failed == 3
    assert told.extensions["DeadLetters"].under_way == 0


async def test_threads_are_there_once_a_def_method_has_run(serve: Serve, invoke: Invoke) -> None:
    Mixed.open_gate.clear()
    runner = await serve(Mixed)
    call = asyncio.ensure_future(invoke("mixed", "blocked"))
    container = runner.container_of(Mixed)

    await eventually(lambda: container.statistics().threads.busy == 1)

    assert container.statistics().threads.started == 1
    assert container.statistics().active_workers >= 1
    Mixed.open_gate.set()
    await call
    assert container.statistics().threads.busy == 0


async def test_two_handlers_of_one_method_are_told_apart(serve: Serve, client: Client) -> None:
    class Twice:
        name = "twice"

        @event_handler("feed", "departed")
        @event_handler("feed", "arrived")
        async def moved(self, payload: Any) -> None:
            pass

    runner = await serve(Twice)

    told = runner.statistics().services["twice"]

    assert sorted(told.lanes) == ["twice.moved", "twice.moved#2"]
    queues = {record.queue for name, record in told.extensions.items() if "moved" in name}
    assert queues == {"evt-feed-departed--twice.moved", "evt-feed-arrived--twice.moved"}


async def test_an_extension_of_the_users_own_is_part_of_the_tree(serve: Serve) -> None:
    class CacheStatistics(msgspec.Struct, frozen=True):
        hits: int

    class Cache(SharedDependency):
        def statistics(self) -> CacheStatistics:
            return CacheStatistics(hits=7)

    class Cached:
        name = "cached"
        cache = Cache()

        @rpc
        async def get(self) -> None:
            pass

    runner = await serve(Cached)

    assert runner.statistics().services["cached"].extensions["Cache:cache"] == CacheStatistics(7)
    assert Extension().statistics() is None


async def test_a_client_tells_of_its_link_and_its_calls(serve: Serve, uri: str) -> None:
    await serve(Mixed)
    client = Client(uri, timeout=5)
    with pytest.raises(RuntimeStateError):
        client.statistics()

    async with client:
        assert client.statistics().calls is None
        call = asyncio.ensure_future(client.call("mixed", "held"))
        await eventually(lambda: (calls := client.statistics().calls) and calls.pending == 1)
        released.set()
        await call
        assert client.statistics().calls.pending == 0
        assert client.statistics().link_state == "connected"
        assert json.dumps(msgspec.to_builtins(client.statistics()))


async def test_a_blocking_client_tells_the_same(serve: Serve, uri: str) -> None:
    await serve(Mixed)
    client = BlockingClient(uri, timeout=5)
    with pytest.raises(RuntimeStateError, match="the client is not open"):
        client.statistics()

    def use() -> ClientStatistics:
        with client:
            client.publish("tower", "closed", 1)
            client.call("mixed", "double", 1)
            return client.statistics()

    told = await asyncio.to_thread(use)

    assert told.link_state == "connected"
    assert told.link.confirmed == 1
    assert told.calls is not None
    assert told.calls.pending == 0
