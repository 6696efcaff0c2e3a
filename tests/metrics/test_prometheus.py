"""A real Prometheus scrapes a real service; every query of the dashboard and of the autoscaling examples finds something."""

from __future__ import annotations

import json
import math
import re
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.commands import MYCELIA
from tests.ports import free_port
from tests.processes import Process
from tests.tools import require_tool

from mycelia import BlockingClient
from mycelia.errors import RemoteError

COMPOSE = Path(__file__).parents[2] / "compose"
DASHBOARD: dict[str, Any] = json.loads(
    (COMPOSE / "monitoring" / "grafana" / "dashboards" / "mycelia.json").read_text()
)

SERVICE = """
import asyncio
from mycelia import EventDispatcher, KillSwitch, Log, RpcProxy, event_handler, log_handler, rpc
from mycelia.flow import count, flow, tumbling

ASKED = Log("asked", partitions=2)

class Delays:
    name = "delays"
    emit = EventDispatcher()
    own = RpcProxy("delays")
    asked = ASKED

    @rpc
    async def ask(self):
        await self.emit("asked", {})
        await self.asked.append({})
        return await self.own.answer()

    @rpc
    async def answer(self):
        return 1

    @rpc
    async def fail(self):
        raise ValueError("no")

    @log_handler(ASKED)
    async def look(self, records):
        await asyncio.sleep(0.01)

    @flow(ASKED)
    def counted(self, asked):
        windows = asked.key_by(lambda _: "all").window(tumbling("1s"), emit="update").aggregate(count())
        return windows.emit("counted"), windows.late.emit("late")

    @event_handler("feed", "flight", concurrency=1, prefetch=1)
    async def count(self, event):
        await asyncio.sleep(0.1)

    @event_handler("feed", "broken", requeue_on_error=True)
    async def on_broken(self, event):
        raise ValueError("never")

    @event_handler("feed", "doomed", retry=None, kill_switch=KillSwitch(minimum=3, pause="10m"))
    async def on_doomed(self, event):
        raise ValueError("stop it")
"""

BACKLOG = 600
"""Events that wait for the handler, which takes ten a second."""


