"""A private RabbitMQ node: own name, ports, data, cookie and log, for one directory and no one else.

It runs the installed `rabbitmq-server` as the current user, beside any RabbitMQ that the machine already has, and
never touches that one. Everything listens on 127.0.0.1 only. The directory holds all there is of the node:

    node.json         name and ports, chosen once and kept, so that a restart is found under the same URI
    pids.json         the running processes: the node itself and its epmd
    rabbitmq.conf     written at each start
    data/  log/       the node's own; `log/startup.log` is what it printed before its log file was open

The processes live on when the starting one ends (`mycelia broker start`), unless started with `leash=True` (tests).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from mycelia.broker.detached import DetachedProcesses, is_alive, wait_for
from mycelia.broker.management_api import ManagementApi, ManagementApiError
from mycelia.broker.private_files import private_directory, write_private
from mycelia.errors import BrokerUnavailable, ConfigError

__all__ = [
    "PORT_RANGE",
    "VERSION_FILE",
    "ClusterSeat",
    "NodeStatus",
    "PrivateNode",
    "RabbitInstallation",
    "find_rabbitmq",
    "installed_rabbitmq",
    "is_free",
    "launch_epmd",
    "probe_amqp",
]

# Below the range from which systems take ports for outgoing connections (Linux 32768, macOS 49152), so that a
# remembered port is still free at the next start.
PORT_RANGE = (20_000, 29_999)
PORT_SHARES = 50
"""Parts of the range, of which each process chooses from one."""
PORT_TRIES = 3
"""Starts, when somebody else takes a port between its choice and the node's use of it."""

# What a node's log ends with that found a port taken: whoever had it may have let go of it since.
_NO_LISTENER = re.compile("could_not_start_listener|eaddrinuse")

_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
_LOOPBACK = "{127,0,0,1}"  # as Erlang writes it

# The management API samples every 5 s by default, and so shows a new connection up to 5 s late. `rabbitmq.conf` has no
# word for less.
_STATISTICS_EACH_SECOND = """[{rabbitmq_management, [{sample_retention_policies,
  [{global, [{60, 1}, {3600, 60}]}, {basic, [{60, 1}, {3600, 60}]}, {detailed, [{60, 1}]}]}]}].
"""


