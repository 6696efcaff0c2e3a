"""A private PostgreSQL for the suite: own port, own data, thrown away at the end. Nothing of the machine's own is touched.

PostgreSQL refuses to run as root, so root starts it as `postgres` (whom Debian's package makes) or `nobody`.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
from tests.ports import free_port

from mycelia.broker.detached import DetachedProcesses, is_alive, wait_for

__all__ = ["PrivatePostgres", "find_postgres", "fresh_database"]

_START_S = 60.0
_CONFIG = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 200
fsync = off                     # what a killed process has written, the kernel keeps; only a lost machine needs it
"""


def find_postgres() -> Path | None:
    """The folder with `initdb` and `postgres`; `None` when they are not installed. Debian keeps them off `PATH`."""
    candidates = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"),
        key=lambda path: [int(part) for part in re.findall(r"\d+", path.parent.name)],
        reverse=True,
    )
    on_path = shutil.which("initdb")
    if on_path:
        candidates.append(Path(on_path).resolve().parent)
    for folder in candidates:
        if all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres")):
            return folder
    return None


class PrivatePostgres:
    """One PostgreSQL server. Its methods block; none belongs on an event loop. Killed when this process ends, however it does."""

    def __init__(self) -> None:
        programs = find_postgres()
        assert programs is not None, "look with find_postgres() first"
        self._programs = programs
        self.port = free_port()
        # Not below pytest's folder, which only its owner may enter.
        self.directory = Path(tempfile.mkdtemp(prefix="mycelia-postgres-"))
        self._data = self.directory / "data"
        self._become: list[str] = []
        if os.geteuid() == 0:
            user = _somebody()
            os.chown(self.directory, user.pw_uid, user.pw_gid)
            self._become = [
                *("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}"),
                *("--clear-groups", "--"),
            ]
        self._processes = DetachedProcesses(self.directory / "pids.json")

    # --- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it, and return when it answers; one that runs is left as it is."""
        if self._is_running():
            return
        if not self._data.exists():
            made = subprocess.run(
                [
                    *self._become,
                    *(str(self._programs / "initdb"), "--pgdata", str(self._data)),
                    *("--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"),
                    "--no-sync",
                ],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            assert made.returncode == 0, made.stderr
            with (self._data / "postgresql.conf").open("a") as config:
                config.write(_CONFIG)
        # A killed server's own processes go a moment later; until then the data has an owner.
        wait_for(self._starts, _START_S)

    def _starts(self) -> bool:
        output = self.directory / "output.log"
        pid = self._processes.launch(
            [
                *self._become,
                *(str(self._programs / "postgres"), "-D", str(self._data), "-p", str(self.port)),
            ],
            str(self._data),
            environment={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            output=output,
        )
        wait_for(lambda: self._answers() or not is_alive(pid, str(self._data)), _START_S)
        if self._answers():
            self._processes.tie()
            return True
        said = output.read_text()
        assert "shared memory block" in said or "lock file" in said, said
        self._processes.kill()
        return False

    def kill(self) -> None:
        """End it at once, as a crash would; its data stays, for a later `start()` on the same port."""
        self._processes.kill()

    def stop_at_once(self) -> None:
        """`pg_ctl stop -m immediate`: all its processes end where they are, connections are cut, and the next `start()` recovers."""
        command = [str(self._programs / "pg_ctl"), "stop", "--mode=immediate", "--wait"]
        subprocess.run(
            [*self._become, *command, "--pgdata", str(self._data)],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        )
        self._processes.kill()

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _is_running(self) -> bool:
        return self._processes.pid_of(str(self._data)) is not None

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.uri(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    # --- what it holds ---------------------------------------------------------------------------

    def uri(self, database: str = "postgres") -> str:
        """`postgresql://…`: as libpq and SQLAlchemy 2.1 take it; SQLAlchemy 2.0 wants the driver named."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str) -> None:
        """Run a statement outside of any transaction, in the database `postgres`."""
        with psycopg.connect(self.uri(), autocommit=True, connect_timeout=10) as connection:
            connection.execute(statement.encode())


@contextlib.contextmanager
def fresh_database(server: PrivatePostgres) -> Iterator[str]:
    """The URI of an empty database, dropped at the end with whoever is still connected."""
    name = f"test_{secrets.token_hex(6)}"
    server.execute(f"CREATE DATABASE {name}")
    yield server.uri(name)
    server.start()  # the test may have killed it
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _somebody() -> pwd.struct_passwd:
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("postgres")
    return pwd.getpwnam("nobody")
