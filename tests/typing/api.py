"""What type checkers see of the public names. Checked, not run: `mypy tests/typing`."""

from typing import Any, assert_type

from mycelia import (
    BlockingClient,
    Client,
    Config,
    EventDispatcher,
    Logger,
    Publisher,
    RpcProxy,
    event_handler,
    rpc,
)
from mycelia.clients import ServiceProxy
from mycelia.testing import eventually, make_worker


class Planes:
    name = "planes"
    other = RpcProxy("other", timeout=2)
    emit = EventDispatcher()
    publish = Publisher(routing_key="imports")
    speed = Config("feed.speed", float, default=1.0)
    log = Logger()

    @rpc
    async def get(self, tail_number: str) -> dict[str, int]:
        assert_type(self.other, ServiceProxy)
        assert_type(await self.other.any_method(1), Any)
        assert_type(self.other.any_method.call_async(1).result(), Any)
        assert_type(await self.emit("seen", {}), Any)
        assert_type(self.speed, float)
        self.log.info("seen", tail_number=tail_number)
        return {"seats": 2}

    @rpc(concurrency=5, expected_exceptions=(KeyError,))
    def count(self) -> int:
        return 1

    @event_handler("feed", "departed", concurrency=64)
    async def departed(self, flight: dict[str, Any]) -> None: ...


async def decorated_methods_keep_their_types(planes: Planes) -> None:
    assert_type(await planes.get("N1"), dict[str, int])
    assert_type(planes.count(), int)
    assert_type(make_worker(Planes), Planes)


async def clients() -> None:
    async with Client("memory://") as client:
        assert_type(client, Client)
        assert_type(await client.call("planes", "get", "N1", timeout=2), Any)
    with BlockingClient("memory://") as blocking:
        assert_type(blocking, BlockingClient)


async def conditions() -> None:
    async def counted() -> int:
        return 1

    assert_type(await eventually(lambda: "there"), str)
    assert_type(await eventually(counted), int)