@dataclass(frozen=True, slots=True)
class RabbitInstallation:
    """Where RabbitMQ's own scripts are (`rabbitmq-server`, `rabbitmqctl`), and which version they start."""

    scripts: Path
    version: str
    """Such as `3.10.8`; empty when the path does not tell."""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What is known of a private node without asking it anything but its version."""

    running: bool
    pid: int | None
    uri: str
    management_url: str
    version: str
    """The version it answered with; empty when it does not answer AMQP (yet)."""
    directory: Path
    log_file: Path


def find_rabbitmq() -> RabbitInstallation | None:
    """Find an installed RabbitMQ server; `None` when there is none.

    Debian's `/usr/sbin/rabbitmq-server` is a wrapper that insists on the user `rabbitmq` or root and on the system's
    data directory, so the real scripts in `/usr/lib/rabbitmq` come before `PATH`. `MYCELIA_RABBITMQ_SCRIPTS` names
    another folder of scripts, for instance of a second version.
    """
    chosen = os.environ.get("MYCELIA_RABBITMQ_SCRIPTS")
    candidates = [Path(chosen)] if chosen else []
    if not chosen:
        candidates.append(Path("/usr/lib/rabbitmq/bin"))
        candidates.extend(sorted(Path("/usr/lib/rabbitmq/lib").glob("*/sbin"), reverse=True))
        on_path = shutil.which("rabbitmq-server")
        if on_path:
            candidates.append(Path(on_path).parent)
        candidates.extend(map(Path, ("/opt/homebrew/sbin", "/usr/local/sbin")))
    for scripts in candidates:
        server = scripts / "rabbitmq-server"
        if os.access(server, os.X_OK) and not _is_debian_wrapper(server):
            return RabbitInstallation(scripts, _version_of(server))
    return None


def installed_rabbitmq() -> RabbitInstallation:
    """The installed RabbitMQ server.

    Raises:
        ConfigError: There is none.
    """
    installation = find_rabbitmq()
    if installation is None:
        raise ConfigError(
            "RabbitMQ is not installed: no rabbitmq-server in /usr/lib/rabbitmq or on PATH. "
            "Install it (Debian and Ubuntu: apt-get install rabbitmq-server; macOS: brew install rabbitmq)."
        )
    return installation


VERSION_FILE = "version"
"""Beside scripts whose path does not tell the version."""


def _version_of(server: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return server.with_name(VERSION_FILE).read_text().strip()
    match = re.search(r"(\d+\.\d+\.\d+)", str(server.resolve()))
    return match.group(1) if match else ""


def _is_debian_wrapper(server: Path) -> bool:
    return server.resolve().name == "rabbitmq-script-wrapper" or "/usr/sbin/" in str(server)


PORT_RELEASE_S = 3.0
"""Seconds to wait for a remembered port, so that clients find a restarted node where it was."""


def probe_amqp(host: str, port: int, timeout: float = 1.0) -> str | None:
    """Say hello in AMQP 0-9-1 and return the version the broker names, or `None` when nothing of the kind answers.

    A listening port is not yet a broker: only `connection.start` counts. A broker that hides its version gives "".
    """
    try:
        with socket.create_connection((host, port), timeout) as connection:
            connection.settimeout(timeout)
            connection.sendall(_PROTOCOL_HEADER)
            start = connection.recv(4096)
    except OSError:
        return None
    # A method frame (1) on channel 0 with class 10, method 10: connection.start.
    if start[:3] != b"\x01\x00\x00" or start[7:11] != b"\x00\x0a\x00\x0a":
        return None
    match = re.search(rb"\x07versionS\x00\x00\x00.([0-9A-Za-z.+~-]+)", start, re.DOTALL)
    return match.group(1).decode() if match else ""


@dataclass(frozen=True, slots=True)
class _Identity:
    """What stays the same over restarts."""

    name: str
    port: int
    management_port: int
    distribution_port: int
    epmd_port: int


@dataclass(frozen=True, slots=True)
class ClusterSeat:
    """What the nodes of one cluster share."""

    names: tuple[str, ...]
    """All its nodes, by their Erlang names."""
    cookie: str
    epmd_port: int
    """Where their epmd listens. It is the cluster's: it outlives each of its nodes."""


