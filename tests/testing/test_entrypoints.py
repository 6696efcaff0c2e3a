"""An entrypoint run by hand, and waiting for what a service has handled."""

import asyncio
import threading
from typing import Any

import pytest

from mycelia import (
    Ack,
    DeadLetter,
    DependencyProvider,
    Outcome,
    Redeliver,
    Reply,
    Runner,
    event_handler,
    get_current_call,
    http,
    rpc,
    timer,
)
from mycelia.errors import ConfigError, IncorrectSignature, RuntimeStateError
from mycelia.runtime.middleware import Around
from mycelia.testing import (
    EntrypointWaiterTimeout,
    entrypoint_hook,
    entrypoint_waiter,
    eventually,
    run_services,
)


class Steps(DependencyProvider):
    """Notes what becomes of each worker."""

    def setup(self) -> None:
        self.seen: list[Any] = []

    def get_dependency(self, worker_ctx: Any) -> list[Any]:
        return self.seen

    def worker_result(self, worker_ctx: Any, result: Any = None, exc_info: Any = None) -> None:
        self.seen.append((result, exc_info and exc_info[0]))

    def worker_teardown(self, worker_ctx: Any) -> None:
        self.seen.append("torn down")


class Invoices:
    name = "invoices"
    steps = Steps()

    @event_handler("stock", "taken")
    def taken(self, event: dict) -> str:
        return event["sku"]

    @rpc
    async def total(self, count: int, price: int = 2) -> int:
        return count * price

    @rpc
    async def language(self) -> Any:
        call = get_current_call()
        assert call is not None
        return call.context.get("language"), call.deadline is not None

    @timer(3600)
    async def remind(self) -> str:
        return "reminded"

    @http("GET", "/invoices/{number:int}")
    def page(self, request: Any, number: int) -> dict:
        return {"number": number}

    @rpc(concurrency=1)
    async def wait(self) -> None:
        await asyncio.Event().wait()

    def no_entrypoint(self) -> None: ...


HTTP = {"WEB_SERVER_ADDRESS": "127.0.0.1:0"}


@pytest.mark.parametrize(
    ("method", "arguments", "result"),
    [
        ("taken", ({"sku": "apple"},), "apple"),
        ("total", (3,), 6),
        ("remind", (), "reminded"),
        ("page", (None, 7), {"number": 7}),
    ],
)
async def test_hook_runs_an_entrypoint_of_any_kind_and_gives_its_result(
    method: str, arguments: Any, result: Any
) -> None:
    async with run_services(Invoices, config=HTTP) as bed:
        with entrypoint_hook(bed.container(Invoices), method) as hook:
            assert await hook(*arguments) == result
            assert await hook(*arguments) == result

        assert await bed.client.call("invoices", "total", 4, price=5) == 20


async def test_hook_raises_the_methods_own_error_and_nothing_is_dead_lettered() -> None:
    async with run_services(Invoices, config=HTTP) as bed:
        with entrypoint_hook(bed.container(Invoices), "taken") as taken:
            with pytest.raises(KeyError, match="sku"):
                await taken({})

        (dead,) = [
            one for one in bed.container(Invoices).extensions if type(one).__name__ == "DeadLetters"
        ]
        assert dead.statistics() is None or "0" in repr(dead.statistics())


async def test_hooked_worker_lives_the_whole_life() -> None:
    async with run_services(Invoices, config=HTTP) as bed:
        (steps,) = bed.container(Invoices).dependencies
        with entrypoint_hook(bed.container(Invoices), "taken") as taken:
            await taken({"sku": "pear"})

        assert steps.seen == [("pear", None), "torn down"]


async def test_hook_passes_the_middleware() -> None:
    async def masked(call: Any, next: Any) -> Outcome:
        return (await next(call)).replace(value="masked")

    async with run_services(Invoices, config=HTTP, middleware=[Around(masked)]) as bed:
        with entrypoint_hook(bed.container(Invoices), "total") as total:
            assert await total(3) == "masked"


async def test_hook_brings_context_data_and_an_rpcs_deadline() -> None:
    async with run_services(Invoices, config=HTTP) as bed:
        with entrypoint_hook(bed.container(Invoices), "language", {"language": "eo"}) as language:
            assert await language() == ("eo", True)


async def test_hook_refuses_arguments_that_do_not_fit_as_a_request_is_refused() -> None:
    async with run_services(Invoices, config=HTTP) as bed:
        with entrypoint_hook(bed.container(Invoices), "total") as total:
            with pytest.raises(IncorrectSignature):
                await total(1, 2, 3)


async def test_many_hooked_calls_at_once_get_each_its_own_result() -> None:
    async with run_services(Invoices, config=HTTP) as bed:
        with entrypoint_hook(bed.container(Invoices), "total") as total:
            assert await asyncio.gather(*(total(n, 1) for n in range(200))) == list(range(200))


async def test_hook_ends_at_its_timeout_and_says_what_the_call_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with run_services(Invoices, config=HTTP) as bed:
        with entrypoint_hook(bed.container(Invoices), "wait", timeout=0.05) as wait:
            with pytest.raises(
                TimeoutError, match=r"invoices.wait: no result within 0.05 s; it runs"
            ):
                await wait()
        # What it left ends without a message to settle; the method is free again for others.
        await eventually(lambda: bed.container(Invoices).active_workers == 0)
        assert "settle" not in vars(_entrypoint(bed.container(Invoices), "wait"))
    assert "settle_failed" not in caplog.text


