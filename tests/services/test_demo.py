"""The demonstration, as a user runs it: real `nameko run` processes on a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import shutil
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from services.demo import ProgressLine, free_address, main, say
from services.fleet import ROOT, Fleet, ServiceDied, child_fleet
from tests.tools import not_run

from mycelia.broker import PrivateNode
from mycelia.broker.node import find_rabbitmq

pytestmark = pytest.mark.timeout(300)


def make(target: str, *arguments: str) -> tuple[str, ...]:
    """`make demo`, in this environment as it is: what `make setup` would do to it is not at issue here."""
    setup_done = ("-o", ".venv/.setup-done", f"PY={sys.executable}")
    return ("make", *setup_done, target, f"ARGS={' '.join(arguments)}")


def demo(
    *arguments: str, folder: Path = ROOT, **environment: str
) -> AbstractAsyncContextManager[Process]:
    return running(sys.executable, "-m", "services.demo", *arguments, folder=folder, **environment)


@asynccontextmanager
async def running(*command: str, folder: Path = ROOT, **environment: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={
            key: value
            for key, value in os.environ.items()
            if key
            not in ("FLIGHTS", "BROKER", "AMQP_URI", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
        }
        | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT / 'platform'}"}
        | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):  # `make` does not end what it has started
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


async def read_until(process: Process, beginning: str) -> list[str]:
    """The lines up to the one that begins so, or to the end."""
    assert process.stdout is not None
    lines: list[str] = []
    async with asyncio.timeout(240):
        async for line in process.stdout:
            lines.append(line.decode())
            if lines[-1].startswith(beginning):
                return lines
    return lines


def processes_with(setting: str) -> list[int]:
    """The processes of this machine that have `setting` in their environment, without this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            settings = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if setting.encode() in settings and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


@pytest.mark.parametrize(
    ("arguments", "figures"),
    [
        pytest.param(("--days", "2"), r"1\d,\d{3}", id="two days"),
        pytest.param((), "115,768", id="all", marks=pytest.mark.long),
    ],
)
async def test_every_figure_is_verified_and_everything_is_stopped(
    rabbit_uri: str, arguments: tuple[str, ...], figures: str
) -> None:
    async with demo(*arguments, AMQP_URI=rabbit_uri) as process:
        said = "".join(await read_until(process, "done"))
        exit_code = await asyncio.wait_for(process.wait(), 60)

    assert exit_code == 0, said
    assert re.search(rf"verified: +{figures} figures, 0 differences", said)
    assert re.search(r"[\d,]+ events a second end to end", said)
    assert re.search(r"8 February .*p50 [\d,.]+ ms, p95 [\d,.]+ ms, p99 [\d,.]+ ms", said)
    if sys.platform == "linux":
        assert processes_with(f"AMQP_URI={rabbit_uri}") == []


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_every_figure_is_right_though_services_and_the_broker_are_killed(
    tmp_path: Path,
) -> None:
    """`make demo KILL=1`, in a clone of its own, as the broker that it kills is the one of its folder."""
    if find_rabbitmq() is None:
        not_run("RabbitMQ is not installed")
    shutil.copytree(ROOT / "services", tmp_path / "services")
    node = PrivateNode(tmp_path / ".mycelia" / "broker")
    try:
        async with demo("--kill", folder=tmp_path) as process:
            said = "".join(await read_until(process, "done"))
            exit_code = await asyncio.wait_for(process.wait(), 120)
        assert not node.status().running
    finally:
        await asyncio.to_thread(node.remove)

    assert exit_code == 0, said
    killed = re.findall(r"^kill -9 +([\w ]+)", said, re.MULTILINE)
    assert killed == ["flows", "delays", "the broker", "flows", "the board"], said
    assert re.search(r"verified: +115,768 figures, 0 differences", said), said
    assert re.search(r"^\w+ +link=", said, re.MULTILINE) is None, said  # log lines have a file
    assert "connection_lost" in (tmp_path / ".mycelia" / "logs" / "demo.log").read_text()
    if sys.platform == "linux":
        assert processes_with(f"PYTHONPATH={tmp_path}{os.pathsep}{tmp_path / 'platform'}") == []


@pytest.mark.long
async def test_every_figure_is_right_in_the_end_though_much_fails(rabbit_uri: str) -> None:
    """`make demo FAULTS=1`: retries, dead letters found, shown and sent again, one trace as a tree."""
    command = make("demo", "--days", "2")
    async with running(*command, "FAULTS=1", AMQP_URI=rabbit_uri) as process:
        said = "".join(await read_until(process, "done"))
        exit_code = await asyncio.wait_for(process.wait(), 60)

    assert exit_code == 0, said
    dead = re.search(r"dead +100%  (\d+) cancelled flights tried 5 times, in vain", said)
    assert dead is not None, said
    assert re.search(rf"{dead[1]}  ZeroDivisionError  enrich\.cancelled", said), said
    assert "error        ZeroDivisionError: a mistake in the handler of cancelled flights" in said
    assert f"{dead[1]} sent, {dead[1]} of {dead[1]} looked at" in said
    assert re.search(r"verified: +1\d,\d{3} figures, 0 differences", said)
    tree = said.partition("came through:\n")[2].partition("live pace")[0]
    assert re.search(r"├ enrich: process enrich\.\w+ .*FAILED ConnectionError", tree), said
    assert re.search(r"enrich: process enrich\.\w+ .*attempt \d", tree), said
    assert re.search(r"└ delays: process delays\.count", tree), said