class PrivateNode:
    """One private RabbitMQ node, kept in one directory.

    Two objects for the same directory, also in two processes, speak of the same node. Methods block; none belongs on
    an event loop.

    Args:
        directory: Made when missing. Holds everything of the node.
        port: The AMQP port. `None` takes the one remembered in the directory, or a free one, and remembers it.
        plugins: Enabled beside `rabbitmq_management`, which is always on: the node is managed through it.
        config: More lines for `rabbitmq.conf`; they come last and win.
        cluster: The cluster that it joins; `None` leaves it alone. See `PrivateCluster`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        plugins: Sequence[str] = (),
        config: Sequence[str] = (),
        cluster: ClusterSeat | None = None,
    ) -> None:
        self.directory = directory.resolve()
        self.log_file = self.directory / "log" / "rabbit.log"
        self._wanted_port = port
        self._plugins = tuple(dict.fromkeys(("rabbitmq_management", *plugins)))
        self._config = tuple(config)
        self._cluster = cluster
        self._processes = DetachedProcesses(self.directory / "pids.json")
        self._api: ManagementApi | None = None

    # --- life ------------------------------------------------------------------------------------

    def start(self, timeout: float = 60.0, *, leash: bool = False) -> None:
        """Start the node and return when it answers AMQP and its management API; a node that already runs is left as it is.

        Args:
            timeout: Seconds until a silent node counts as failed. Usual are 3 to 8.
            leash: Kill the node when this process ends, however it ends.

        Raises:
            ConfigError: RabbitMQ is not installed, or the wanted port is taken.
            BrokerUnavailable: The node ended or did not answer in time; the message has the log's last lines.
        """
        for tries_left in reversed(range(PORT_TRIES)):
            try:
                self._start(timeout, leash)
            except _PortTaken:
                if not tries_left:
                    raise
            else:
                return

    def _start(self, timeout: float, leash: bool) -> None:
        """Start once.

        Raises:
            _PortTaken: Somebody else has taken one of its ports since it was chosen. The next start chooses another, if it still is.
        """
        installation = installed_rabbitmq()
        private_directory(self.directory)
        with self._locked():
            identity = None
            if self._running_pid() is None:
                identity = self._settle_identity()
                self._write_files(identity)
                self._launch(installation, identity)
            elif self._wanted_port not in (None, self.port):
                raise ConfigError(
                    f"the private node in {self.directory} already runs on port {self.port}, not on "
                    f"{self._wanted_port}. Stop it first, or leave the port out."
                )
            if leash:
                self._processes.tie()
        try:
            self._wait_until_answering(timeout)
        except BaseException as exc:
            if identity is not None:
                self.kill()
                if isinstance(exc, BrokerUnavailable) and (
                    _NO_LISTENER.search(str(exc)) or self._has_lost_a_port(identity)
                ):
                    raise _PortTaken(str(exc)) from None
            raise

    def stop(self, timeout: float = 30.0) -> None:
        """Stop the node in order, as `rabbitmqctl stop` does; kill it when `timeout` seconds do not suffice.

        Usual are 1 to 7 s: in RabbitMQ 3.10 the management plugin waits 5 s for a part of itself that has already ended.
        """
        pid = self._running_pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                wait_for(lambda: not is_alive(pid, self.name), timeout)
        self.kill()

    def kill(self) -> None:
        """End the node at once (SIGKILL), as a crash would. Its data stays, for a later `start()`.

        RabbitMQ (seen with 3.10.8) confirms a declaration before it is on disk: killed a moment later, the node may come back
        without a new classic queue, and without the messages that it had confirmed there. It notes a new quorum queue
        only 500 ms after the declaration: killed sooner, it comes back with a queue that never finds its leader again. So it is
        with the first streams of a node (seen with 3.10.8, 4.0.5 and 4.3.6): 500 ms later it had not noted them yet, 1 s later it had.
        """
        self._processes.kill()
        if self._api is not None:
            self._api.close()

    def remove(self) -> None:
        """Kill the node and delete its directory with all data."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def status(self) -> NodeStatus:
        """Tell what runs, where, and whether it answers. Starts and changes nothing."""
        pid = self._running_pid()
        known = self.is_known
        return NodeStatus(
            running=pid is not None,
            pid=pid,
            uri=self.uri() if known else "",
            management_url=f"http://127.0.0.1:{self.management_port}/" if known else "",
            version=(probe_amqp("127.0.0.1", self.port) or "") if pid is not None else "",
            directory=self.directory,
            log_file=self.log_file,
        )

    def _has_lost_a_port(self, identity: _Identity) -> bool:
        """Whether somebody else is on one of the ports, now that the node is gone."""
        ports = [identity.port, identity.management_port, identity.distribution_port]
        if self._cluster is None:
            ports.append(identity.epmd_port)
        return not all(_becomes_free(port) for port in ports)

    # --- its places ------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The Erlang node name, unique for the directory: `mycelia-<hash>@localhost`."""
        digest = hashlib.sha256(str(self.directory).encode()).hexdigest()[:10]
        return f"mycelia-{digest}@localhost"

    @property
    def is_known(self) -> bool:
        """Whether it has been started here before, and so has its ports."""
        return self._identity() is not None

    @property
    def port(self) -> int:
        """The AMQP port on 127.0.0.1."""
        return self._known_identity().port

    @property
    def management_port(self) -> int:
        """The management API's port on 127.0.0.1."""
        return self._known_identity().management_port

    @property
    def api(self) -> ManagementApi:
        """The management API of this node, as guest."""
        if self._api is None or self._api.port != self.management_port:
            self._api = ManagementApi(self.management_port)
        return self._api

    def uri(self, vhost: str = "/") -> str:
        """The AMQP URI of a virtual host."""
        path = "" if vhost == "/" else quote(vhost, safe="")
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{path}"

    def create_vhost(self, name: str) -> None:
        """Create a virtual host with all permissions for guest. Idempotent."""
        self.api.create_vhost(name)

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with its queues and connections. Idempotent."""
        self.api.delete_vhost(name)

    def ctl(self, *arguments: str, timeout: float = 60.0) -> str:
        """Run `rabbitmqctl` against this node and return what it printed. It takes a second or two: an Erlang start.

        Raises:
            BrokerUnavailable: It failed; the message has what it printed.
        """
        installation = installed_rabbitmq()
        done = subprocess.run(
            [installation.scripts / "rabbitmqctl", *arguments],
            env=self._environment(self._known_identity()),
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode != 0:
            raise BrokerUnavailable(
                f"rabbitmqctl {' '.join(arguments)} failed on {self.name} "
                f"(exit status {done.returncode}): {(done.stderr or done.stdout).strip()}"
            )
        return done.stdout

    def log_tail(self, lines: int = 15) -> str:
        """The telling lines of what the node printed while starting and of its log file, for reports of a failure."""
        tails = []
        for path in (self.log_file.with_name("startup.log"), self.log_file):
            if path.exists() and (text := path.read_text(errors="replace").strip()):
                shown = "\n  ".join(_telling(text.splitlines(), lines))
                tails.append(f"{path}:\n  {shown}")
        return "\n".join(tails) or f"{self.log_file.parent} holds nothing."

    # --- identity: chosen once, kept in node.json -------------------------------------------------

    def _identity(self) -> _Identity | None:
        try:
            return _Identity(**json.loads((self.directory / "node.json").read_text()))
        except FileNotFoundError:
            return None

    def _known_identity(self) -> _Identity:
        identity = self._identity()
        if identity is None:
            raise ConfigError(
                f"the private node in {self.directory} has never been started, so it has no ports yet. "
                "Call start() first."
            )
        return identity

    def _settle_identity(self) -> _Identity:
        """Keep the remembered ports that are still free, choose others for the rest, and remember the result."""
        known = self._identity()
        taken: set[int] = set()
        # Nodes of a cluster start together: each has every third port to choose from, so that no two choose the same.
        names = self._cluster.names if self._cluster else (self.name,)
        place, places = names.index(self.name), len(names)
        # And so have processes that start nodes beside each other: their ids are near to each other.
        choice = range(*PORT_RANGE)[os.getpid() % PORT_SHARES :: PORT_SHARES][place::places]

        def settle(remembered: int | None) -> int:
            port = remembered
            if remembered is not None:
                _becomes_free(remembered)
            while port is None or port in taken or not is_free(port):
                port = random.choice(choice)
            taken.add(port)
            return port

        if self._wanted_port is not None and not is_free(self._wanted_port):
            raise ConfigError(
                f"port {self._wanted_port} on 127.0.0.1 is taken by another program. "
                "Choose another with port= (--port), or leave it out to have a free one chosen."
            )
        identity = _Identity(
            name=self.name,
            port=settle(self._wanted_port or (known.port if known else None)),
            management_port=settle(known.management_port if known else None),
            distribution_port=settle(known.distribution_port if known else None),
            epmd_port=(
                self._cluster.epmd_port
                if self._cluster
                else settle(known.epmd_port if known else None)
            ),
        )
        write_private(self.directory / "node.json", json.dumps(asdict(identity), indent=1) + "\n")
        return identity

    # --- files and environment --------------------------------------------------------------------

    def _write_files(self, identity: _Identity) -> None:
        private_directory(self.directory / "log")
        private_directory(self.directory / "conf.d")  # stands in for /etc/rabbitmq/conf.d
        write_private(self.directory / "advanced.config", _STATISTICS_EACH_SECOND)
        write_private(self.directory / "enabled_plugins", f"[{','.join(self._plugins)}].\n")
        lines = [
            "# Written at each start of this private node.",
            f"listeners.tcp.local = 127.0.0.1:{identity.port}",
            "management.tcp.ip = 127.0.0.1",
            f"management.tcp.port = {identity.management_port}",
            "log.file.level = info",
            "log.console = false",
            "disk_free_limit.absolute = 50MB",
            "collect_statistics_interval = 1000",
            # The default of 512 MB is held in memory before it is written out: too much for a node on the side.
            "raft.wal_max_size_bytes = 67108864",
            *(_cluster_formation(self._cluster.names) if self._cluster else ()),
            *self._config,
        ]
        write_private(self.directory / "rabbitmq.conf", "\n".join(lines) + "\n")
        cookie = self.directory / ".erlang.cookie"
        if not cookie.exists():
            secret = self._cluster.cookie if self._cluster else secrets.token_hex(16)
            # Erlang refuses a cookie that others may read.
            write_private(cookie, secret, mode=0o400)

    def _environment(self, identity: _Identity) -> dict[str, str]:
        """What steers RabbitMQ and Erlang here and nowhere else."""
        return epmd_environment(self.directory, identity.epmd_port) | {
            "RABBITMQ_NODENAME": identity.name,
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(self.directory / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.directory / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "data"),
            "RABBITMQ_LOG_BASE": str(self.log_file.parent),
            "RABBITMQ_LOGS": str(self.log_file),
            "RABBITMQ_PID_FILE": str(self.directory / "rabbitmq.pid"),
            # The scripts put a shell between us and the node unless a supervisor is said to watch it.
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_DIST_PORT": str(identity.distribution_port),
            "RABBITMQ_CTL_ERL_ARGS": f"-kernel inet_dist_use_interface {_LOOPBACK}",
            "ERL_CRASH_DUMP": str(self.directory / "log" / "erl_crash.dump"),
        }

    # --- processes --------------------------------------------------------------------------------

    def _launch(self, installation: RabbitInstallation, identity: _Identity) -> None:
        self.kill()  # an epmd may have outlived its node
        environment = self._environment(identity)
        printed = self.directory / "log" / "startup.log"
        if self._cluster is None:
            launch_epmd(self._processes, installation, identity.epmd_port, directory=self.directory)
        self.log_file.unlink(missing_ok=True)  # a failure's report must not show an older start
        port = str(identity.distribution_port)
        # Arguments go on to `erl`. The name is there from the first shell on, which is how the process is known again;
        # and with distribution set up before RabbitMQ runs, that is spared a second Erlang start to look for epmd.
        command = [str(installation.scripts / "rabbitmq-server"), "-sname", identity.name]
        command += ["-kernel", "inet_dist_use_interface", _LOOPBACK]
        command += [
            "-kernel",
            "inet_dist_listen_min",
            port,
            "-kernel",
            "inet_dist_listen_max",
            port,
        ]
        command += ["+S", "2:2"]
        self._processes.launch(command, identity.name, environment=environment, output=printed)

    def _running_pid(self) -> int | None:
        return self._processes.pid_of(self.name)

    def _is_managed(self) -> bool:
        with contextlib.closing(ManagementApi(self.management_port)) as api:
            try:
                api.version()
            except ManagementApiError as exc:
                return 0 < exc.status < 500  # a guest with another password is an answer
        return True

    def _wait_until_answering(self, timeout: float) -> None:
        pid, port = self._running_pid(), self.port

        def has_ended() -> bool:
            return pid is None or not is_alive(pid)

        asked = f"AMQP on port {port}"
        deadline = time.monotonic() + timeout
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: has_ended() or probe_amqp("127.0.0.1", port) is not None, timeout)
            # RabbitMQ 4.3 serves AMQP before its start is complete, and until then its management API answers 500 (seen with 4.3.6).
            asked = f"the management API on port {self.management_port}"
            wait_for(lambda: has_ended() or self._is_managed(), deadline - time.monotonic())
            if not has_ended():
                return
        reason = (
            "ended while starting"
            if has_ended()
            else f"does not answer {asked} after {timeout:g} s"
        )
        raise BrokerUnavailable(
            f"the private RabbitMQ node {self.name} {reason}.\n{self.log_tail()}"
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Only one process at a time starts the node of a directory."""
        lock = os.open(self.directory / "lock", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def epmd_environment(directory: Path, port: int) -> dict[str, str]:
    """The caller's environment without what would steer RabbitMQ or Erlang elsewhere, and with the epmd on this port."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("RABBITMQ_", "ERL_")) and key != "NOTIFY_SOCKET"
    }
    return inherited | {
        "HOME": str(directory),  # where Erlang looks for the cookie
        "ERL_EPMD_PORT": str(port),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }


def launch_epmd(
    processes: DetachedProcesses,
    installation: RabbitInstallation,
    port: int,
    *,
    directory: Path,
) -> None:
    """Start Erlang's port mapper and wait until it listens: one of our own, so that the system's never hears of our nodes."""
    processes.launch(
        [_find_epmd(installation), "-port", str(port)],
        str(port),
        environment=epmd_environment(directory, port),
        output=directory / "log" / "epmd.log",
    )
    wait_for(lambda: not is_free(port), 10.0)


def _find_epmd(installation: RabbitInstallation) -> str:
    beside = installation.scripts / "epmd"  # in a folder of its own, Erlang comes along
    if os.access(beside, os.X_OK):
        return str(beside)
    found = shutil.which("epmd")
    if found:
        return found
    erl = shutil.which("erl")
    roots = [Path(erl).resolve().parent.parent] if erl else []
    for root in [*roots, Path("/usr/lib/erlang")]:
        for epmd in sorted([*root.glob("bin/epmd"), *root.glob("erts-*/bin/epmd")]):
            return str(epmd)
    raise ConfigError("Erlang's epmd is not on PATH. It comes with Erlang: install erlang-base.")


def _cluster_formation(names: Sequence[str]) -> list[str]:
    """The lines of `rabbitmq.conf` by which a node without data joins those of the cluster that run."""
    seats = [
        f"cluster_formation.classic_config.nodes.{number} = {name}"
        for number, name in enumerate(names, 1)
    ]
    return ["cluster_formation.peer_discovery_backend = classic_config", *seats]


def _telling(log: list[str], count: int) -> list[str]:
    """The lines around the first "BOOT FAILED", where RabbitMQ names the cause (pages of crash report follow), else the last."""
    for number, line in enumerate(log):
        if "BOOT FAILED" in line:
            start = max(number - count // 2, 0)
            return log[start : start + count]
    return log[-count:]


class _PortTaken(BrokerUnavailable):
    """A port that was free when it was chosen is somebody else's."""


def _becomes_free(port: int) -> bool:
    """Whether it is free, now or soon: a node killed a moment ago may still be letting go of it."""
    try:
        wait_for(lambda: is_free(port), PORT_RELEASE_S)
    except TimeoutError:
        return False
    return True


def is_free(port: int) -> bool:
    """Whether a listener could be opened on this port of 127.0.0.1."""
    with socket.socket() as listener:
        # As Erlang does, so that a port whose old connections linger in TIME_WAIT counts as free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
