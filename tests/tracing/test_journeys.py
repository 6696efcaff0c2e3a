"""What a collector sees of services that were started by a command, on a real broker."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.commands import MYCELIA, NAMEKO
from tests.ports import free_port
from tests.processes import Process, run

from mycelia import BlockingClient
from mycelia.testing import ReceivedSpan, SpanReceiver

MODULE = "tests.tracing.journey_services"

QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "50"}
"""Milliseconds after which spans leave; 5 s by default."""


@pytest.fixture
def receiver() -> Iterator[SpanReceiver]:
    with SpanReceiver() as receiver:
        yield receiver


def config_in(folder: Path, uri: str, **more: Any) -> str:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({"AMQP_URI": uri, **more}))
    return str(file)


def titles(spans: list[ReceivedSpan]) -> list[str]:
    return [f"{span.kind} {span.service} {span.name}" for span in spans]


def chain_of(spans: list[ReceivedSpan], leaf: ReceivedSpan) -> list[str]:
    """The way from the root of its trace to `leaf`."""
    by_id = {span.span_id: span for span in spans}
    way = [leaf]
    while way[0].parent_id is not None:
        way.insert(0, by_id[way[0].parent_id])
    return titles(way)


def ask(method: str, url: str, **headers: str) -> int:
    request = urllib.request.Request(url, method=method, headers=headers)
    with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(request, timeout=30):
        return 200
    return 0


@pytest.mark.parametrize(
    ("command", "sets", "requeues"),
    [("nameko", "variables", True), ("nameko", "variables", False), ("mycelia", "one line", False)],
)
@pytest.mark.long_variants("nameko-variables-False")
def test_one_trace_shows_http_rpc_event_failed_retried_rpc(
    command: str, sets: str, requeues: bool, receiver: SpanReceiver, rabbit_uri: str, tmp_path: Path
) -> None:
    port = free_port()
    section = (
        {"mycelia": {"tracing": {"endpoint": receiver.endpoint}}} if sets == "one line" else {}
    )
    config = config_in(tmp_path, rabbit_uri, WEB_SERVER_ADDRESS=f"127.0.0.1:{port}", **section)
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint} if sets == "variables" else {}
    if requeues:
        variables["REQUEUE"] = "1"
    services = [f"{MODULE}:{name}" for name in ("Door", "Orders", "Shipping", "Stock")]
    words = (NAMEKO,) if command == "nameko" else MYCELIA
    trace_id, caller = "c" * 32, "d" * 16
    with Process(
        *words, "run", "--config", config, *services, cwd=tmp_path, **QUICK, **variables
    ) as process:
        process.wait_until_ready()
        ask(
            "POST",
            f"http://127.0.0.1:{port}/orders/7",
            traceparent=f"00-{trace_id}-{caller}-01",
        )
        spans = receiver.wait_for(
            lambda spans: (
                {"door", "stock"} <= {s.service for s in spans if s.kind == "SERVER"}
                and sum(s.kind == "CONSUMER" for s in spans) == 2
            )
        )
        assert process.stop() == 0

    assert {span.trace_id for span in spans} == {trace_id}
    root = next(span for span in spans if span.service == "door" and span.kind == "SERVER")
    assert root.parent_id == caller
    assert root.name in ("POST /orders/{number:int}", "POST /orders/{number}")
    assert root.attributes["http.request.method"] == "POST"
    assert root.attributes["http.response.status_code"] == 200
    by_id = {span.span_id: span for span in spans}

    def parents(span: ReceivedSpan) -> list[str]:
        found = []
        while span.parent_id in by_id:
            span = by_id[span.parent_id]
            found.append(f"{span.kind} {span.service}")
        return found

    leaf = next(span for span in spans if span.name == "stock/take" and span.kind == "SERVER")
    assert parents(leaf) == [
        "CLIENT shipping",
        "CONSUMER shipping",
        "PRODUCER orders",
        "INTERNAL orders",
        "SERVER orders",
        "CLIENT door",
        "SERVER door",
    ]
    first, second = sorted((s for s in spans if s.kind == "CONSUMER"), key=lambda s: s.start)
    assert first.parent_id == second.parent_id
    assert first.error == "ConnectionError: no truck"
    assert first.attributes["mycelia.settlement"] == "redeliver"
    # By default it has been at the broker, among the delays, for a second.
    assert (second.start - first.end) / 1e9 > (0.2 if requeues else 0.99)
    assert second.error is None
    assert second.attributes["mycelia.attempt"] == 2
    assert leaf.parent_id is not None
    assert by_id[leaf.parent_id].parent_id == second.span_id


def test_expected_error_of_http_is_no_error_of_the_server(
    receiver: SpanReceiver, rabbit_uri: str, tmp_path: Path
) -> None:
    port = free_port()
    config = config_in(tmp_path, rabbit_uri, WEB_SERVER_ADDRESS=f"127.0.0.1:{port}")
    with Process(
        *MYCELIA,
        "run",
        "--config",
        config,
        f"{MODULE}:Door",
        cwd=tmp_path,
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
        **QUICK,
    ) as process:
        process.wait_until_ready()
        ask("GET", f"http://127.0.0.1:{port}/teapots/brown")
        [span] = receiver.wait_for(bool)
        process.stop()
    assert span.error is None
    assert 400 <= span.attributes["http.response.status_code"] < 500
    assert span.attributes["http.route"] == "/teapots/{name}"
    assert span.parent_id is None


def test_existing_nameko_services_are_traced_by_one_line_of_configuration(
    receiver: SpanReceiver, rabbit_uri: str, tmp_path: Path
) -> None:
    config = config_in(
        tmp_path,
        rabbit_uri,
        SERVICE_CONTAINER_CLS="mycelia.Container",
        mycelia={"tracing": {"endpoint": receiver.endpoint}},
    )
    with Process(
        NAMEKO, "run", "--config", config, "tests.tracing.existing_services", cwd=tmp_path, **QUICK
    ) as process:
        process.wait_until_ready()
        with BlockingClient(rabbit_uri, timeout=20) as client:
            assert client.call("old", "begin") == 42
        spans = receiver.wait_for(lambda spans: len(spans) >= 5)
        process.stop()
    assert len({span.trace_id for span in spans}) == 1
    ways = {
        tuple(way.split(" ", 2)[0] + " " + way.split(" ", 2)[1] for way in chain_of(spans, span))
        for span in spans
    }
    assert ("SERVER old", "CLIENT old", "SERVER older") in ways
    assert ("SERVER old", "PRODUCER old", "CONSUMER older") in ways


@pytest.mark.parametrize("is_traced", [True, False], ids=["traced command", "untraced command"])
@pytest.mark.parametrize(
    "how", [["redrive"], ["edit", "--set", "number=2"]], ids=lambda how: how[0]
)
@pytest.mark.long_variants("redrive-untraced command", "edit-traced command")
def test_dead_letter_keeps_its_trace_and_so_does_its_redrive(
    how: list[str], is_traced: bool, receiver: SpanReceiver, rabbit_uri: str, tmp_path: Path
) -> None:
    config = config_in(tmp_path, rabbit_uri)
    trace_id = "e" * 32
    queue = "evt-orders-cursed--shipping.never"
    with Process(
        *MYCELIA,
        "run",
        "--config",
        config,
        f"{MODULE}:Shipping",
        f"{MODULE}:Stock",
        cwd=tmp_path,
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
        **QUICK,
    ) as process:
        process.wait_until_ready()
        with BlockingClient(rabbit_uri, timeout=20) as client:
            client.publish(
                "orders",
                "cursed",
                {"number": 1},
                headers={"traceparent": f"00-{trace_id}-{'f' * 16}-01"},
            )
        [failed] = receiver.wait_for(bool)
        process.wait_for("delivery_dead_lettered")
        (tmp_path / "blessed").touch()
        dead = run([*MYCELIA, "dlq", "show", queue, "--json"], tmp_path, AMQP_URI=rabbit_uri)
        told = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint} if is_traced else {}
        sent = run([*MYCELIA, "dlq", *how, queue], tmp_path, AMQP_URI=rabbit_uri, **told)
        assert (sent.returncode, sent.stderr) == (0, ""), sent.stderr
        spans = receiver.wait_for(
            lambda spans: (
                sum(s.kind == "CONSUMER" for s in spans) == 2
                and any(s.service == "stock" for s in spans)
            )
        )
        process.stop()
    assert trace_id in dead.stdout
    assert {span.trace_id for span in spans} == {trace_id}
    assert failed.error == "ValueError: cursed"
    again = next(s for s in spans if s.kind == "CONSUMER" and s.error is None)
    assert again.parent_id == failed.parent_id == "f" * 16
    commands = [span for span in spans if span.service == "mycelia-cli"]
    assert [f"{span.kind} {span.name}" for span in commands] == [
        f"PRODUCER redrive {queue}.dead"
    ] * is_traced
    for span in commands:
        assert span.parent_id == "f" * 16
        assert span.attributes["messaging.destination.name"] == f":{queue}"


def test_spans_of_libraries_nest_in_tasks_and_threads(
    receiver: SpanReceiver, rabbit_uri: str, tmp_path: Path
) -> None:
    config = config_in(tmp_path, rabbit_uri)
    url = receiver.endpoint + "/not-there"
    with Process(
        *MYCELIA,
        "run",
        "--config",
        config,
        f"{MODULE}:Library",
        cwd=tmp_path,
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
        **QUICK,
    ) as process:
        process.wait_until_ready()
        with BlockingClient(rabbit_uri, timeout=20) as client:
            client.call("library", "in_thread", url)
            client.call("library", "in_task", url)
        spans = receiver.wait_for(
            lambda spans: (
                sum(s.kind == "SERVER" for s in spans) == 2
                and sum(s.kind == "CLIENT" for s in spans) >= 3
            )
        )
        process.stop()
    assert {span.service for span in spans} == {"library"}
    servers = {span.name: span for span in spans if span.kind == "SERVER"}
    of_thread = [s for s in spans if s.parent_id == servers["library/in_thread"].span_id]
    of_task = [s for s in spans if s.parent_id == servers["library/in_task"].span_id]
    assert any("SELECT" in span.name for span in of_thread)
    assert any("GET" in span.name for span in of_thread)
    assert ["GET" in span.name for span in of_task] == [True]
    assert len(spans) == len(servers) + len(of_thread) + len(of_task)


@contextlib.contextmanager
def hanging_collector() -> Iterator[str]:
    """Takes connections and says nothing, for ever."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def refusing_collector() -> Iterator[str]:
    yield f"http://127.0.0.1:{free_port()}"


