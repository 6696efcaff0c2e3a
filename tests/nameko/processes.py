"""Processes beside the test's own: `nameko run`, and stock clients. Eventlet stays out of the test process."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pika
import yaml

from mycelia.runtime.handover import NATIVE_MODULE

# Asking for a queue that is not there yet is how the tests wait; pika warns each time.
logging.getLogger("pika.channel").setLevel(logging.ERROR)

__all__ = ["NamekoRun", "StockClient", "await_consumer", "queue_state"]

ROOT = Path(__file__).parents[2]
START_TIMEOUT = 30.0
STOP_TIMEOUT = 15.0


def _environment() -> dict[str, str]:
    path = os.pathsep.join((str(ROOT / "platform"), str(ROOT)))
    return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1"}


def queue_state(uri: str, queue: str) -> tuple[int, int] | None:
    """Messages ready in a queue, and its consumers, as the broker knows them at this moment; `None` without queue."""
    connection = pika.BlockingConnection(pika.URLParameters(uri))
    try:
        method = connection.channel().queue_declare(queue, passive=True).method
    except pika.exceptions.ChannelClosedByBroker:
        return None
    finally:
        with contextlib.suppress(pika.exceptions.AMQPError):
            connection.close()
    return method.message_count, method.consumer_count


def await_consumer(uri: str, queue: str, alive: Callable[[], None], count: int = 1) -> None:
    """Wait until `queue` has `count` consumers; `alive()` raises when waiting is in vain."""
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        alive()
        state = queue_state(uri, queue)
        if state is not None and state[1] >= count:
            return
        assert time.monotonic() < deadline, f"queue {queue}: {state} after {START_TIMEOUT} s"
        time.sleep(0.05)


class NamekoRun:
    """`nameko run` with some services, in a process of its own.

    Args:
        modules: what to run.
        config: the configuration; written to a file.
        directory: for that file and the output.
        handed_over: start with what `nameko run` becomes; spares the time of Nameko's own start.
    """

    def __init__(
        self,
        *modules: str,
        config: Mapping[str, Any],
        directory: Path,
        handed_over: bool = False,
    ) -> None:
        self.modules = modules
        nameko_run = [str(Path(sys.executable).with_name("nameko")), "run"]
        self._command = [sys.executable, "-m", NATIVE_MODULE] if handed_over else nameko_run
        self.config = dict(config)
        stamp = f"{time.monotonic_ns()}"
        self._config_file = directory / f"config-{stamp}.yaml"
        self._config_file.write_text(yaml.safe_dump(self.config))
        self._log = directory / f"output-{stamp}.txt"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> NamekoRun:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*self._command, "--config", str(self._config_file), *self.modules],
                cwd=ROOT,
                env=_environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        return self

    def await_queues(self, *queues: str) -> NamekoRun:
        """Wait until the service consumes these."""
        for queue in queues:
            await_consumer(self.config["AMQP_URI"], queue, self.check_alive)
        return self

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def check_alive(self) -> None:
        assert self.is_running, f"`nameko run {self.modules}` has ended:\n{self.output}"

    def await_output(self, text: str, timeout: float = START_TIMEOUT) -> str:
        """Wait until `text` has been printed."""
        deadline = time.monotonic() + timeout
        while text not in self.output:
            self.check_alive()
            assert time.monotonic() < deadline, f"no {text!r} in:\n{self.output}"
            time.sleep(0.05)
        return self.output

    def wait(self, timeout: float = STOP_TIMEOUT) -> int:
        assert self.process is not None
        return self.process.wait(timeout)

    def terminate(self, timeout: float = STOP_TIMEOUT) -> int:
        """Send SIGTERM and wait; returns the exit code."""
        assert self.process is not None
        if self.is_running:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def kill(self) -> None:
        if self.process is not None and self.is_running:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> NamekoRun:
        return self if self.process is not None else self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.terminate()
        self.kill()


class StockClient:
    """A process with Nameko's standalone clients, told what to do line by line (`stock_client.py`)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("stock_client.py")), json.dumps(config)],
            cwd=ROOT,
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """The result, or for an error a dict of its `type`, `text` and attributes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([operation, args, kwargs]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the stock client has ended with {self._process.wait(5)}"
        return json.loads(line)

    def call(self, service: str, method: str, *args: Any, **kwargs: Any) -> Any:
        return self.ask("call", service, method, *args, **kwargs)

    def dispatch(self, service: str, event_type: str, payload: Any) -> None:
        self.ask("dispatch", service, event_type, payload)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
