"""Signals to processes whose event loop is blocked, that have children, or that cannot end by themselves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.commands import MYCELIA, NAMEKO
from tests.processes import WAIT_S, Process, environment

SERVICES = """
import asyncio
import atexit
import ctypes
import logging
import multiprocessing
import os
import signal
import threading
import time

from mycelia import DependencyProvider, timer

fork = multiprocessing.get_context("fork")


def say(text):
    os.write(1, f"{text}\\n".encode())


class Spins:
    name = "spins"

    @timer(interval=3600, eager=True)
    async def block(self):
        say("begun")
        while True:
            pass


class Sleeps:
    name = "sleeps"

    @timer(interval=3600, eager=True)
    async def block(self):
        say("begun")
        time.sleep(3600)


class WritesToNobody:
    name = "writes_to_nobody"

    @timer(interval=3600, eager=True)
    async def block(self):
        say("begun")
        while True:
            logging.getLogger("service").error("x" * 1000)


class WaitsInC:
    name = "waits_in_c"

    @timer(interval=3600, eager=True)
    async def block(self):
        say("begun")
        mutex = ctypes.create_string_buffer(64)
        for _ in range(2):  # the second one waits for ever, without the interpreter's lock, and Python runs no handler
            ctypes.CDLL(None).pthread_mutex_lock(mutex)


class BlocksInSetup:
    name = "blocks_in_setup"

    class Provider(DependencyProvider):
        def setup(self):
            say("begun")
            time.sleep(3600)

    provider = Provider()


class EndsChildren:
    name = "ends_children"

    @timer(interval=3600, eager=True)
    def in_a_thread(self):
        self.start_and_end("thread")

    @timer(interval=3600, eager=True)
    async def on_the_loop(self):
        self.start_and_end("loop")

    def start_and_end(self, where):
        children = [fork.Process(target=time.sleep, args=(60,)) for _ in range(20)]
        for child in children:
            child.start()
            child.terminate()  # before it has run a line
        for child in children:
            child.join(20)
        pids = []
        for number in (signal.SIGTERM, signal.SIGINT):
            pid = os.fork()
            if not pid:
                time.sleep(60)
                os._exit(77)
            os.kill(pid, number)
            pids.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        say(f"{where} {sorted({child.exitcode for child in children})} {pids}")


def ignore_sigterm():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say("ignoring")
    time.sleep(60)  # longer than the test waits, and not so long that it outlives a failed one


class LeavesChildren:
    name = "leaves_children"

    @timer(interval=3600, eager=True)
    def start(self):
        children = [fork.Process(target=time.sleep, args=(60,)), fork.Process(target=ignore_sigterm)]
        for child in children:
            child.start()
        say(f"pids: {children[0].pid} {children[1].pid}")


class LeavesThread:
    name = "leaves_thread"

    @timer(interval=3600, eager=True)
    def start(self):
        threading.Thread(target=threading.Event().wait, name="never-ends", daemon=False).start()
        say("begun")


class LeavesExecutor:
    name = "leaves_executor"

    @timer(interval=3600, eager=True)
    async def start(self):
        say("begun")
        await asyncio.to_thread(threading.Event().wait)


class IsStoppedAtTheStart:
    name = "is_stopped_at_the_start"

    class Provider(DependencyProvider):
        def setup(self):
            logging.getLogger("mycelia.runtime").addFilter(self.on_line)

        def on_line(self, record):
            if "service_started" in record.getMessage():  # the last thing that the start does
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.1)  # the signal has arrived when the loop goes on
            return True

    provider = Provider()


class CleansUp:
    name = "cleans_up"

    class Provider(DependencyProvider):
        def setup(self):
            atexit.register(self.clean)

        def clean(self):
            say("cleaning")
            time.sleep(3)

    provider = Provider()

    @timer(interval=3600, eager=True)
    def begin(self):
        say("begun")


class OwnSignal:
    name = "own_signal"

    class Provider(DependencyProvider):
        def setup(self):
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, say, "usr1 handled")

    provider = Provider()

    @timer(interval=3600, eager=True)
    def begin(self):
        say("begun")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    (folder / "stuck.py").write_text(SERVICES)
    (folder / "quick.yaml").write_text("AMQP_URI: memory://signals\nmycelia: {grace: 1}\n")
    return folder


@pytest.fixture(params=["uvloop", "asyncio"])
def start(request: pytest.FixtureRequest, folder: Path) -> Iterator[Any]:
    """Starts a service of the module above on either event loop, and kills it at the end."""
    processes: list[Process] = []

    def run(service: str, command: tuple[str, ...] = MYCELIA) -> Process:
        arguments = ("run", f"stuck:{service}", "--config", "quick.yaml")
        process = Process(*command, *arguments, cwd=folder, MYCELIA_LOOP=request.param)
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.__exit__(None, None, None)


def lines(process: Process, name: str) -> list[dict[str, Any]]:
    """The log's lines of one event."""
    found = [json.loads(line) for line in process.output.splitlines() if line.startswith("{")]
    return [line for line in found if line["event"] == name]


