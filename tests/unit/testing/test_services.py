"""What users test their services with."""

import pytest

from mycelia import EventDispatcher, RpcProxy, event_handler, rpc
from mycelia.errors import ConfigError
from mycelia.testing import eventually, make_worker, run_services


class Greeter:
    name = "greeter"
    names = RpcProxy("names")
    emit = EventDispatcher()

    @rpc
    async def greet(self, key: int) -> str:
        name = await self.names.get(key)
        await self.emit("greeted", name)
        return f"Hello, {name}!"


class Names:
    name = "names"
    greeted: list[str] = []  # noqa: RUF012  shared on purpose: instances are made for each worker

    @rpc
    def get(self, key: int) -> str:
        return ["Ada", "Grace"][key]

    @event_handler("greeter", "greeted")
    def count(self, name: str) -> None:
        self.greeted.append(name)


async def test_services_run_and_call_each_other_inside_a_test() -> None:
    Names.greeted.clear()
    async with run_services(Greeter, Names) as bed:
        assert await bed.client.call("greeter", "greet", 1) == "Hello, Grace!"
        await eventually(lambda: Names.greeted == ["Grace"])
        assert bed.container(Names).service_name == "names"


async def test_beds_do_not_see_each_other() -> None:
    async with run_services(Names) as one, run_services(Names) as other:
        assert one.broker != other.broker
        assert await one.client.call("names", "get", 0) == "Ada"


async def test_a_worker_alone_takes_what_it_is_given() -> None:
    emitted: list[object] = []

    class FakeNames:
        async def get(self, key: int) -> str:
            return "Ada"

    async def emit(event_type: str, payload: object) -> None:
        emitted.append((event_type, payload))

    worker = make_worker(Greeter, names=FakeNames(), emit=emit)

    assert await worker.greet(0) == "Hello, Ada!"
    assert emitted == [("greeted", "Ada")]


async def test_a_dependency_that_was_not_given_says_so_when_it_is_used() -> None:
    worker = make_worker(Greeter)

    with pytest.raises(ConfigError, match=r"make_worker\(Greeter, names=…\)"):
        await worker.greet(0)


def test_a_dependency_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no dependency namse; it has emit, names"):
        make_worker(Greeter, namse=None)