@pytest.mark.long_variants("while it runs-refusing_collector", "at the stop-hanging_collector")
@pytest.mark.parametrize("collector", [hanging_collector, refusing_collector])
@pytest.mark.parametrize("when", ["while it runs", "at the stop"])
def test_collector_that_is_down_or_hangs_costs_one_line_and_two_seconds_at_the_stop(
    collector: Any, when: str, rabbit_uri: str, tmp_path: Path
) -> None:
    config = config_in(tmp_path, rabbit_uri)
    with (
        collector() as endpoint,
        Process(
            *MYCELIA,
            "run",
            "--config",
            config,
            f"{MODULE}:Stock",
            cwd=tmp_path,
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
            **{**QUICK, "OTEL_BSP_MAX_QUEUE_SIZE": "512"},
            # Seconds for each batch; ten by default, and the line comes after them.
            **({"OTEL_EXPORTER_OTLP_TIMEOUT": "4"} if when == "while it runs" else {}),
        ) as process,
    ):
        process.wait_until_ready()
        with BlockingClient(rabbit_uri, timeout=20) as client:
            for number in range(1500):
                assert client.call("stock", "take", number) == number
        if when == "while it runs":
            process.wait_for("spans_not_exported")
        stopping = time.monotonic()
        assert process.stop() == 0
        stopped = time.monotonic() - stopping
    told = [
        line
        for line in process.lines
        if "not_exported" in line or "otel" in line.lower() or "Traceback" in line
    ]
    assert len(told) == 1, process.output
    assert stopped < 3  # two, and what a process takes to end


