"""`nameko shell` against Mycelia services: Nameko's own shell, unchanged, because the wire is the same."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.cli.commands import NAMEKO
from tests.processes import Process, environment, run

pytestmark = pytest.mark.usefixtures("fleet")

WAIT_S = 45.0


def test_piped_shell_calls_services_and_dispatches_events(
    project: Path, config: str, fleet: Process
) -> None:
    typed = (
        "print('answer', n.rpc.greeter.hello('shell', greeting='Hi'))\n"
        "print('by name', n.rpc['second'].who())\n"
        "print('pid', n.rpc.greeter.pid())\n"
        "n.dispatch_event('tower', 'closed', 'from the shell')\n"
        "n.rpc.greeter.fail('plane')\n"  # ends a shell that is not on a terminal
    )

    done = run([NAMEKO, "shell", "--config", config, "--interface", "plain"], project, stdin=typed)

    said = done.stdout + done.stderr
    assert "answer Hi, shell" in said
    assert "by name second" in said
    assert f"pid {fleet.pid}" in said
    assert "LookupError no plane here" in said
    _wait_for_event(project, "'from the shell'")


def _wait_for_event(project: Path, line: str) -> None:
    deadline = time.monotonic() + WAIT_S
    file = project / "events.txt"
    while not (file.exists() and line in file.read_text().splitlines()):
        assert time.monotonic() < deadline, f"{line} never arrived"
        select.select([], [], [], 0.05)


class Terminal:
    """A command on a terminal of its own, typed to and read from as a person would."""

    def __init__(self, *command: str, cwd: Path) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment(TERM="dumb"),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def wait_for(self, text: str) -> None:
        """Read until `text` has been shown, and forget what came before its end."""
        deadline = time.monotonic() + WAIT_S
        while text not in self.shown:
            left = deadline - time.monotonic()
            assert left > 0, f"never showed {text!r}: {self.shown}"
            readable, _, _ = select.select([self._ours], [], [], left)
            if readable:
                self.shown += os.read(self._ours, 4096).decode()
        self.shown = self.shown.partition(text)[2]

    def close(self) -> int:
        with contextlib.suppress(ProcessLookupError):
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGHUP)
        status = self.process.wait(WAIT_S)
        os.close(self._ours)
        return status


def test_interactive_shell_calls_services(project: Path, config: str, fleet: Process) -> None:
    terminal = Terminal(NAMEKO, "shell", "--config", config, "--interface", "plain", cwd=project)
    try:
        terminal.wait_for(">>> ")
        terminal.type("n.rpc.greeter.hello('person')\r")
        terminal.wait_for("'Hello, person'")
        terminal.type("n.rpc.greeter.pid()\r")
        terminal.wait_for(str(fleet.pid))
        terminal.type("n.rpc.greeter.fail('plane')\r")
        terminal.wait_for("RemoteError: LookupError no plane here")
        terminal.type("n.rpc.nobody.method()\r")
        terminal.wait_for("UnknownService")
        terminal.type("n.rpc.greeter.add(1)\r")
        terminal.wait_for("\r\n2\r\n>>> ")
        terminal.type("exit()\r")
        assert terminal.process.wait(WAIT_S) == 0
    finally:
        terminal.close()
