"""Mocks and other things in place of dependencies, in a container and in one worker alone."""

from typing import Any
from unittest.mock import call

import pytest

from mycelia import (
    DependencyProvider,
    Direction,
    EventDispatcher,
    Outcome,
    RpcProxy,
    Runner,
    Target,
    event_handler,
    rpc,
)
from mycelia.errors import ConfigError, RuntimeStateError, UnknownService
from mycelia.testing import (
    ServiceBed,
    replace_dependencies,
    restrict_entrypoints,
    run_services,
    worker_factory,
)


class Unwanted(DependencyProvider):
    """Must not be set up, nor bring middleware, where it is replaced."""

    def setup(self) -> None:
        raise AssertionError("set up")

    def middleware(self, direction: Direction, target: Target) -> Any:
        async def refuse(call: Any, next: Any) -> Outcome:
            raise AssertionError("asked")

        return refuse


class Orders:
    name = "orders"
    stock = RpcProxy("stock", timeout=1)
    emit = EventDispatcher()
    storage = Unwanted()

    @rpc
    async def order(self, sku: str) -> str:
        left = await self.stock.take(sku)
        await self.emit("ordered", {"sku": sku}, mandatory=True)
        return f"{left} left"

    @rpc
    def order_in_thread(self, sku: str) -> str:
        left = self.stock.take(sku)
        self.emit("ordered", {"sku": sku})
        return f"{left} left"

    @rpc
    async def order_in_a_hurry(self, sku: str) -> str:
        take = self.stock["take"].options(timeout=5)
        return f"{await take(sku)} left"

    @event_handler("stock", "taken")
    def taken(self, event: dict) -> None: ...


async def test_one_mock_serves_methods_that_await_and_methods_that_block() -> None:
    mocks: list[Any] = []

    def prepare(bed: ServiceBed) -> None:
        mocks.extend(replace_dependencies(bed.container(Orders), "stock", "emit", "storage"))
        mocks[0].take.return_value = 41
        mocks[0].take.options.return_value.return_value = 40

    async with run_services(Orders, prepare=prepare) as bed:
        assert await bed.client.call("orders", "order", "apple") == "41 left"
        assert await bed.client.call("orders", "order_in_thread", "pear") == "41 left"
        assert await bed.client.call("orders", "order_in_a_hurry", "fig") == "40 left"

    stock, emit, _ = mocks
    assert stock.take.call_args_list == [call("apple"), call("pear")]
    stock.take.options.assert_called_once_with(timeout=5)
    emit.assert_any_call("ordered", {"sku": "apple"}, mandatory=True)


async def test_error_of_a_mock_is_the_methods_error() -> None:
    def prepare(bed: ServiceBed) -> None:
        stock, _, _ = replace_dependencies(bed.container(Orders), "stock", "emit", "storage")
        stock.take.side_effect = UnknownService("stock")

    async with run_services(Orders, prepare=prepare) as bed:
        for method in ("order", "order_in_thread"):
            with pytest.raises(Exception, match='no service "stock"'):
                await bed.client.call("orders", method, "apple")


async def test_any_object_takes_a_dependencys_place_as_it_is() -> None:
    class FakeStock:
        async def take(self, sku: str) -> int:
            return 7

    emitted: list[Any] = []

    async def emit(*args: Any, **_: Any) -> None:
        emitted.append(args)

    def prepare(bed: ServiceBed) -> None:
        replace_dependencies(bed.container(Orders), stock=FakeStock(), emit=emit, storage=None)

    async with run_services(Orders, prepare=prepare) as bed:
        assert await bed.client.call("orders", "order", "apple") == "7 left"
    assert emitted == [("ordered", {"sku": "apple"})]