def test_faults_need_a_broker(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKER", "memory")
    with pytest.raises(SystemExit) as ended:
        main(["--faults"])
    assert ended.value.code == 2
    assert "--faults needs a broker: leave BROKER=memory out" in capsys.readouterr().err


@pytest.mark.long
async def test_all_of_it_runs_without_a_broker() -> None:
    """`BROKER=memory make demo`, as the documents have it."""
    async with running(*make("demo", "--days", "2"), BROKER="memory") as process:
        said = "".join(await read_until(process, "done"))
        exit_code = await asyncio.wait_for(process.wait(), 60)

    assert exit_code == 0, said
    assert "broker     embedded: all services in this process, nothing else needed" in said
    assert "RabbitMQ" not in said
    assert re.search(r"verified: +1\d,\d{3} figures, 0 differences", said)


async def test_address_of_the_page_is_told_before_the_replay() -> None:
    async with running(*make("up", "--days", "2"), BROKER="memory") as process:
        said = await read_until(process, "replay ")
        board = said[-2]
        os.killpg(process.pid, signal.SIGINT)
        said += await read_until(process, "stopped")

    assert said[-1].startswith("stopped"), said
    assert re.fullmatch(r"board +http://127\.0\.0\.1:\d+/ .*\n", board), said


async def test_ctrl_c_stops_the_services_too(rabbit_uri: str) -> None:
    async with demo(AMQP_URI=rabbit_uri) as process:
        said = await read_until(process, "replay ")
        if sys.platform == "linux":
            assert len(processes_with(f"AMQP_URI={rabbit_uri}")) >= 6, "".join(said)
        process.send_signal(signal.SIGINT)
        said += await read_until(process, "stopping")
        process.send_signal(signal.SIGINT)  # one who is impatient leaves nothing behind either
        said += await read_until(process, "stopped")
        exit_code = await asyncio.wait_for(process.wait(), 60)

    assert exit_code == 130, "".join(said)
    assert said[-1].startswith("stopped")
    if sys.platform == "linux":
        assert processes_with(f"AMQP_URI={rabbit_uri}") == []


@pytest.mark.long
async def test_what_an_aborted_run_left_in_the_queues_corrupts_nothing(rabbit_uri: str) -> None:
    """Killed in the middle of its replay, with events in all queues; the next run is exact all the same."""
    async with demo("--days", "4", AMQP_URI=rabbit_uri) as process:
        for _ in range(2):  # it tells each tenth, but those that it has leapt over
            await read_until(process, "replay ")
        process.kill()
        await process.wait()
    if sys.platform == "linux":
        async with asyncio.timeout(60):
            while processes_with(f"AMQP_URI={rabbit_uri}"):  # noqa: ASYNC110  other processes end
                await asyncio.sleep(0.1)
    async with demo("--days", "4", AMQP_URI=rabbit_uri) as process:
        said = "".join(await read_until(process, "verified"))
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.wait(), 60)

    assert re.search(r"verified: +\d{2},\d{3} figures, 0 differences", said)


async def test_a_broker_that_is_not_there_is_named(unused_tcp_port: int) -> None:
    async with demo(AMQP_URI=f"amqp://guest:guest@127.0.0.1:{unused_tcp_port}/") as process:
        said = "".join(await read_until(process, "never said"))
        exit_code = await process.wait()

    assert exit_code == 1
    assert (
        f"FAILED: AMQP_URI names amqp://127.0.0.1:{unused_tcp_port}/, where no broker answers"
        in said
    )
    assert "Traceback" not in said


async def ended(fleet: Fleet) -> None:
    """Looks until the fleet complains."""
    async with asyncio.timeout(60):
        while True:
            fleet.check()
            await asyncio.sleep(0.05)


async def test_a_service_that_ends_is_reported_with_its_log(tmp_path: Path) -> None:
    async with child_fleet(
        "amqp://nowhere", "127.0.0.1:0", tmp_path, services=["no_such_service"]
    ) as fleet:
        with pytest.raises(ServiceDied, match=r"no_such_service ended with exit code") as caught:
            await ended(fleet)

    assert "no_such_service" in (tmp_path / "no_such_service.log").read_text()
    assert "No module named" in str(caught.value)


def test_what_is_said_amid_a_progress_line_begins_a_line_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    line = ProgressLine("replay")
    line.show(1, 4, "1 of 4")
    say("kill -9", "flows")
    line.show(4, 4, "4 of 4")
    line.leave()
    say("verified:", "all")

    shown = [
        one.rpartition("\r")[2].removesuffix("\x1b[K") for one in terminal.getvalue().split("\n")
    ]
    assert shown == [
        "replay     ██████░░░░░░░░░░░░░░░░░░  25%  1 of 4",
        "kill -9    flows",
        "replay     ████████████████████████ 100%  4 of 4",
        "verified:  all",
        "",
    ]


def test_the_board_gets_its_usual_port_or_a_free_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        assert free_address(port) not in (f"127.0.0.1:{port}", "127.0.0.1:0")
    assert free_address(port) == f"127.0.0.1:{port}"
