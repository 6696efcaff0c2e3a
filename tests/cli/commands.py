"""The commands of a user: `nameko …`, and `mycelia …` a hundred times over without starting Python as often."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.processes import environment

__all__ = ["MYCELIA", "NAMEKO", "Done", "MyceliaCommand"]

NAMEKO = str(Path(sys.executable).with_name("nameko"))
MYCELIA = (sys.executable, "-m", "mycelia.cli.main")

# For each byte that it is sent with a socket it forks: one process that reads the request there, forks the command, and
# answers when it has ended. So commands run side by side.
_FORKING = """
import json, os, signal, socket, sys, tempfile
import uvloop
from mycelia.cli.main import main
asked = socket.socket(fileno=0)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    said, sockets, _, _ = socket.recv_fds(asked, 1, 1)
    if not said:
        sys.exit()
    if not os.fork():
        break
    os.close(sockets[0])
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
line = socket.socket(fileno=sockets[0])
with line.makefile() as lines:
    request = json.loads(lines.readline())
with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err, tempfile.TemporaryFile("w+") as given:
    given.write(request["stdin"]); given.seek(0)
    pid = os.fork()
    if not pid:
        line.close()
        for file, number in ((given, 0), (out, 1), (err, 2)):
            os.dup2(file.fileno(), number)
        sys.stdin = open(0, closefd=False)
        os.chdir(request["cwd"]); os.environ.update(request["environment"])
        sys.argv = ["mycelia", *request["argv"]]
        sys.path.insert(0, "")
        sys.exit(main(request["argv"]))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    out.seek(0); err.seek(0)
    line.sendall(json.dumps({"returncode": status, "stdout": out.read(), "stderr": err.read()}).encode())
os._exit(0)
"""


@dataclass(frozen=True)
class Done:
    """What came of a command."""

    returncode: int
    stdout: str
    stderr: str


class MyceliaCommand:
    """Runs `mycelia …`, each time in a process of its own that is forked from one with the imports behind it.

    Starting Python a hundred times would be most of what these tests take. Several may run at once, called from threads.
    """

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._parent = subprocess.Popen(
                [sys.executable, "-c", _FORKING], env=environment(), stdin=theirs
            )

    def __call__(self, *argv: str, cwd: Path, stdin: str = "", **extra: str) -> Done:
        request = {"argv": argv, "cwd": str(cwd), "stdin": stdin, "environment": extra}
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                socket.send_fds(self._socket, [b"!"], [theirs.fileno()])
            with ours.makefile("rw") as line:
                line.write(json.dumps(request) + "\n")
                line.flush()
                answer = line.read()
        return Done(**json.loads(answer))

    def close(self) -> None:
        with self._parent:
            self._socket.close()