async def test_hook_of_what_is_not_there_or_not_started_says_so() -> None:
    runner = Runner({"AMQP_URI": "memory://unstarted"}, [Invoices])
    container = runner.container_of(Invoices)

    with pytest.raises(ConfigError, match=r"invoices has no entrypoint no_entrypoint; it has"):
        entrypoint_hook(container, "no_entrypoint")
    with pytest.raises(RuntimeStateError, match="Start the container first"):
        entrypoint_hook(container, "total")


def _entrypoint(container: Any, method: str) -> Any:
    (entrypoint,) = [one for one in container.entrypoints if one.method_name == method]
    return entrypoint


# --- waiting -------------------------------------------------------------------------------------------


async def test_waiter_ends_when_the_event_is_handled_and_has_its_result() -> None:
    async with run_services(Invoices, config=HTTP) as bed:
        (steps,) = bed.container(Invoices).dependencies
        async with entrypoint_waiter(bed.container(Invoices), "taken") as result:
            await bed.client.publish("stock", "taken", {"sku": "fig"})

        assert result.get() == "fig"
        assert result.settlement == Ack()
        assert steps.seen == [("fig", None), "torn down"]


async def test_waiter_gives_the_handlers_error_and_what_became_of_the_message() -> None:
    async with run_services(Invoices, config=HTTP) as bed:
        async with entrypoint_waiter(bed.container(Invoices), "taken") as result:
            await bed.client.publish("stock", "taken", {})

        with pytest.raises(KeyError):
            result.get()
        assert isinstance(result.settlement, DeadLetter | Redeliver)  # by its retry policy


async def test_waiter_waits_for_the_one_that_its_callback_chooses() -> None:
    asked = []

    def is_fig(worker_ctx: Any, result: Any, exc_info: Any) -> bool:
        asked.append((worker_ctx.args[0].get("sku"), result, exc_info and exc_info[0]))
        return result == "fig"

    async with run_services(Invoices, config=HTTP) as bed:
        async with entrypoint_waiter(bed.container(Invoices), "taken", callback=is_fig) as result:
            for event in ({"sku": "apple"}, {}, {"sku": "fig"}, {"sku": "late"}):
                await bed.client.publish("stock", "taken", event)

    assert result.get() == "fig"
    of_each = {
        "apple": ("apple", "apple", None),
        None: (None, None, KeyError),
        "fig": ("fig", "fig", None),
    }
    assert (
        asked[-1] == of_each["fig"]
    )  # nobody is asked of the next; before it the threads end as they like
    assert [one for one in asked if one != of_each[one[0]]] == []


async def test_waiter_of_an_rpc_sees_the_reply_as_settled() -> None:
    async with run_services(Invoices, config=HTTP) as bed:
        async with entrypoint_waiter(bed.container(Invoices), "total") as result:
            assert await bed.client.call("invoices", "total", 2) == 4

    assert result.get() == 4
    assert result.settlement == Reply()


async def test_waiter_that_times_out_tells_what_came_instead() -> None:
    async with run_services(Invoices, config=HTTP) as bed:
        container = bed.container(Invoices)
        with pytest.raises(EntrypointWaiterTimeout, match=r"invoices.taken: .* nothing came"):
            async with entrypoint_waiter(container, "taken", timeout=0.05):
                pass
        with pytest.raises(entrypoint_waiter.Timeout, match=r"1 came, the last: 'apple'"):
            async with entrypoint_waiter(
                container, "taken", timeout=0.5, callback=lambda *_: False
            ):
                await bed.client.publish("stock", "taken", {"sku": "apple"})


async def test_block_that_fails_is_not_waited_for() -> None:
    async with run_services(Invoices, config=HTTP) as bed:
        with pytest.raises(ZeroDivisionError):
            async with entrypoint_waiter(bed.container(Invoices), "taken", timeout=None):
                raise ZeroDivisionError


async def test_callback_that_fails_fails_the_test_and_not_the_service() -> None:
    async with run_services(Invoices, config=HTTP) as bed:
        with pytest.raises(ZeroDivisionError):
            async with entrypoint_waiter(
                bed.container(Invoices), "total", callback=lambda *_: 1 // 0
            ):
                assert await bed.client.call("invoices", "total", 2) == 4


async def test_result_that_is_asked_for_too_early_says_when() -> None:
    async with run_services(Invoices, config=HTTP) as bed:
        async with entrypoint_waiter(bed.container(Invoices), "total") as result:
            with pytest.raises(RuntimeStateError, match="not handled yet"):
                result.get()
            await bed.client.call("invoices", "total", 2)


async def test_waiters_inside_each_other_leave_the_entrypoint_as_it_was() -> None:
    async with run_services(Invoices, config=HTTP) as bed:
        container = bed.container(Invoices)
        async with (
            entrypoint_waiter(container, "total") as outer,
            entrypoint_waiter(container, "total") as inner,
        ):
            with entrypoint_hook(container, "total") as total:
                await total(1)

        assert (outer.get(), inner.get()) == (2, 2)
        assert "settle" not in vars(_entrypoint(container, "total"))


async def test_waiter_on_a_real_broker_ends_after_the_acknowledgement(broker: str) -> None:
    started, release = threading.Event(), threading.Event()

    class Slow:
        name = "slow"

        @event_handler("stock", "taken")
        def taken(self, event: dict) -> int:
            started.set()
            release.wait(5)
            return 1

    async with run_services(Slow, broker=broker) as bed:
        container = bed.container(Slow)
        async with entrypoint_waiter(container, "taken") as result:
            await bed.client.publish("stock", "taken", {})
            assert await asyncio.to_thread(started.wait, 5)
            release.set()

        assert result.get() == 1
        (entrypoint,) = container.entrypoints
        statistics = entrypoint.statistics()
        assert statistics is not None
        assert statistics.unsettled == 0