@pytest.mark.parametrize(
    ("service", "number", "status"),
    [
        ("Spins", signal.SIGTERM, 143),
        ("Spins", signal.SIGINT, 130),
        ("Sleeps", signal.SIGTERM, 143),
        ("WaitsInC", signal.SIGTERM, 143),
        ("BlocksInSetup", signal.SIGTERM, 143),
    ],
)
@pytest.mark.long_variants(
    "asyncio-Spins-2-*", "uvloop-Sleeps-*", "uvloop-WaitsInC-*", "uvloop-BlocksInSetup-*"
)
def test_second_signal_ends_a_process_whose_loop_is_blocked(
    start: Any, service: str, number: signal.Signals, status: int
) -> None:
    process = start(service)
    process.wait_for("begun")
    process.wait_for('"killed"', doing=lambda: process.send(number))

    assert process.finish() == status
    (line,) = lines(process, "killed")
    assert (line["signal"], line["exit_code"], line["level"]) == (number.name, status, "error")
    assert "the event loop is blocked" in line["detail"]
    assert "block" in line["stack"] or "setup" in line["stack"]
    assert "Traceback" not in process.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.long_variants("asyncio-*")
def test_signal_to_a_process_that_is_ending_ends_it_without_a_traceback(
    start: Any, number: signal.Signals
) -> None:
    process = start("CleansUp")
    process.wait_for("begun")
    process.send(number)
    process.wait_for("cleaning")
    process.send(number)

    assert process.finish() == -number
    assert "Traceback" not in process.output


def test_second_signal_ends_a_process_whose_log_nobody_reads(folder: Path) -> None:
    arguments = ("run", "stuck:WritesToNobody", "--config", "quick.yaml")
    with subprocess.Popen(
        [*MYCELIA, *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            deadline = time.monotonic() + WAIT_S
            while process.poll() is None and time.monotonic() < deadline:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.6)

            assert process.returncode == 143
        finally:
            process.kill()


def test_second_signal_ends_a_blocked_process_after_the_hand_over(start: Any) -> None:
    process = start("Spins", (NAMEKO,))
    process.wait_for("begun")
    process.wait_for('"killed"', doing=lambda: process.send(signal.SIGTERM))

    assert process.finish() == 143


def test_blocked_loop_of_a_process_is_told(start: Any) -> None:
    process = start("Spins")
    process.wait_for("event_loop_blocked")

    (line,) = lines(process, "event_loop_blocked")
    assert line["call"] == "spins.block"
    assert line["stack"].startswith("stuck.py:")
    assert line["blocked_s"] >= 1.0


def test_first_signal_alone_does_not_end_a_blocked_process_by_force(start: Any) -> None:
    process = start("Sleeps")
    process.wait_for("begun")
    process.send(signal.SIGTERM)
    process.wait_for("event_loop_blocked")

    assert process.is_running
    assert lines(process, "killed") == []


def test_children_that_are_ended_end_and_the_service_goes_on(start: Any) -> None:
    process = start("EndsChildren")
    process.wait_for("thread [")
    process.wait_for("loop [")

    assert "thread [-15] [-15, -2]" in process.output
    assert "loop [-15] [-15, -2]" in process.output
    assert process.is_running
    assert lines(process, "stopping") == []
    assert process.stop() == 0
    assert len(lines(process, "stopping")) == 1


@pytest.mark.long_variants("asyncio")
def test_children_that_are_left_do_not_keep_a_stopped_process(start: Any) -> None:
    process = start("LeavesChildren")
    process.wait_for("pids: ")
    process.wait_for("ignoring")
    (said,) = [line for line in process.output.splitlines() if line.startswith("pids: ")]
    pids = [int(pid) for pid in said.split()[1:]]

    assert process.stop() == 0
    (line,) = lines(process, "child_processes_ended")
    assert sorted(line["pids"]) == sorted(pids)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.long
@pytest.mark.parametrize("service", ["LeavesThread", "LeavesExecutor"])
def test_threads_that_are_left_do_not_keep_a_stopped_process(start: Any, service: str) -> None:
    process = start(service)
    process.wait_for("begun")

    assert process.stop() == 0
    (line,) = lines(process, "exit_forced")
    assert {"never-ends", "asyncio_0", "uvloop_0"} & set(line["threads"])


def test_signal_at_the_very_end_of_the_start_is_not_lost(start: Any) -> None:
    process = start("IsStoppedAtTheStart")

    assert process.finish() == 0
    assert len(lines(process, "stopping")) == 1
    assert lines(process, "ready") == []


def test_signal_handlers_of_users_are_called_and_ours_go_on(start: Any) -> None:
    process = start("OwnSignal")
    process.wait_until_ready()
    process.wait_for("begun")
    for count in (1, 2):
        process.send(signal.SIGUSR1)
        process.wait_for("usr1 handled", count=count)

    assert process.stop() == 0
    assert len(lines(process, "stopping")) == 1