class Prometheus:
    """A running server."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **query: str) -> Any:
        url = f"{self.url}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]

    def values(self, query: str) -> list[float]:
        found = self.get("/api/v1/query", query=query)["result"]
        return [float(series["value"][1]) for series in found]


@pytest.fixture(scope="module")
def prometheus(
    tmp_path_factory: pytest.TempPathFactory, rabbit_node: Any
) -> Iterator[tuple[Prometheus, Process]]:
    """Prometheus, the service that it scrapes, and load, until all that is asked for has been seen twice."""
    program = require_tool("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    rabbit_node.create_vhost("prometheus")
    uri = rabbit_node.uri("prometheus")
    scraped, port = free_port(), free_port()
    (folder / "fleet.py").write_text(SERVICE)
    section = {"metrics": {"port": scraped, "host": "127.0.0.1", "queue_depth_every": 0.5}}
    (folder / "fleet.yaml").write_text(
        yaml.safe_dump({"AMQP_URI": uri, "mycelia": {**section, "requeue_attempts": 3}})
    )
    config = yaml.safe_load((COMPOSE / "monitoring" / "prometheus.yml").read_text())
    config["global"]["scrape_interval"] = "1s"
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{scraped}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    over = threading.Event()

    def go() -> None:
        with BlockingClient(uri, timeout=20) as client:
            for _ in range(BACKLOG):
                client.publish("feed", "flight", {})
            while not over.wait(0.1):
                client.call("delays", "ask")
                client.publish("feed", "broken", {})
                client.publish("feed", "doomed", {})
                with suppress(RemoteError):
                    client.call("delays", "fail")

    service = (*MYCELIA, "run", "fleet", "--config", "fleet.yaml", "--processes", "2")
    server = (
        *(program, "--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{port}"),
        f"--storage.tsdb.path={folder / 'data'}",
    )
    with Process(*service, cwd=folder) as fleet, Process(*server, cwd=folder) as process:
        fleet.wait_until_ready()
        load = threading.Thread(target=go, daemon=True)
        load.start()
        found = Prometheus(port)

        def has_all(_: list[str]) -> bool:
            try:
                return all(
                    any(value > 0 for value in found.values(query))
                    for query in (
                        'rate(mycelia_calls_total{method="count", outcome="ok"}[20s])',
                        'rate(mycelia_errors_total{method="fail"}[20s])',
                        "rate(mycelia_retried_calls_total[20s])",
                        "rate(mycelia_dead_letters_total[20s])",
                        'mycelia_queue_messages{method="count"}',
                        'rate(mycelia_calls_total{direction="outbound"}[20s])',
                        "rate(mycelia_log_handled_records_total[20s])",
                        "mycelia_log_lag_entries + 1",
                        "rate(mycelia_flow_records_total[20s])",
                        "mycelia_flow_counted_records_total + 1",
                        "mycelia_flow_watermark_behind_seconds",
                        'mycelia_kill_switch_state{method="on_doomed", state="stopped"} == 2',
                    )
                )
            except OSError:
                return False

        assert process.wait_until(has_all, 60), process.output[-3000:] + fleet.output[-3000:]
        yield found, fleet
        over.set()
        load.join(20)
    rabbit_node.delete_vhost("prometheus")


def queries() -> list[Any]:
    return [
        pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    ]


def test_all_that_is_told_of_logs_and_flows_is_on_the_dashboard() -> None:
    documented = (COMPOSE.parent / "docs" / "metrics.md").read_text()
    told = set(re.findall(r"`(mycelia_(?:log|flow)_[a-z_]+)`", documented))
    shown = {
        name for query in queries() for name in re.findall(r"mycelia_[a-z_]+", query.values[0])
    }

    assert len(told) > 20
    assert told - shown == set()


@pytest.mark.parametrize("expr", queries())
def test_every_query_of_the_dashboard_finds_something(
    prometheus: tuple[Prometheus, Process], expr: str
) -> None:
    query = expr.replace("$service", ".*").replace("$__rate_interval", "20s")
    assert "$" not in query

    assert any(not math.isnan(value) for value in prometheus[0].values(query)), query


def test_target_is_up_and_its_sums_are_those_of_both_processes(
    prometheus: tuple[Prometheus, Process],
) -> None:
    assert prometheus[0].values('up{job="mycelia"}') == [1]
    assert prometheus[0].values("mycelia_processes") == [2]


def test_kill_switches_tell_their_state_and_their_stops(
    prometheus: tuple[Prometheus, Process],
) -> None:
    """Of both processes; a handler without one has none."""
    values = prometheus[0].values
    assert values('mycelia_kill_switch_state{method="on_doomed", state="stopped"}') == [2]
    assert values('mycelia_kill_switch_state{method="on_doomed", state!="stopped"}') == [0, 0]
    assert values("mycelia_kill_switch_stops_total") == [2]


def test_variable_of_the_dashboard_names_the_services(
    prometheus: tuple[Prometheus, Process],
) -> None:
    (variable,) = (v for v in DASHBOARD["templating"]["list"] if v["name"] == "service")
    match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
    assert match is not None
    found = prometheus[0].get("/api/v1/label/" + match[2] + "/values", **{"match[]": match[1]})

    assert found == ["delays"]


def _autoscaling() -> list[Any]:
    keda = yaml.safe_load((COMPOSE / "monitoring" / "keda.yaml").read_text())
    text = (COMPOSE / "monitoring" / "hpa.yaml").read_text()
    commented = "\n".join(line[2:] for line in text.splitlines() if line.startswith("#   "))
    (rule,) = yaml.safe_load(commented)["externalRules"]
    hpa = yaml.safe_load(text)["spec"]["metrics"][0]["external"]["metric"]
    assert hpa["name"] == rule["name"]["as"]
    labels = ", ".join(f'{k}="{v}"' for k, v in hpa["selector"]["matchLabels"].items())
    return [
        pytest.param(keda["spec"]["triggers"][0]["metadata"]["query"], "", id="keda"),
        pytest.param(rule["metricsQuery"], labels, id="hpa"),
    ]


@pytest.mark.parametrize(("query", "labels"), _autoscaling())
def test_autoscaling_scales_on_the_time_to_drain(
    prometheus: tuple[Prometheus, Process], query: str, labels: str
) -> None:
    found = prometheus[0].get("/api/v1/query", query=query.replace("2m", "20s"))["result"]
    values = [
        float(series["value"][1])
        for series in found
        if not labels or series["metric"].get("method") == "count"
    ]

    (seconds,) = values
    # Some hundred wait, and two processes take some ten a second each.
    assert 1 < seconds < BACKLOG / 0.1


def test_prometheus_takes_the_configuration_as_it_is() -> None:
    program = require_tool("promtool")
    done = subprocess.run(
        [program, "check", "config", str(COMPOSE / "monitoring" / "prometheus.yml")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
