"""Plays the console blocks of a document as a reader would: files written, commands typed, output compared.

`…` in a document stands for anything. Log lines are compared by event, level and fields; of what differs from run to run (call
ids, the broker's address) only the presence. Commands that prepare the reader's machine are passed over: here that is done.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.docs.documents import ROOT, Block
from tests.processes import Process

__all__ = ["Terminal"]

PATIENT = (r"\btimeout=\d+", "timeout=60")
"""What the documents' programs wait for is answered at once, but for a machine that is busy with everything else."""

PREPARES = ("export ", "mycelia broker ", "python3 -m venv ", "pip ", "make ")
RUNS = ("mycelia run ", "nameko run ")
VARIES = {"broker", "version", "call_id"}

_LOG_LINE = re.compile(r"\d\d:\d\d:\d\d\.\d{3} \[(\w+) *\] (\w+) *(?:\[(\w+)\] )?(.*)")
_FIELD = re.compile(r'(\w+)=("[^"]*"|\S+)')


class Terminal:
    """Two terminals in one folder: one runs the services, the other is typed into.

    Args:
        folder: where the reader works.
        amqp_uri: the reader's broker.
    """

    def __init__(self, folder: Path, amqp_uri: str) -> None:
        self.folder = folder
        scripts = Path(sys.executable).parent
        self._environment = {key: value for key, value in os.environ.items() if key != "CI"} | {
            "AMQP_URI": amqp_uri,
            "PATH": os.pathsep.join((str(scripts), os.environ["PATH"])),
            "PYTHONPATH": str(ROOT / "platform"),
            "PYTHONWARNINGS": "ignore",
            "PYTHONUNBUFFERED": "1",
        }
        self._services: Process | None = None
        self._read = 0
        """Log lines compared so far."""

    # --- the document ---------------------------------------------------------------------------

    def play(self, block: Block) -> None:
        """Write the file that a block shows, or type its commands, or expect its log lines."""
        if block.name:
            (self.folder / block.name).write_text(re.sub(*PATIENT, block.text), "utf-8")
        elif block.language == "console":
            if block.text.startswith("^C\n"):
                self.stop()
            for command, expected in _commands(block.text):
                self.enter(command, expected)
        elif block.language == "text" and _LOG_LINE.match(block.text):
            self.expect_log(block.text)

    def enter(self, command: str, expected: str) -> None:
        """Type a command; what it prints must be what is expected."""
        command = command.partition("  #")[0].strip()
        if command.startswith(PREPARES):
            return
        if command.startswith(RUNS):
            self._run(command)
            self.expect_log(expected)
            return
        stdin = "\n".join(re.findall(r"^>>> (.*)$", expected, re.MULTILINE))
        if command.startswith("nameko shell"):
            command += " --interface plain"
        with self._started(command, talks=True) as process:
            for line in stdin.splitlines():
                process.tell(line)
            process.say_no_more()
            process.work_until(lambda: False, what=command)
            printed = process.output.replace("\r", "")
        wanted = re.sub(r"^>>> .*\n", "", expected, flags=re.MULTILINE).strip()
        pattern = re.escape(wanted).replace("…", r"[\s\S]*")
        if "pytest" in command or stdin:  # they say more than the document shows
            matches = all(line in printed for line in wanted.splitlines())
        else:
            matches = re.fullmatch(pattern, printed.strip()) is not None
        assert matches, f"$ {command}\nprinted:\n{printed}\nthe document says:\n{expected}"

    # --- the services ---------------------------------------------------------------------------

    def _run(self, command: str) -> None:
        if self._services is not None:
            self._services.kill()  # started again, it has been killed: `^C` in a document stops it
            self._services.close()
        self._services, self._read = self._started(f"exec {command}"), 0

    def _started(self, command: str, **more: bool) -> Process:
        return Process("/bin/sh", "-c", command, cwd=self.folder, env=self._environment, **more)

    def _log(self) -> list[dict[str, Any]]:
        assert self._services is not None
        return [json.loads(line) for line in self._services.lines if line.startswith('{"time"')]

    def expect_log(self, expected: str) -> None:
        """Wait until the services have logged what is expected, in any order, beyond what was expected before."""
        assert self._services is not None
        told = _log_lines(expected)

        def missing() -> list[tuple[str, str, dict[str, str], list[str]]]:
            fresh = self._log()[self._read :]
            return [line for line in told if not any(_says(line, record) for record in fresh)]

        self._services.work_until(lambda: not missing(), what=f"logged: {told}")
        heard = not missing()
        fresh = self._log()[self._read :]
        assert heard, f"not logged: {missing()}\nlogged: {fresh}"
        self._read += max(
            position + 1
            for position, record in enumerate(fresh)
            if any(_says(line, record) for line in told)
        )

    def stop(self) -> None:
        """Ctrl-C, and wait for the end."""
        assert self._services is not None
        with self._services:
            assert self._stopped(self._services) == 0, self._services.output
        self._services = None

    def _stopped(self, services: Process) -> int:
        if services.is_running:
            services.send(signal.SIGINT)
            services.work_until(lambda: False, what="the end of the services")
        return services.finish()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._services is None:
            return
        with self._services:
            code = self._stopped(self._services)
            if exc is None:
                assert code == 0, self._services.output


def _commands(text: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with what is shown after it. A backslash at the end goes on."""
    text = text.replace("\\\n", " ")
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    return [(command, output) for command, _, output in (part.partition("\n") for part in parts)]


def _log_lines(text: str) -> list[tuple[str, str, dict[str, str], list[str]]]:
    """Level, event, fields and the lines of a traceback, of each log line in a document."""
    lines: list[tuple[str, str, dict[str, str], list[str]]] = []
    for line in text.splitlines():
        match = _LOG_LINE.match(line)
        if match is not None:
            fields = {key: value.strip('"') for key, value in _FIELD.findall(match[4])}
            lines.append((match[1], match[2], fields, []))
        elif lines and line.strip() != "…":
            lines[-1][3].append(line.removeprefix('  File "').strip())
    return lines


def _says(line: tuple[str, str, dict[str, str], list[str]], record: dict[str, Any]) -> bool:
    level, event, fields, traceback = line
    return (
        record["level"] == level
        and record["event"] == event
        and all(
            key in record and (key in VARIES or str(record[key]) == value)
            for key, value in fields.items()
        )
        and all(part in record.get("exception", "") for part in traceback)
    )
