"""The peers' processes: started, listened to, measured from outside, and ended.

A peer reports in lines of JSON on its standard output, each with a `bench` key that says what it
is; all else it prints is passed over. Its standard error is kept, for the message if it fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
_STOP_WITHIN = 15.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class PeerFailed(Exception):
    """A peer's process ended, kept silent too long, or reported something that cannot be right."""


class PeerProcess:
    """A running program of a peer. Leaving the context ends it and all it started."""

    def __init__(self, title: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self.title = title
        self._reports: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop()
        paths = [str(ROOT), str(ROOT / "platform"), os.environ.get("PYTHONPATH", "")]
        self.started_at = time.monotonic()
        self._process = subprocess.Popen(
            argv,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name=f"bench:{title}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process id, for readings from outside."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def expect(self, kind: str, timeout: float) -> dict[str, Any]:
        """Wait for the next report of this kind; reports of other kinds before it are dropped.

        Raises:
            PeerFailed: the process ended, or `timeout` seconds passed.
        """
        report = self.poll(kind, timeout)
        if report is None:
            raise self.failure(f"no {kind!r} report within {timeout:g} s")
        return report

    def poll(self, kind: str, timeout: float) -> dict[str, Any] | None:
        """The same, but None where `timeout` seconds passed without such a report."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                report = self._reports.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return None
            if report is None:
                self._reports.put(None)
                raise self.failure(f"ended before its {kind!r} report")
            if report["bench"] == kind:
                return report

    def tell(self, line: str) -> None:
        """Send the process one line on its standard input."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self.failure(f"ended before it could be told {line!r}") from None

    def finish(self) -> None:
        """Let the process end by itself, with nothing more to read on its standard input.

        Raises:
            PeerFailed: it did not within 15 s, or ended with an error.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            code = self._process.wait(_STOP_WITHIN)
        except subprocess.TimeoutExpired:
            raise self.failure(f"had not ended {_STOP_WITHIN:g} s after its work") from None
        if code != 0:
            raise self.failure("failed as it closed down")

    def failure(self, what: str) -> PeerFailed:
        """An error about this process, with the end of what it wrote to standard error."""
        self._stderr.seek(0)
        tail = self._stderr.read().decode(errors="replace").strip().splitlines()[-12:]
        shown = "".join(f"\n    {line}" for line in tail)
        return PeerFailed(f"{self.title} (exit code {self._process.poll()}): {what}{shown}")

    def stop(self) -> None:
        """End the process: asked first, then, past 15 s, killed with all it started."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self.is_running:
            self._process.terminate()
        try:
            self._process.wait(_STOP_WITHIN)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._reader.join(_STOP_WITHIN)
        self._process.stdout.close()
        self._stderr.close()
        with contextlib.suppress(BrokenPipeError):  # it ended with a line unread
            self._process.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.startswith(b'{"bench"'):
                continue
            self._reports.put(json.loads(line))
        self._reports.put(None)


def cpu_seconds(pid: int) -> float | None:
    """Processor time used so far by a process and its children, to 10 ms; None without /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    used = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return used + sum(cpu_seconds(child) or 0.0 for child in _children(pid))


def memory_mb(pid: int) -> dict[str, float]:
    """Resident memory of a process in megabytes (10^6 bytes): now (`rss`) and at most (`peak`).

    Empty without /proc.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    return {
        name: int(found[field].split()[0]) * 1024 / 1e6
        for name, field in (("rss", "VmRSS"), ("peak", "VmHWM"))
        if field in found
    }


def _children(pid: int) -> list[int]:
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children += map(int, task.read_text().split())
        except OSError:
            continue  # the thread ended between the listing and the reading
    return children
