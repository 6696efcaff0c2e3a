"""Extensions from PyPI do here what they do on stock Nameko, in the same run (docs/from-nameko.md has the table)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.nameko.processes import NamekoRun, StockClient
from tests.nameko.waiting import wait_until

from mycelia import BlockingClient
from mycelia.errors import CallError

SIDES = {"stock": {}, "here": {"SERVICE_CONTAINER_CLS": "mycelia.Container"}}

Compare = Callable[..., Any]


@pytest.fixture(scope="module")
def runs(module_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NamekoRun]]:
    """The service on both sides."""
    directory = tmp_path_factory.mktemp("packages")
    runs: list[NamekoRun] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        for side, config in SIDES.items():
            monkeypatch.setenv("SIDE", side)
            statsd = {"main": {"host": "127.0.0.1", "port": 0, "prefix": "p", "enabled": True}}
            run = NamekoRun(
                "tests.nameko.packaged_services:Packaged",
                config={"AMQP_URI": module_uri, "STATSD": statsd, **config},
                directory=directory,
            )
            runs.append(run.start())
    try:
        for side, run in zip(SIDES, runs, strict=True):
            run.await_queues(f"rpc-packaged_{side}")
        yield runs
    finally:
        for run in runs:
            run.kill()


@pytest.fixture(scope="module")
def compare(runs: list[NamekoRun], stock_client: StockClient) -> Compare:
    """Calls a method on both sides with Nameko's own client; what both say."""

    def compare(method: str, *args: Any, until: Any = None) -> Any:
        said = []
        for side, run in zip(SIDES, runs, strict=True):
            deadline = time.monotonic() + 10
            while True:
                run.check_alive()
                found = stock_client.call(f"packaged_{side}", method, *args)
                if until is None or found == until or time.monotonic() > deadline:
                    break
                time.sleep(0.05)
            said.append(found)
        stock, here = said
        assert here == stock
        return here

    return compare


def test_amqp_retry_retries_rpc_until_it_succeeds(compare: Compare) -> None:
    assert compare("third_time") == 3


@pytest.mark.parametrize(("method", "retries"), [("never", 3), ("never_by_decorator", 2)])
def test_amqp_retry_gives_up_at_its_limit(compare: Compare, method: str, retries: int) -> None:
    assert f"Backoff aborted after '{retries}' retries" in compare(method)["text"]


def test_amqp_retry_retries_the_events_of_eventlog_dispatcher(compare: Compare) -> None:
    compare("log_something")

    expected = [["something", {"a": 1}, "log_something"]]
    assert compare("get_logged", until=expected) == expected


def test_cachetools_asks_once(compare: Compare) -> None:
    assert compare("count_cached") == [1, 1, 1]
    assert compare("count_cached") == [1, 1, 1]
    assert compare("count", "a") == 2


def test_statsd_counts_and_measures(compare: Compare) -> None:
    compare("measured")

    assert compare("get_measured") == ["p.counted", "p.timed"]


def test_tracer_redacts_and_tells_of_results(compare: Compare) -> None:
    assert compare("traced", 1, 2) == 1

    arguments = {"plain": 1, "secret": "********"}
    expected = [["request", arguments, None], ["response", arguments, "success"]]
    assert compare("get_traced", until=expected) == expected


def test_prometheus_counts_calls_and_workers(compare: Compare) -> None:
    compare("traced", 1, 2)

    metrics = compare("get_metrics")
    assert any(line.startswith("packaged__rpc_requests_total") for line in metrics)
    assert any(line.endswith("max_workers 10.0") for line in metrics)


def test_a_stock_service_with_amqp_retry_takes_requests_that_do_not_expire(
    runs: list[NamekoRun], module_uri: str
) -> None:
    """It publishes a request again with all of its properties and an `expiration` of its own."""
    config = {"mycelia": {"requests_expire": False}}
    with BlockingClient(module_uri, timeout=10, config=config) as client:
        for side in SIDES:
            assert client.call(f"packaged_{side}", "third_time", "unexpiring") == 3


def test_a_stock_service_with_amqp_retry_dies_of_a_request_that_expires(
    runs: list[NamekoRun], module_uri: str
) -> None:
    """Last of all, for it is gone; the one here serves the same request."""
    stock, _here = runs
    with BlockingClient(module_uri, timeout=3) as client:
        assert client.call("packaged_here", "third_time", "expiring") == 3
        with pytest.raises(CallError):
            client.call("packaged_stock", "third_time", "expiring")

    wait_until(lambda: not stock.is_running)
    assert "multiple values for keyword argument 'expiration'" in stock.output
