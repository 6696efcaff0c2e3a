"""Programs in processes of their own: started, listened to line by line, ended. For tests and benchmarks alike."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.progress import STALLED_S

__all__ = ["ROOT", "WAIT_S", "Process", "cpu_seconds", "environment", "run"]

ROOT = Path(__file__).parents[1]

WAIT_S = 90.0
"""For a process to say or do something. Generous: the machine may be busy with everything else."""

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def environment(**extra: str) -> dict[str, str]:
    """This process's, with the platform and the tests to be found, and without what would point at a broker of the machine."""
    kept = {key: value for key, value in os.environ.items() if key not in ("AMQP_URI", "CI")}
    quiet = {
        "PYTHONPATH": os.pathsep.join((str(ROOT / "platform"), str(ROOT))),
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


def cpu_seconds(pid: int) -> float | None:
    """Processor time used so far by a process and its children, to 10 ms; None without /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    used = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return used + sum(cpu_seconds(child) or 0.0 for child in _children(pid))


def _children(pid: int) -> list[int]:
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children += map(int, task.read_text().split())
        except OSError:
            continue  # the thread ended between the listing and the reading
    return children


class Process:
    """A running command whose output can be waited for line by line.

    Killed at the end of the `with` block if it still runs.

    Args:
        command: the program and its arguments.
        cwd: its working directory.
        env: all of its environment; by default `environment()` with `extra`.
        talks: whether lines can be sent to it (`tell()`); without, its standard input is empty.
        errors_apart: whether its standard error is kept apart (`errors`) instead of among the lines; it is a group of
            processes of its own then, and killed with all it has started.
        extra: variables of its environment.
    """

    def __init__(
        self,
        *command: str,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        talks: bool = False,
        errors_apart: bool = False,
        **extra: str,
    ) -> None:
        self._lines: list[str] = []
        self._said = threading.Condition()
        self._errors = tempfile.TemporaryFile() if errors_apart else None  # noqa: SIM115  closed in close()
        self._process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment(**extra) if env is None else env,
            stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if self._errors is None else self._errors,
            text=True,
            errors="replace",
            start_new_session=errors_apart,
        )
        self._reader = threading.Thread(target=self._read, name=f"listen:{command[0]}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._said:
                self._lines.append(line)
                self._said.notify_all()
        with self._said:
            self._said.notify_all()

    # --- what it says -----------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def lines(self) -> list[str]:
        """All lines that it has said so far."""
        with self._said:
            return list(self._lines)

    @property
    def output(self) -> str:
        """All that it has said so far."""
        return "".join(self.lines)

    @property
    def errors(self) -> str:
        """Its standard error so far, where that is kept apart."""
        assert self._errors is not None
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def has_fallen_silent(self) -> bool:
        """Whether it will say no more: it has closed its output, mostly by ending."""
        return not self._reader.is_alive()

    @property
    def status(self) -> int | None:
        """The exit status, below zero after a signal; `None` while it runs."""
        return self._process.poll()

    def wait_until(
        self,
        heard: Callable[[list[str]], bool],
        timeout: float = WAIT_S,
        *,
        doing: Callable[[], None] | None = None,
    ) -> bool:
        """Wait until its lines are as wanted, at most `timeout` seconds and its life; return whether they are.

        Args:
            heard: given all lines; called with each new one.
            doing: called every 0.2 s meanwhile.
        """
        deadline = time.monotonic() + timeout

        def is_over() -> bool:
            return heard(self._lines) or not self._reader.is_alive()

        with self._said:
            while not is_over() and (left := deadline - time.monotonic()) > 0:
                if doing is not None and self.is_running:
                    self._said.release()
                    try:
                        doing()
                    finally:
                        self._said.acquire()
                self._said.wait(min(left, 0.2))
            return heard(self._lines)

    def wait_for(
        self,
        text: str,
        count: int = 1,
        timeout: float = WAIT_S,
        *,
        doing: Callable[[], None] | None = None,
    ) -> None:
        """Wait until `count` lines with `text` have been said; meanwhile call `doing` every 0.2 s."""
        heard = self.wait_until(
            lambda lines: sum(text in line for line in lines) >= count, timeout, doing=doing
        )
        assert heard, f'never said "{text}" {count} times:\n{self.output}'

    def wait_until_ready(self) -> None:
        """Wait until the services have started, for as long as their start gets on."""

        def is_ready() -> bool:
            return '"ready"' in self.output

        self.work_until(is_ready, what="the services start")
        assert is_ready(), f'never said "ready":\n{self.output}'

    # --- how it gets on ---------------------------------------------------------------------------

    def headway(self) -> tuple[int, float | None]:
        """Changes as long as it gets on, however slow the machine: its lines, and the processor time that it has had.

        A service that has started takes some even while it has nothing to do, so ask this of a start or of a command.
        """
        return len(self.lines), cpu_seconds(self.pid)

    def work_until(self, condition: Callable[[], Any], *, what: str) -> None:
        """Wait until the condition is true or its life is over, for as long as it gets on.

        Raises:
            AssertionError: `STALLED_S` without a line and without processor time.
        """
        reached, since = self.headway(), time.monotonic()
        while not condition() and not self.has_fallen_silent:
            if (now := self.headway()) != reached:
                reached, since = now, time.monotonic()
            stood_still_s = time.monotonic() - since
            assert stood_still_s < STALLED_S, (
                f"no progress for {STALLED_S:g} s: {what}:\n{self.output}"
            )
            with self._said:
                self._said.wait(0.05)

    # --- what it is told --------------------------------------------------------------------------

    def tell(self, line: str) -> None:
        """Send it a line.

        Raises:
            BrokenPipeError: it has ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def say_no_more(self) -> None:
        """Close its standard input."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it ended with a line unread
                self._process.stdin.close()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    # --- its end ----------------------------------------------------------------------------------

    def finish(self, timeout: float = WAIT_S) -> int:
        """Wait for its end; return the exit status, which is below zero after a signal."""
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout:g} s:\n{self.output}") from None
        self._reader.join(10)
        return status

    def stop(self, timeout: float = WAIT_S) -> int:
        """SIGTERM, then wait for the end."""
        self.send(signal.SIGTERM)
        return self.finish(timeout)

    def kill(self) -> None:
        """SIGKILL: what a crash is to a process."""
        if self._errors is None:
            self._process.kill()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(10)

    def close(self) -> None:
        """Kill it if it still runs, and let go of what it said through."""
        if self.is_running:
            self.kill()
        self._reader.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self.say_no_more()
        if self._errors is not None:
            self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