def test_each_process_of_several_exports_for_itself_and_flushes_at_sigterm(
    receiver: SpanReceiver, rabbit_uri: str, tmp_path: Path
) -> None:
    """With the default delay of 5 s: what comes, comes by the flush."""
    config = config_in(tmp_path, rabbit_uri)
    with Process(
        *MYCELIA,
        "run",
        "--processes",
        "2",
        "--config",
        config,
        f"{MODULE}:Stock",
        cwd=tmp_path,
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
        OTEL_BSP_SCHEDULE_DELAY="600000",
        OTEL_SERVICE_NAME="shop",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test",
    ) as process:
        process.wait_until_ready()
        with BlockingClient(rabbit_uri, timeout=20) as client:
            for number in range(60):
                client.call("stock", "take", number)
        assert receiver.spans == []
        process.send(signal.SIGTERM)
        assert process.finish() == 0
    spans = receiver.spans
    assert len(spans) == 60
    assert {span.service for span in spans} == {"shop"}


@pytest.mark.parametrize(
    "variables", [{}, {"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}]
)
def test_off_is_off(
    variables: dict[str, str], receiver: SpanReceiver, rabbit_uri: str, tmp_path: Path
) -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint} if variables else {}
    config = config_in(tmp_path, rabbit_uri)
    (tmp_path / "looking.py").write_text(
        "import sys\nfrom mycelia import rpc\nclass Looking:\n    name = 'looking'\n    @rpc\n    def loaded(self):\n"
        "        return sorted(name for name in sys.modules if name.startswith('opentelemetry.sdk'))\n"
    )
    with Process(
        *MYCELIA, "run", "--config", config, "looking", cwd=tmp_path, **endpoint, **variables
    ) as process:
        process.wait_until_ready()
        with BlockingClient(rabbit_uri, timeout=20) as client:
            assert client.call("looking", "loaded") == []
        process.stop()
    assert receiver.spans == []


def test_grpc_without_its_exporter_says_what_to_install(rabbit_uri: str, tmp_path: Path) -> None:
    config = config_in(tmp_path, rabbit_uri)
    done = run(
        [*MYCELIA, "run", "--config", config, f"{MODULE}:Stock"],
        tmp_path,
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4317",
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
    )
    assert done.returncode == 1
    assert "pip install opentelemetry-exporter-otlp-proto-grpc" in done.stderr
    assert "Traceback" not in done.stderr


def test_console_exporter_prints_spans(rabbit_uri: str, tmp_path: Path) -> None:
    config = config_in(tmp_path, rabbit_uri)
    with Process(
        *MYCELIA,
        "run",
        "--config",
        config,
        f"{MODULE}:Stock",
        cwd=tmp_path,
        OTEL_TRACES_EXPORTER="console",
        **QUICK,
    ) as process:
        process.wait_until_ready()
        with BlockingClient(rabbit_uri, timeout=20) as client:
            client.call("stock", "take", 1)
        process.wait_for('"name": "stock/take"')
        process.stop()


def test_commands_begin_a_trace_where_the_variables_ask_for_it(
    receiver: SpanReceiver, rabbit_uri: str, tmp_path: Path
) -> None:
    """Their spans leave before they end, though the delay is longer than they live."""
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "AMQP_URI": rabbit_uri}
    services = [f"{MODULE}:{name}" for name in ("Shipping", "Stock")]
    with Process(*MYCELIA, "run", *services, cwd=tmp_path, **variables, **QUICK) as process:
        process.wait_until_ready()
        called = run([*MYCELIA, "call", "stock.take", "5"], tmp_path, **variables)
        published = run(
            [*MYCELIA, "publish", "orders", "placed", '{"number": 8}'], tmp_path, **variables
        )
        silent = run([*MYCELIA, "call", "stock.take", "6"], tmp_path, AMQP_URI=rabbit_uri)
        spans = receiver.wait_for(lambda spans: sum(s.name == "stock/take" for s in spans) >= 5)
        process.stop()

    assert (called.returncode, called.stdout.strip(), called.stderr) == (0, "5", "")
    assert (published.returncode, published.stderr) == (0, "")
    assert silent.stdout.strip() == "6"
    roots = [span for span in spans if span.parent_id is None and span.service == "mycelia-cli"]
    assert [f"{span.kind} {span.name}" for span in roots] == [
        "CLIENT stock/take",
        "PRODUCER publish orders.placed",
    ]
    of_call, of_event = (
        {f"{span.kind} {span.service}" for span in spans if span.trace_id == root.trace_id}
        for root in roots
    )
    assert of_call == {"CLIENT mycelia-cli", "SERVER stock"}
    assert of_event >= {"PRODUCER mycelia-cli", "CONSUMER shipping"}


def test_command_without_a_collector_answers_all_the_same(rabbit_uri: str, tmp_path: Path) -> None:
    config = config_in(tmp_path, rabbit_uri)
    with (
        hanging_collector() as endpoint,
        Process(*MYCELIA, "run", "--config", config, f"{MODULE}:Stock", cwd=tmp_path) as process,
    ):
        process.wait_until_ready()
        called = run(
            [*MYCELIA, "call", "stock.take", "5"],
            tmp_path,
            timeout=20,
            AMQP_URI=rabbit_uri,
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
        )
        process.stop()

    assert (called.returncode, called.stdout.strip()) == (0, "5")
    assert called.stderr.count("\n") <= 1, called.stderr
    assert "Traceback" not in called.stderr
