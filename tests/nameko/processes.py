"""Processes beside the test's own: `nameko run`, and stock clients. Eventlet stays out of the test process."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pika
import yaml
from tests.processes import ROOT, Process

from mycelia.handover import NATIVE_MODULE

# Asking for a queue that is not there yet is how the tests wait; pika warns each time.
logging.getLogger("pika.channel").setLevel(logging.ERROR)

__all__ = ["NamekoRun", "StockClient", "await_consumer", "queue_state"]

START_TIMEOUT = 90.0
STOP_TIMEOUT = 30.0


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
        self._process: Process | None = None

    def start(self) -> NamekoRun:
        self._process = Process(
            *self._command, "--config", str(self._config_file), *self.modules, cwd=ROOT
        )
        return self

    def await_queues(self, *queues: str) -> NamekoRun:
        """Wait until the service consumes these."""
        for queue in queues:
            await_consumer(self.config["AMQP_URI"], queue, self.check_alive)
        return self

    @property
    def process(self) -> Process:
        assert self._process is not None, "not started"
        return self._process

    @property
    def output(self) -> str:
        return self.process.output

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.is_running

    def check_alive(self) -> None:
        assert self.is_running, f"`nameko run {self.modules}` has ended:\n{self.output}"

    def await_output(self, text: str, timeout: float = START_TIMEOUT) -> str:
        """Wait until `text`, of one line or several, has been printed."""
        heard = self.process.wait_until(lambda lines: text in "".join(lines), timeout)
        assert heard, f"no {text!r} in:\n{self.output}"
        return self.output

    def wait(self, timeout: float = STOP_TIMEOUT) -> int:
        return self.process.finish(timeout)

    def terminate(self, timeout: float = STOP_TIMEOUT) -> int:
        """Send SIGTERM and wait; returns the exit code."""
        return self.process.stop(timeout) if self.is_running else self.process.finish(timeout)

    def kill(self) -> None:
        if self._process is not None:
            self._process.close()

    def __enter__(self) -> NamekoRun:
        return self if self._process is not None else self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(AssertionError):  # it takes too long
            self.terminate()
        self.process.close()


class StockClient:
    """A process with Nameko's standalone clients, told what to do line by line (`stock_client.py`)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        program = str(Path(__file__).with_name("stock_client.py"))
        self._process = Process(
            sys.executable, program, json.dumps(config), cwd=ROOT, talks=True, errors_apart=True
        )
        self._answers = 0

    def ask(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """The result, or for an error a dict of its `type`, `text` and attributes."""
        self._process.tell(json.dumps([operation, args, kwargs]))
        self._answers += 1
        heard = self._process.wait_until(lambda lines: len(lines) >= self._answers)
        assert heard, f"the stock client has no answer:\n{self._process.errors}"
        return json.loads(self._process.lines[self._answers - 1])

    def call(self, service: str, method: str, *args: Any, **kwargs: Any) -> Any:
        return self.ask("call", service, method, *args, **kwargs)

    def dispatch(self, service: str, event_type: str, payload: Any) -> None:
        self.ask("dispatch", service, event_type, payload)

    def close(self) -> None:
        self._process.say_no_more()
        with contextlib.suppress(AssertionError):
            self._process.finish(5)
        self._process.close()
