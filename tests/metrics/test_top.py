"""`mycelia top` against real services with real load: figures, a terminal, a pipe, Ctrl-C, a broker that goes."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from tests.cli.commands import MYCELIA
from tests.processes import WAIT_S, Process, environment, run

from mycelia import BlockingClient, event_handler, rpc
from mycelia.amqp import Message, Properties, Queue, connect
from mycelia.cli.top import Asker
from mycelia.providers.metrics.answers import SAME_ANSWER_S, TOP_EXCHANGE
from mycelia.providers.metrics.monitoring import Monitoring
from mycelia.testing import ServiceBed, eventually, run_services

SERVICE = """
import asyncio
from mycelia import rpc, event_handler

class Busy:
    name = "busy"

    @rpc
    async def work(self, seconds):
        await asyncio.sleep(seconds)

    @event_handler("feed", "said")
    async def on_said(self, payload):
        raise ValueError("not that")

class Idle:
    name = "idle"

    @rpc
    async def rest(self):
        pass
"""


@pytest.fixture
def folder(tmp_path: Path, rabbit_uri: str) -> Path:
    (tmp_path / "busy.py").write_text(SERVICE)
    (tmp_path / "busy.yaml").write_text(f"AMQP_URI: {rabbit_uri}\nmycelia: {{metrics: {{}}}}\n")
    return tmp_path


@contextmanager
def load(uri: str) -> Iterator[None]:
    """Calls, some 40 a second, and an event that fails, until the end of the block."""
    over = threading.Event()

    def go() -> None:
        with BlockingClient(uri, timeout=20) as client:
            client.publish("feed", "said", {})
            while not over.is_set():
                client.call("busy", "work", 0.02)

    threads = [threading.Thread(target=go, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(20)


@contextmanager
def busy(folder: Path, uri: str, *more: str) -> Iterator[Process]:
    command = (*MYCELIA, "run", "busy", "--config", "busy.yaml", *more)
    with Process(*command, cwd=folder) as process:
        process.wait_until_ready()
        with load(uri):
            yield process
        assert process.stop() == 0


def test_once_as_json_has_the_figures_of_all_processes(folder: Path, rabbit_uri: str) -> None:
    with busy(folder, rabbit_uri, "--processes", "2"):
        done = run([*MYCELIA, "top", "--once", "--json", "--config", "busy.yaml"], folder)

    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert len(figures["instances"]) == 2
    assert all(one["ready"] and one["services"] == ["busy", "idle"] for one in figures["instances"])
    methods = {(one["service"], one["method"]): one for one in figures["methods"]}
    work = methods["busy", "work"]
    assert work["calls_per_s"] > 1
    assert 0.01 < work["p50_s"] < 10
    assert work["p99_s"] >= work["p50_s"]
    assert work["errors"] == 0
    assert methods["idle", "rest"] == {
        "service": "idle",
        "method": "rest",
        "kind": "rpc",
        "calls_per_s": 0.0,
        "errors_per_s": 0.0,
        "retries_per_s": 0.0,
        "p50_s": None,
        "p99_s": None,
        "in_flight": 0,
        "waiting": 0,
        "calls": 0,
        "errors": 0,
    }
    queues = {one["queue"]: one for one in figures["queues"]}
    assert queues["rpc-busy"]["consumers"] == 2
    assert queues["rpc-idle"]["ready"] == 0
    assert figures["dead_letters"]["busy"] >= 0


def test_once_as_text_is_a_table_without_colours(folder: Path, rabbit_uri: str) -> None:
    with busy(folder, rabbit_uri):
        done = run([*MYCELIA, "top", "--once", "--interval", "1", "--config", "busy.yaml"], folder)

    assert done.returncode == 0, done.stderr
    assert "1 process, 2 services (busy, idle)" in done.stdout
    assert re.search(r"busy\.work +rpc +[\d.]+ +0 +0 +[\d.]+ ms", done.stdout)
    assert re.search(r"rpc-busy +\d+ +\d+ +1$", done.stdout, re.MULTILINE)
    assert "\x1b" not in done.stdout


def test_pipe_that_closes_ends_it_quietly(folder: Path, rabbit_uri: str) -> None:
    with busy(folder, rabbit_uri):
        with subprocess.Popen(
            [*MYCELIA, "top", "--json", "--interval", "0.3", "--config", "busy.yaml"],
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as top:
            assert top.stdout is not None
            assert top.stderr is not None
            lines = [json.loads(top.stdout.readline()) for _ in range(3)]
            top.stdout.close()
            code = top.wait(WAIT_S)
            said = top.stderr.read()

    assert (code, said) == (0, b"")
    assert lines[0]["methods"][0]["calls_per_s"] is None
    assert any(method["calls_per_s"] for method in lines[2]["methods"])


def test_nobody_who_answers_is_said_with_what_to_do(folder: Path) -> None:
    done = run([*MYCELIA, "top", "--once", "--interval", "0.1", "--config", "busy.yaml"], folder)

    assert done.returncode == 0
    assert "No process answers" in done.stdout
    assert "mycelia: metrics:" in done.stdout


def test_broker_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    uri = "amqp://guest:secret@127.0.0.1:1/"
    done = run([*MYCELIA, "top", "--once", "--timeout", "0.5", "--broker", uri], tmp_path)

    assert done.returncode == 1
    assert done.stderr.startswith("BrokerUnavailable: ")
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("interval", ["0", "nan", "soon"])
def test_wrong_interval_is_a_wrong_command(tmp_path: Path, interval: str) -> None:
    done = run([*MYCELIA, "top", "--interval", interval], tmp_path)

    assert done.returncode == 2
    assert "expected seconds from 0.1 to 3600" in done.stderr


# --- on a terminal ----------------------------------------------------------------------------------


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *command: str, cwd: Path, width: int) -> None:
        self._master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
        self.before = termios.tcgetattr(slave)
        self._slave = slave
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment(TERM="xterm-256color", COLUMNS="", LINES=""),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        self.shown = ""

    def read_until(self, holds: Callable[[str], Any]) -> bool:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline and not holds(self.shown):
            if select.select([self._master], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self._master, 65536).decode(errors="replace")
                except OSError:
                    break
            elif self.process.poll() is not None:
                break
        return bool(holds(self.shown))

    def interrupt(self) -> int:
        """Ctrl-C, as the terminal gives it to the group in front."""
        os.killpg(self.process.pid, signal.SIGINT)
        code = self.process.wait(WAIT_S)
        self.read_until(lambda _: False)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
        os.close(self._slave)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


@pytest.mark.parametrize("width", [80, 160])
def test_terminal_shows_load_and_is_left_as_it_was_by_ctrl_c(
    folder: Path, rabbit_uri: str, width: int
) -> None:
    with busy(folder, rabbit_uri):
        terminal = Terminal(
            *(*MYCELIA, "top", "--interval", "0.5", "--config", "busy.yaml"),
            cwd=folder,
            width=width,
        )
        try:
            has_rates = terminal.read_until(
                lambda text: re.search(r"busy\.work +(rpc +)?[1-9][\d.]* +0 .* ms ", plain(text))
            )
            shown = terminal.shown
            code = terminal.interrupt()
            after = termios.tcgetattr(terminal._slave)
            before = terminal.before
            whole = terminal.shown
        finally:
            terminal.close()

    assert has_rates, plain(shown)[-3000:]
    assert "dead letters" in plain(shown)
    assert code == 0
    assert "Traceback" not in whole
    assert shown.count("\x1b[?1049h") == 1  # the other screen …
    assert whole.count("\x1b[?1049l") == 1  # … and back
    assert whole.rindex("\x1b[?25h") > whole.rindex("\x1b[?25l")  # the cursor, too
    assert after == before


# --- the answers ------------------------------------------------------------------------------------


class Shop:
    name = "shop"

    @rpc
    async def sell(self) -> None:
        pass

    @event_handler("shop", "sold")
    async def on_sold(self, payload: Any) -> None:
        pass


@pytest.fixture
async def bed(broker: str) -> AsyncIterator[ServiceBed]:
    config = {"mycelia": {"metrics": {}}}
    async with run_services(Shop, config=config, broker=broker, timeout=15) as bed:
        yield bed


async def asked(bed: ServiceBed) -> Any:
    link = connect(bed.broker)
    await link.open(15)
    asker = Asker(link)
    await asker.start(15)
    try:

        async def figures() -> Any:
            found = await asker.ask()
            return found if found.instances else None

        return await eventually(figures, timeout=20)
    finally:
        await link.aclose()


async def test_process_answers_with_what_it_does(bed: ServiceBed) -> None:
    for _ in range(3):
        await bed.client.call("shop", "sell")
    figures = await asked(bed)

    (one,) = figures.instances
    assert (one.pid, one.ready, one.is_new) == (os.getpid(), True, True)
    assert {(m.method, m.calls) for m in figures.methods} == {("sell", 3), ("on_sold", 0), ("*", 0)}
    assert {(q.queue, q.ready, q.consumers) for q in figures.queues} == {
        ("rpc-shop", 0, 1),
        ("evt-shop-sold--shop.on_sold", 0, 1),
    }


async def test_questions_that_are_none_do_no_harm(bed: ServiceBed) -> None:
    await asked(bed)
    link = connect(bed.broker)
    await link.open(15)
    for properties in (
        Properties(),
        Properties(reply_to=""),
        Properties(reply_to="no-such-queue"),
        Properties(reply_to="x" * 255, correlation_id="y" * 255),
    ):
        await link.publish(Message(TOP_EXCHANGE.name, "", b"\xff" * 1000, properties))
    await link.aclose()

    assert len((await asked(bed)).instances) == 1
    assert bed.runner.host.link.state.value == "connected"


async def test_hostile_answers_are_passed_over(bed: ServiceBed) -> None:
    link = connect(bed.broker)
    await link.open(15)
    asker = Asker(link)
    await asker.start(15)

    async def answer_badly() -> None:
        for body in (b"", b"{}", b"\xff", b"[" * 10_000, b'{"id": 1}'):
            (question,) = asker._questions._asked
            properties = Properties(correlation_id=question)
            await link.publish(Message("", asker._questions.queue, body, properties))

    await asyncio.gather(asker.ask(), answer_badly())

    async def figures() -> Any:
        return (await asker.ask()).instances

    assert await eventually(figures, timeout=20)
    await link.aclose()


async def test_many_questions_cost_one_answer_a_while(
    bed: ServiceBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asked(bed)
    read = Mock(wraps=Monitoring.health)
    monkeypatch.setattr(Monitoring, "read", lambda self: read(self) and [])
    link = connect(bed.broker)
    await link.open(15)
    await link.declare(Queue("answers", exclusive=True, durable=False))
    question = Message(TOP_EXCHANGE.name, "", b"", Properties(reply_to="answers"))
    begun = time.monotonic()
    await asyncio.gather(*(link.publish(question) for _ in range(200)))

    async def all_answered() -> bool:
        return await link.message_count("answers") == 200

    await eventually(all_answered, timeout=20)
    lasted = time.monotonic() - begun
    await link.aclose()
    assert read.call_count <= 2 + lasted / SAME_ANSWER_S


def test_without_rich_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mycelia.cli.main import main

    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr("mycelia.extras.find_spec", lambda name: None)

    assert main(["top", "--once"]) == 2
    assert (
        'needs rich, which is not installed: pip install "mycelia[top]"' in capsys.readouterr().err
    )
