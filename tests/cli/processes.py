"""Commands in processes of their own, as a user starts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

__all__ = ["MYCELIA", "NAMEKO", "Done", "MyceliaCommand", "Process", "environment", "run"]

ROOT = Path(__file__).parents[2]
NAMEKO = str(Path(sys.executable).with_name("nameko"))
MYCELIA = (sys.executable, "-m", "mycelia.cli.main")

WAIT_S = 45.0
"""For a process to say or do something. Generous: the machine may be busy with everything else."""


def environment(**extra: str) -> dict[str, str]:
    """This process's, with the platform to be found, and without what would point at a broker of the machine."""
    kept = {key: value for key, value in os.environ.items() if key not in ("AMQP_URI", "CI")}
    quiet = {
        "PYTHONPATH": str(ROOT / "platform"),
        "PYTHONWARNINGS": "ignore",
        "PYTHONUNBUFFERED": "1",
    }
    return kept | quiet | extra


def run(
    command: Sequence[str], cwd: Path, *, stdin: str = "", timeout: float = WAIT_S, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment(**extra),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


_FORKING = """
import contextlib, json, os, sys, tempfile
import uvloop
from mycelia.cli.main import main
for line in sys.stdin:
    request = json.loads(line)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err, tempfile.TemporaryFile("w+") as given:
        given.write(request["stdin"]); given.seek(0)
        pid = os.fork()
        if not pid:
            for file, number in ((given, 0), (out, 1), (err, 2)):
                os.dup2(file.fileno(), number)
            sys.stdin = open(0, closefd=False)
            os.chdir(request["cwd"]); os.environ.update(request["environment"])
            sys.argv = ["mycelia", *request["argv"]]
            sys.path.insert(0, "")
            sys.exit(main(request["argv"]))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out.seek(0); err.seek(0)
        print(json.dumps({"returncode": status, "stdout": out.read(), "stderr": err.read()}), flush=True)
"""


@dataclass(frozen=True)
class Done:
    """What came of a command."""

    returncode: int
    stdout: str
    stderr: str


class MyceliaCommand:
    """Runs `mycelia …`, each time in a process of its own that is forked from one with the imports behind it.

    Starting Python a hundred times would be most of what these tests take.
    """

    def __init__(self) -> None:
        self._parent = subprocess.Popen(
            [sys.executable, "-c", _FORKING],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *argv: str, cwd: Path, stdin: str = "", **extra: str) -> Done:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        request = {"argv": argv, "cwd": str(cwd), "stdin": stdin, "environment": extra}
        self._parent.stdin.write(json.dumps(request) + "\n")
        self._parent.stdin.flush()
        return Done(**json.loads(self._parent.stdout.readline()))

    def close(self) -> None:
        with self._parent:
            assert self._parent.stdin is not None
            self._parent.stdin.close()


class Process:
    """A running command whose output, both streams together, can be waited for line by line.

    Killed at the end of the `with` block if it still runs.
    """

    def __init__(self, *command: str, cwd: Path, **extra: str) -> None:
        self._lines: list[str] = []
        self._said = threading.Condition()
        self._process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment(**extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._said:
                self._lines.append(line)
                self._said.notify_all()
        with self._said:
            self._said.notify_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        """All that it has said so far."""
        with self._said:
            return "".join(self._lines)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait_for(
        self,
        text: str,
        count: int = 1,
        timeout: float = WAIT_S,
        *,
        doing: Callable[[], None] | None = None,
    ) -> None:
        """Wait until `count` lines with `text` have been said; meanwhile call `doing` every 0.2 s."""
        deadline = time.monotonic() + timeout

        def heard() -> bool:
            return sum(text in line for line in self._lines) >= count

        def is_over() -> bool:
            return heard() or not self._reader.is_alive()

        while not is_over() and time.monotonic() < deadline:
            if doing is not None and self.is_running:
                doing()
            with self._said:
                self._said.wait_for(is_over, 0.2)
        assert heard(), f'never said "{text}" {count} times:\n{self.output}'

    def wait_until_ready(self) -> None:
        """Wait until the services have started."""
        self.wait_for('"ready"')

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def finish(self, timeout: float = WAIT_S) -> int:
        """Wait for its end; return the exit status, which is below zero after a signal."""
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout:g} s:\n{self.output}") from None
        self._reader.join(10)
        return status

    def stop(self) -> int:
        """SIGTERM, then wait for the end."""
        self.send(signal.SIGTERM)
        return self.finish()

    def kill(self) -> None:
        """SIGKILL: what a crash is to a process."""
        self._process.kill()
        self._process.wait()
        self._reader.join(10)

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.is_running:
            self.kill()
        self._reader.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()
