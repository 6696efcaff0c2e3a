"""Processes that outlive the one that starts them, and are known again by what a file remembers of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mycelia.broker.private_files import PRIVATE_UMASK, write_private

__all__ = ["DetachedProcesses", "is_alive", "wait_for"]

_POLL_INTERVAL = 0.05


class DetachedProcesses:
    """Processes started for one purpose, each known by its id and a word of its command line (ids are used again).

    Two objects for the same file, also in two processes, speak of the same processes.

    Args:
        file: Where the ids are kept; its directory exists by the first `launch()`.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._leash: subprocess.Popen[bytes] | None = None

    def launch(
        self,
        command: Sequence[str],
        marker: str,
        *,
        environment: Mapping[str, str],
        output: Path,
    ) -> int:
        """Start a command in a session of its own; return its process id.

        Args:
            command: The program and its arguments.
            marker: A word that its command line holds from its first moment on.
            environment: All of its environment.
            output: Gets what it prints; emptied first. Its working directory is the file's.
        """
        with os.fdopen(
            os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb"
        ) as printed:
            shell = subprocess.run(
                # The shell ends at once, so the command has no parent left that could take it along.
                ["/bin/sh", "-c", '"$@" </dev/null >&2 & echo $!', "sh", *command],
                env=environment,
                cwd=self._file.parent,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=printed,
                start_new_session=True,
                umask=PRIVATE_UMASK,
                check=True,
            )
        pid = int(shell.stdout)
        write_private(self._file, json.dumps([(pid, marker), *self._known()]) + "\n")
        return pid

    def pid_of(self, marker: str) -> int | None:
        """The id of the running process with this word; `None` when there is none."""
        for pid, word in self._known():
            if word == marker and is_alive(pid, word):
                return pid
        return None

    def kill(self) -> None:
        """End them all at once (SIGKILL), the last one started first, and wait until they are gone."""
        known = self._known()
        for pid, marker in known:
            if is_alive(pid, marker):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for pid, marker in known:
            wait_for(lambda pid=pid, marker=marker: not is_alive(pid, marker), 10.0)  # type: ignore[misc]
        self._file.unlink(missing_ok=True)
        self._untie()

    def tie(self) -> None:
        """Have a small helper kill them when its pipe to this process closes: they end when this process does."""
        if self._leash is not None:
            return
        pids = " ".join(str(pid) for pid, _ in self._known())
        self._leash = subprocess.Popen(
            ["/bin/sh", "-c", f"cat >/dev/null; kill -9 {pids} 2>/dev/null"],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def _untie(self) -> None:
        if self._leash is not None:
            self._leash.kill()
            self._leash.communicate()
            self._leash = None

    def _known(self) -> list[tuple[int, str]]:
        try:
            return [(pid, word) for pid, word in json.loads(self._file.read_text())]
        except FileNotFoundError:
            return []


def is_alive(pid: int, word: str = "") -> bool:
    """Whether the process runs and, as ids are used again, whether its command line holds the word."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return not word  # someone else's process: not one that we started
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        listed = subprocess.run(
            ["ps", "-o", "state=,command=", "-p", str(pid)],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        state, _, command = listed.strip().partition(" ")
    # Between two programs, in `exec`, a living process has no command line for a moment.
    return bool(state) and state[0] != "Z" and (word in command or not command)


def wait_for(condition: Callable[[], bool], timeout: float) -> None:
    """Return once the condition holds; look every 50 ms.

    Raises:
        TimeoutError: It did not within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            raise TimeoutError
        time.sleep(_POLL_INTERVAL)
