"""The pytest plugin, in runs of its own: what it gives, that it costs nothing, and with whom it gets on."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tests.tools import our_pytest_plugin

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.timeout(120)  # each test starts another pytest

PLATFORM = Path(__file__).parents[2] / "platform"

SERVICE = """
import asyncio
from mycelia import Queue, RpcProxy, consume, event_handler, rpc, timer

class Stock:
    name = "stock"
    @rpc
    async def take(self, sku: str) -> int:
        return 41

class Orders:
    name = "orders"
    stock = RpcProxy("stock", timeout=2)
    ticks = 0

    @rpc
    async def order(self, sku: str) -> str:
        return f"{await self.stock.take(sku)} left"

    @consume(Queue("orders.wanted"), retry=None)
    def wanted(self, event: dict) -> str:
        return event["sku"]

    @timer(3600)
    async def tick(self) -> None:
        type(self).ticks += 1
"""

TESTS = """
import pytest
from shop import Orders, Stock
from mycelia.amqp import Message, Properties
from mycelia.errors import RemoteError
from mycelia.testing import eventually
{mark}

async def test_running_services_and_a_client(run_service, mycelia_client, mycelia_broker):
    bed = await run_service(Stock, Orders)
    assert bed.broker == mycelia_broker
    assert await mycelia_client.call("orders", "order", "apple") == "41 left"

async def test_each_test_has_a_broker_of_its_own(mycelia_link):
    from mycelia.errors import TopologyError
    with pytest.raises(TopologyError):
        await mycelia_link.message_count("rpc-orders")

async def test_services_one_after_the_other_and_what_is_replaced(run_service):
    class Fake:
        async def take(self, sku):
            return 3
    bed = await run_service(Orders, replace={{"stock": Fake()}}, entrypoints=["order"])
    assert await bed.client.call("orders", "order", "apple") == "3 left"
    other = await run_service(Stock)
    assert await other.client.call("stock", "take", "apple") == 41

async def test_dead_letters_by_method_and_by_queue(run_service, dead_letters, mycelia_link):
    await run_service(Orders)
    for body in (b'{{"colour": "red"}}', b"[1"):
        message = Message("", "orders.wanted", body, Properties(content_type="application/json"))
        await mycelia_link.publish(message, timeout=5)
    letters = await dead_letters("orders.wanted", count=2)
    first, second = sorted(letters, key=lambda one: one.reason)
    assert (first.reason, first.error, first.payload) == ("handler_error", "KeyError: 'sku'", {{"colour": "red"}})
    assert (first.method, first.attempts) == ("orders.wanted", 1)
    assert (second.reason, second.payload) == ("undecodable", b"[1")
    with pytest.raises(AssertionError, match="0 of 1 dead letters in .*orders.wanted.dead"):
        await dead_letters("orders.wanted", timeout=0.05)
    assert await dead_letters("nothing-ever-died-here", count=0) == []

async def test_faults(run_service, mycelia_faults, mycelia_client):
    await run_service(Stock)
    with mycelia_faults.fail("stock.take", LookupError):
        with pytest.raises(RemoteError, match="LookupError"):
            await mycelia_client.call("stock", "take", "apple")
    mycelia_faults.disconnect(mycelia_client)
    await eventually(lambda: mycelia_client.link.state.name != "CONNECTED", 30)
    assert await mycelia_client.call("stock", "take", "apple") == 41

async def test_driven_clock(run_service, mycelia_clock):
    await run_service(Orders)
    await mycelia_clock.advance("3h")
    assert Orders.ticks == 3
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder with a service; the plugin is there as for whoever has installed it."""
    monkeypatch.setenv("PYTHONPATH", str(PLATFORM))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makepyfile(shop=SERVICE)
    return pytester


def run(project: pytest.Pytester, *arguments: str, nameko: bool = False) -> pytest.RunResult:
    """pytest in a process of its own."""
    others = [] if nameko else ["-p", "no:pytest_nameko", "-p", "no:nameko_sqlalchemy"]
    return project.runpytest_subprocess(
        "-p", "no:cacheprovider", *our_pytest_plugin(), *others, *arguments
    )


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_fixtures_work_in_both_modes_of_pytest_asyncio(project: pytest.Pytester, mode: str) -> None:
    mark = "pytestmark = pytest.mark.asyncio" if mode == "strict" else ""
    project.makepyfile(test_shop=TESTS.format(mark=mark))
    project.makeini(
        f"[pytest]\nasyncio_mode = {mode}\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
    )

    run(project).assert_outcomes(passed=6)


def test_same_tests_run_on_a_private_rabbitmq(
    project: pytest.Pytester, rabbit_node: object
) -> None:
    project.makepyfile(test_shop=TESTS.format(mark=""))
    project.makeini("[pytest]\nasyncio_mode = auto\n")
    result = run(project, "--mycelia-broker=rabbitmq", "-rs")

    result.assert_outcomes(passed=5, skipped=1)
    result.stdout.fnmatch_lines(["*mycelia_clock moves this process's time; RabbitMQ has its own*"])


def test_broker_of_ones_own_by_its_uri(project: pytest.Pytester, rabbit_uri: str) -> None:
    project.makepyfile(
        test_uri=f"""
        async def test_it(run_service, mycelia_broker):
            from shop import Stock
            assert mycelia_broker == {rabbit_uri!r}
            bed = await run_service(Stock)
            assert await bed.client.call("stock", "take", "apple") == 41
        """
    )
    project.makeini(f"[pytest]\nasyncio_mode = auto\nmycelia_broker = {rabbit_uri}\n")

    run(project).assert_outcomes(passed=1)


def test_wrong_broker_says_what_it_may_be(project: pytest.Pytester) -> None:
    project.makepyfile(test_it="def test_it(mycelia_broker): pass")
    result = run(project, "--mycelia-broker=carrots")

    assert (
        "mycelia_broker: 'carrots': expected memory (the default), rabbitmq"
        in result.stdout.str() + result.stderr.str()
    )
    assert result.ret != 0


def test_run_that_uses_no_fixture_of_it_imports_nothing_of_mycelia(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(
        """
        import sys
        def test_nothing_is_imported():
            assert [name for name in sys.modules if name.partition(".")[0] in ("mycelia", "pika", "msgspec")] == []
        """
    )

    run(project).assert_outcomes(passed=1)


def test_without_pytest_asyncio_the_fixture_says_what_to_install(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        def test_wants_it(run_service): pass
        def test_does_not(mycelia_broker): assert mycelia_broker.startswith("memory://")
        """
    )
    result = run(project, "-p", "no:asyncio")

    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(['*the fixture "run_service" needs pytest-asyncio*pip install*'])


@pytest.mark.skipif(importlib.util.find_spec("nameko") is None, reason="Nameko is not installed")
def test_it_gets_on_with_namekos_own_plugin(project: pytest.Pytester) -> None:
    project.makepyfile(test_shop=TESTS.format(mark=""))
    project.makeini("[pytest]\nasyncio_mode = auto\n")
    result = run(project, "-p", "no:nameko_sqlalchemy", nameko=True)

    result.assert_outcomes(passed=6)


def test_driven_clock_of_a_failing_test_does_not_outlive_it(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import time
        REAL = time.monotonic
        async def test_fails(run_service, mycelia_clock):
            from shop import Orders
            await run_service(Orders)
            await mycelia_clock.advance("1h")
            assert False
        async def test_real_again():
            assert time.monotonic is REAL
        """
    )
    project.makeini("[pytest]\nasyncio_mode = auto\n")

    run(project).assert_outcomes(passed=1, failed=1)
