"""Extensions from PyPI do here what they do on stock Nameko, in the same run (docs/from-nameko.md has the table)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.nameko.processes import NamekoRun, StockClient

SIDES = {"stock": {}, "here": {"SERVICE_CONTAINER_CLS": "mycelia.Container"}}

Compare = Callable[..., Any]


@pytest.fixture(scope="module")
def compare(
    module_uri: str, stock_client: StockClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Compare]:
    """Calls a method on both sides with Nameko's own client; what both say."""
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

        yield compare
    finally:
        for run in runs:
            run.kill()


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
