"""The peers' processes: started, listened to, measured from outside, and ended.

A peer reports in lines of JSON on its standard output, each with a `bench` key that says what it
is; all else it prints is passed over. Its standard error is kept, for the message if it fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.processes import ROOT, Process, cpu_seconds

__all__ = ["ROOT", "PeerFailed", "PeerProcess", "cpu_seconds", "memory_mb"]

_STOP_WITHIN = 15.0


class PeerFailed(Exception):
    """A peer's process ended, kept silent too long, or reported something that cannot be right."""


class PeerProcess(Process):
    """A running program of a peer. Leaving the context ends it and all it started."""

    def __init__(self, title: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self.title = title
        self._reported = 0
        """Lines read so far."""
        paths = [str(ROOT), str(ROOT / "platform"), os.environ.get("PYTHONPATH", "")]
        path = os.pathsep.join(filter(None, paths))
        self.started_at = time.monotonic()
        super().__init__(
            *argv,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, **env},
            talks=True,
            errors_apart=True,
        )

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
        found: list[dict[str, Any]] = []

        def heard(lines: list[str]) -> bool:
            while not found and self._reported < len(lines):
                line = lines[self._reported]
                self._reported += 1
                if line.startswith('{"bench"') and (report := json.loads(line))["bench"] == kind:
                    found.append(report)
            return bool(found)

        if self.wait_until(heard, timeout):
            return found[0]
        if self.has_fallen_silent:
            raise self.failure(f"ended before its {kind!r} report")
        return None

    def tell(self, line: str) -> None:
        """Send the process one line on its standard input."""
        try:
            super().tell(line)
        except BrokenPipeError:
            raise self.failure(f"ended before it could be told {line!r}") from None

    def finish(self, timeout: float = _STOP_WITHIN) -> int:
        """Let the process end by itself, with nothing more to read on its standard input.

        Raises:
            PeerFailed: it did not within `timeout` seconds, or ended with an error.
        """
        self.say_no_more()
        try:
            code = super().finish(timeout)
        except AssertionError:
            raise self.failure(f"had not ended {timeout:g} s after its work") from None
        if code != 0:
            raise self.failure("failed as it closed down")
        return code

    def failure(self, what: str) -> PeerFailed:
        """An error about this process, with the end of what it wrote to standard error."""
        tail = self.errors.strip().splitlines()[-12:]
        shown = "".join(f"\n    {line}" for line in tail)
        return PeerFailed(f"{self.title} (exit code {self.status}): {what}{shown}")

    def close(self) -> None:
        """End the process: asked first, then, past 15 s, killed with all it started."""
        if self.is_running:
            self.send(signal.SIGTERM)
            with contextlib.suppress(AssertionError):
                super().finish(_STOP_WITHIN)
        super().close()


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