async def test_what_only_the_replaced_provider_used_is_not_started() -> None:
    def of_replies(runner: Runner) -> list[Any]:
        extensions = runner.container_of(Orders).extensions
        return [one for one in extensions if type(one).__name__ == "ReplyListener"]

    runner = Runner({"AMQP_URI": "memory://x"}, [Orders])
    assert len(of_replies(runner)) == 1
    replace_dependencies(runner.container_of(Orders), "stock")

    assert of_replies(runner) == []
    (other,) = Runner({"AMQP_URI": "memory://x"}, [Orders]).containers
    assert [type(one).__name__ for one in other.dependencies] == [
        *("RpcProxy", "EventDispatcher", "Unwanted"),
    ]


async def test_replacing_too_late_or_what_is_not_there_is_refused() -> None:
    class Bare:
        name = "bare"
        stock = RpcProxy("stock")

        @rpc
        def nothing(self) -> None: ...

    async with run_services(Bare) as bed:
        with pytest.raises(
            RuntimeStateError, match=r"has been started; dependencies are replaced before"
        ):
            replace_dependencies(bed.container(Bare), "stock")
        with pytest.raises(RuntimeStateError, match="entrypoints are restricted before"):
            restrict_entrypoints(bed.container(Bare), "nothing")

    (container,) = Runner({}, [Bare]).containers
    with pytest.raises(ConfigError, match="Bare has no dependency stok; it has stock"):
        replace_dependencies(container, "stok")
    with pytest.raises(ConfigError, match="stock: replaced by a mock and by a value"):
        replace_dependencies(container, "stock", stock=1)
    with pytest.raises(ConfigError, match="Bare has no entrypoint anything; it has nothing"):
        restrict_entrypoints(container, "anything")


async def test_restricted_service_listens_to_the_named_methods_only() -> None:
    def prepare(bed: ServiceBed) -> None:
        container = bed.container(Orders)
        replace_dependencies(container, "stock", "emit", "storage")
        restrict_entrypoints(container, "order")

    async with run_services(Orders, prepare=prepare) as bed:
        assert "taken" not in [lane.target.method for lane in bed.container(Orders).lanes]
        with pytest.raises(Exception, match="has no method"):
            await bed.client.call("orders", "order_in_thread", "apple")
        assert await bed.client.call("orders", "order", "apple")


# --- one worker alone ------------------------------------------------------------------------------------


async def test_factory_mocks_what_is_not_given_and_awaits_it() -> None:
    worker = worker_factory(Orders)
    worker.stock.take.return_value = 3  # type: ignore[attr-defined]

    assert await worker.order("apple") == "3 left"
    worker.emit.assert_called_once_with("ordered", {"sku": "apple"}, mandatory=True)  # type: ignore[attr-defined]


def test_factory_serves_the_def_methods_of_a_mixed_class_in_a_def_test() -> None:
    worker = worker_factory(Orders)
    worker.stock.take.return_value = 3  # type: ignore[attr-defined]

    assert worker.order_in_thread("apple") == "3 left"


async def test_factory_gives_a_class_of_def_methods_plain_mocks_in_any_test() -> None:
    class Blocking:
        name = "blocking"
        stock = RpcProxy("stock")

        @rpc
        def order(self) -> Any:
            return self.stock.take()

    worker = worker_factory(Blocking)
    worker.stock.take.return_value = 3  # type: ignore[attr-defined]

    assert worker.order() == 3


async def test_factory_injects_what_it_is_given_and_refuses_other_names() -> None:
    async def emit(*args: Any, **_: Any) -> None: ...

    worker = worker_factory(Orders, emit=emit)
    assert worker.emit is emit
    with pytest.raises(
        ConfigError, match="Orders has no dependency stok; it has emit, stock, storage"
    ):
        worker_factory(Orders, stok=1)


def test_forgotten_await_of_a_mock_is_noticed() -> None:
    class Forgetful:
        name = "forgetful"
        emit = EventDispatcher()

        @rpc
        async def order(self) -> None:
            self.emit("ordered", {})  # type: ignore[unused-awaitable,unused-coroutine]

    worker = worker_factory(Forgetful)
    coroutine = worker.emit("ordered", {})

    assert type(coroutine).__name__ == "coroutine"
    coroutine.close()  # type: ignore[attr-defined]
