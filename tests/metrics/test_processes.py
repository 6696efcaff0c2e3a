"""Several processes of one command are measured and probed as one, whatever becomes of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.commands import MYCELIA, NAMEKO
from tests.metrics.conftest import Scrape
from tests.processes import Process, run

from mycelia import BlockingClient
from mycelia.providers.metrics.files import PREFIX, make_folder

SERVICE = """
import os, time
import prometheus_client
from mycelia import Metrics, RpcProxy, rpc, event_handler

LEVEL = prometheus_client.Gauge("own_level", "A level.", multiprocess_mode="livesum")
LEVEL.set(1)
HELD = __HELD__

class Many:
    name = "many"
    metrics = Metrics()
    other = RpcProxy("other")

    @rpc
    def pid(self):
        self.metrics.counter("own_calls_total", "Calls.").inc()
        return os.getpid()

    @rpc
    async def die(self):
        os.kill(os.getpid(), 9)

    @event_handler("feed", "hold")
    def on_hold(self, payload):
        open(HELD, "w").close()
        while not os.path.exists(HELD + ".go"):
            time.sleep(0.02)
"""

NAMEKO_SERVICE = """
from nameko.rpc import rpc

class Old:
    name = "old"

    @rpc
    def add(self, a, b):
        return a + b
"""


@pytest.fixture
def folder(tmp_path: Path, rabbit_uri: str, free_port: int) -> Path:
    (tmp_path / "many.py").write_text(SERVICE.replace("__HELD__", repr(str(tmp_path / "held"))))
    (tmp_path / "old.py").write_text(NAMEKO_SERVICE)
    (tmp_path / "many.yaml").write_text(
        f"AMQP_URI: {rabbit_uri}\n"
        f"mycelia: {{rpc_max_runs: 1, metrics: {{port: {free_port}, host: 127.0.0.1}}}}\n"
    )
    return tmp_path


@pytest.fixture
def client(rabbit_uri: str) -> Iterator[BlockingClient]:
    with BlockingClient(rabbit_uri, timeout=20) as client:
        yield client


def until(process: Process, holds: Callable[[], Any]) -> Any:
    """Wait until something holds, as long as the process lives."""
    found: list[Any] = []

    def look(lines: list[str]) -> bool:
        found[:] = [holds()]
        return bool(found[0])

    assert process.wait_until(look), process.output
    return found[0]


def test_three_processes_are_one_scrape_and_a_killed_one_s_counts_stay(
    folder: Path, client: BlockingClient, free_port: int
) -> None:
    command = (*MYCELIA, "run", "many", "--config", "many.yaml", "--processes", "3")
    with Process(*command, cwd=folder) as process:
        process.wait_until_ready()
        answered = [client.call("many", "pid") for _ in range(90)]
        victim = answered[0]
        assert len(set(answered)) == 3
        os.kill(victim, signal.SIGKILL)
        process.wait_for("process_restarted")
        later = [client.call("many", "pid") for _ in range(60)]
        seen = Scrape.of(free_port, "/metrics")
        left = list(Path("/dev/shm").glob(f"{PREFIX}{process.pid}-*"))
        files = sorted(path.name for path in (left[0] / "users").iterdir())
        assert process.stop() == 0

    assert victim not in later
    assert seen.sum("mycelia_calls_total", method="pid", outcome="ok") == 150
    assert seen.sum("mycelia_call_duration_seconds_count", method="pid") == 150
    assert seen.sum("own_calls_total") == 150
    assert seen.sum("own_level") == 3
    assert seen.sum("mycelia_processes") == 3
    assert seen.sum("mycelia_workers_limit", method="pid") == 30
    assert seen.sum("mycelia_consumers", queue="rpc-many") == 3
    assert seen.sum("mycelia_link_state", state="connected") == 3
    assert files == [
        f"{kind}_{number}.db" for kind in ("counter", "gauge_livesum") for number in (1, 2, 3)
    ]  # a restarted process goes on in the files of its predecessor
    assert not left[0].exists()


def test_probes_of_several_processes_tell_which_is_not_ready(
    folder: Path, client: BlockingClient, free_port: int
) -> None:
    command = (*MYCELIA, "run", "many", "--config", "many.yaml", "--processes", "2")
    with Process(*command, cwd=folder) as process:
        until(process, lambda: _answers(free_port))
        before = Scrape.of(free_port, "/ready")
        process.wait_until_ready()
        ready = until(process, lambda: _ready(free_port))
        client.publish("feed", "hold", {})
        until(process, (folder / "held").exists)
        process.send(signal.SIGTERM)
        draining = until(process, lambda: _not_ready(free_port))
        live = Scrape.of(free_port, "/live")
        (folder / "held.go").touch()
        assert process.finish() == 0

    assert before.status == 503
    assert "process 2: not started" in before.json["not_ready"]
    assert ready.json["services"] == ["many"]
    assert draining.status == 503
    assert draining.json["not_ready"][0] == "process: stopping"
    assert live.status == 200


def _answers(port: int) -> Scrape | None:
    try:
        return Scrape.of(port, "/live")
    except OSError:
        return None


def _ready(port: int) -> Scrape | None:
    seen = Scrape.of(port, "/ready")
    return seen if seen.status == 200 else None


def _not_ready(port: int) -> Scrape | None:
    seen = Scrape.of(port, "/ready")
    return seen if seen.status == 503 else None


def test_one_process_that_drains_is_not_ready_while_its_worker_runs(
    folder: Path, client: BlockingClient, free_port: int
) -> None:
    with Process(*MYCELIA, "run", "many", "--config", "many.yaml", cwd=folder) as process:
        process.wait_until_ready()
        assert Scrape.of(free_port, "/ready").status == 200
        client.publish("feed", "hold", {})
        until(process, (folder / "held").exists)
        process.send(signal.SIGTERM)
        draining = until(process, lambda: _not_ready(free_port))
        (folder / "held.go").touch()
        assert process.finish() == 0

    assert draining.json["not_ready"] == ["process: stopping"]
    assert draining.json["phase"] == "stopping"


@pytest.mark.parametrize("more", [(), ("--processes", "2")], ids=["one", "two"])
def test_port_in_use_is_one_line_and_the_exit_code(
    folder: Path, free_port: int, more: tuple[str, ...]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", free_port))
        other.listen()
        done = run([*MYCELIA, "run", "many", "--config", "many.yaml", *more], folder)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ConfigError: mycelia.metrics.port: port {free_port} of 127.0.0.1 is in use by another program. "
        "Free it, or set mycelia.metrics.port to another one."
    )


def test_nameko_run_and_existing_services_have_it_by_configuration(
    folder: Path, client: BlockingClient, free_port: int
) -> None:
    text = (folder / "many.yaml").read_text()
    (folder / "old.yaml").write_text(text + "SERVICE_CONTAINER_CLS: mycelia.Container\n")
    with Process(NAMEKO, "run", "old", "--config", "old.yaml", cwd=folder) as process:
        process.wait_until_ready()
        for number in range(7):
            assert client.call("old", "add", number, 1) == number + 1
        seen = Scrape.of(free_port, "/metrics")
        ready = Scrape.of(free_port, "/ready")
        assert process.stop() == 0

    assert seen.sum("mycelia_calls_total", service="old", method="add", outcome="ok") == 7
    assert ready.json["services"] == ["old"]


def test_what_a_killed_command_has_left_is_removed_by_the_next(tmp_path: Path) -> None:
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    )
    left = Path("/dev/shm") / f"{PREFIX}{gone.stdout.strip()}-left"
    (left / "users").mkdir(parents=True)
    made = make_folder()
    try:
        assert not left.exists()
        assert made.stat().st_mode & 0o777 == 0o700
    finally:
        for folder in (made / "users", made):
            folder.rmdir()
