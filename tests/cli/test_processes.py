"""`--processes` and `--reload`: several processes as one command, and one that starts anew."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.cli.commands import MYCELIA, NAMEKO
from tests.processes import Process, environment, run

from mycelia import BlockingClient
from mycelia.testing import eventually

SERVICE = """
import os
from mycelia import http, rpc


class Many:
    name = "many"

    @rpc
    def pid(self):
        return os.getpid()

    @rpc
    def die(self, code):
        os._exit(code)

    @http("GET", "/pid")
    def web_pid(self, request):
        return str(os.getpid())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, broker: str) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    (folder / "many.py").write_text(SERVICE)
    (folder / "many.yaml").write_text(
        f"AMQP_URI: {broker}\nWEB_SERVER_ADDRESS: 127.0.0.1:0\nmycelia: {{processes: 2, rpc_max_runs: 1}}\n"
    )
    (folder / "broken.py").write_text("from mycelia import rpc\nraise OSError('no disk')\n")
    return folder


@pytest.fixture
def client(broker: str) -> Iterator[BlockingClient]:
    with BlockingClient(broker, timeout=20) as client:
        yield client


@pytest.fixture
def two(folder: Path) -> Iterator[Process]:
    with Process(*MYCELIA, "run", "many", "--config", "many.yaml", cwd=folder) as process:
        process.wait_until_ready()
        yield process


def pids(client: BlockingClient) -> set[int]:
    """The processes that answer; many calls, because the broker deals them out as it likes."""
    return {client.call("many", "pid") for _ in range(40)}


def events(process: Process, name: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in process.lines if line.startswith("{"))
    return [line for line in lines if line["event"] == name]


def test_processes_share_the_work_one_log_and_one_signal(
    two: Process, client: BlockingClient
) -> None:
    answered = pids(client)

    assert len(answered) == 2
    assert two.pid not in answered
    assert {line["process"] for line in events(two, "service_started")} == {1, 2}
    assert [line["processes"] for line in events(two, "ready")] == [2]
    assert sum("ready" in line for line in two.lines) == 1
    assert two.stop() == 0
    assert {line["process"] for line in events(two, "service_stopped")} == {1, 2}
    assert all(not _is_alive(pid) for pid in answered)


def test_one_that_dies_is_started_again_after_a_pause_that_grows(
    two: Process, client: BlockingClient
) -> None:
    for count in (1, 2):
        victim = client.call("many", "pid")
        os.kill(victim, signal.SIGKILL)
        two.wait_for("process_restarted", count=count)
        (*_, died) = events(two, "process_died")
        assert (died["pid"], died["exit_code"]) == (victim, 137)

    assert len(pids(client)) == 2
    by_process: dict[int, list[float]] = {}
    for died in events(two, "process_died"):
        by_process.setdefault(died["process"], []).append(died["restart_in_s"])
    assert all(pauses == [0.1, 0.2][: len(pauses)] for pauses in by_process.values())
    assert two.stop() == 0


def test_processes_end_when_the_first_is_killed(two: Process, client: BlockingClient) -> None:
    answered = pids(client)
    two.kill()

    for pid in answered:
        _await_end(pid)


def test_second_signal_kills_all(two: Process) -> None:
    two.send(signal.SIGTERM)
    two.wait_for('"stopping"', doing=lambda: None)
    two.send(signal.SIGTERM)

    assert two.finish(timeout=20) == 0


def test_what_stops_the_start_is_said_once_and_is_the_exit_code(folder: Path) -> None:
    done = run([*MYCELIA, "run", "broken", "--config", "many.yaml", "--processes", "3"], folder)

    assert done.returncode == 1
    assert done.stderr.count("OSError: no disk") == 1
    assert "process_died" not in done.stderr


def test_memory_cannot_be_shared(folder: Path) -> None:
    command = [*MYCELIA, "run", "many", "--broker", "memory://", "--processes", "2"]
    done = run(command, folder)

    assert done.returncode == 1
    assert "2 processes cannot share memory://: it lives in one process" in done.stderr


@pytest.mark.parametrize("count", ["0", "-1", "two", "²"])
def test_wrong_count_is_a_wrong_command(folder: Path, count: str) -> None:
    done = run([*MYCELIA, "run", "many", f"--processes={count}"], folder)

    assert done.returncode == 2
    assert "expected a whole number of at least 1" in done.stderr


def test_http_is_served_by_all_at_one_address_and_nameko_run_reads_the_setting(
    folder: Path, unused_tcp_port: int
) -> None:
    text = (folder / "many.yaml").read_text().replace("127.0.0.1:0", f"127.0.0.1:{unused_tcp_port}")
    (folder / "web.yaml").write_text(text)
    with Process(NAMEKO, "run", "many", "--config", "web.yaml", cwd=folder) as process:
        process.wait_until_ready()
        url = f"http://127.0.0.1:{unused_tcp_port}/pid"
        answered = {httpx.get(url).text for _ in range(40)}

        assert len(answered) == 2
        assert process.stop() == 0


# --- reload -----------------------------------------------------------------------------------------


def reloading(text: str) -> str:
    return f"from mycelia import rpc\nprint('loaded', {text}, flush=True)\n\nclass Again:\n    name = 'again'\n\n    @rpc\n    def method(self): pass\n"


def test_reload_starts_anew_when_a_file_changes_also_after_a_mistake(tmp_path: Path) -> None:
    """Also when files have one size and are of one second, and Python would keep what it has compiled."""
    module = tmp_path / "again.py"

    def write(result: str) -> None:
        module.write_text(reloading(result))
        os.utime(module, (1_700_000_000, 1_700_000_000))

    write("1")
    env = environment()
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    command = (*MYCELIA, "run", "again", "--broker", "memory://", "--reload")
    with Process(*command, cwd=tmp_path, env=env) as process:
        process.wait_for("loaded 1")
        process.wait_until_ready()
        write("2")
        process.wait_for("loaded 2")
        process.wait_for('"ready"', count=2)
        write("1/0")
        process.wait_for("ZeroDivisionError")
        process.wait_for("reload_waiting")
        write("3")
        process.wait_for("loaded 3")
        process.wait_for('"ready"', count=3)

        assert process.stop() == 0
        assert "detected" not in process.output  # watchfiles' own line for the same
        assert re.search(r'"reloading".*"files":\["again.py"\]', process.output)


def test_missing_watcher_is_named(tmp_path: Path) -> None:
    (tmp_path / "again.py").write_text(reloading("1"))
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\nfind = util.find_spec\n"
        "util.find_spec = lambda name, *a: None if name == 'watchfiles' else find(name, *a)\n"
    )
    command = [*MYCELIA, "run", "again", "--broker", "memory://", "--reload"]
    done = run(command, tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{os.pathsep.join(_path())}")

    assert done.returncode == 1
    assert (
        'ConfigError: --reload needs watchfiles, which is not installed: pip install "mycelia[reload]"'
        in done.stderr
    )


def _path() -> list[str]:
    from tests.processes import environment

    return environment()["PYTHONPATH"].split(os.pathsep)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def _await_end(pid: int) -> None:
    import asyncio

    asyncio.run(eventually(lambda: not _is_alive(pid), 20))
