"""The commands of a user: `nameko …`, and `mycelia …` a hundred times over without starting Python as often."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.processes import environment

__all__ = ["MYCELIA", "NAMEKO", "Done", "MyceliaCommand"]

NAMEKO = str(Path(sys.executable).with_name("nameko"))
MYCELIA = (sys.executable, "-m", "mycelia.cli.main")

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
