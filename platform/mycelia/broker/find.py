"""Finding a broker to work with: yours, a private one, or one in Docker."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mycelia.broker import debian_packages
from mycelia.broker.debian_packages import Say
from mycelia.broker.node import PrivateNode, find_rabbitmq, probe_amqp
from mycelia.broker.private_files import STATE_DIRECTORY
from mycelia.errors import BrokerUnavailable, ConfigError
from mycelia.redaction import URI_PART, brokers_in, scheme_of

__all__ = [
    "DEFAULT_DIRECTORY",
    "FoundBroker",
    "find_or_start_broker",
    "how_to_install",
    "install_rabbitmq",
    "management_port_of_private_node",
    "shown",
    "start_private_node",
]

DEFAULT_DIRECTORY = STATE_DIRECTORY / "broker"
_COMPOSE_FILE = Path("compose/compose.yaml")
_PROBE_TIMEOUT = 5.0
_DOCKER_TIMEOUT = 180.0  # an image may have to be fetched first


@dataclass(frozen=True, slots=True)
class FoundBroker:
    """A broker that answers, and how it was come by."""

    uri: str = field(repr=False)
    description: str
    node: PrivateNode | None = None
    """The private node, when it is one."""
    started: bool = False
    """Whether it was started by this call, and not found running."""

    def __str__(self) -> str:
        return self.description

    def stop_if_started(self) -> None:
        """Stop a private node that this call started; leave every other broker alone. Blocks for some seconds."""
        if self.node is not None and self.started:
            self.node.stop()


def find_or_start_broker(
    directory: Path = DEFAULT_DIRECTORY,
    *,
    port: int | None = None,
    install: bool = False,
    say: Say = print,
    environment: Mapping[str, str] = os.environ,
) -> FoundBroker:
    """Return a broker that answers: the one that `AMQP_URI` names, else a private node, else one in Docker.

    Blocks: a start takes some seconds, an installation up to some minutes. What is there already is used again. Each
    step that takes time says so in a line.

    Args:
        directory: Where the private node lives.
        port: The private node's port; `None` takes the remembered or a free one.
        install: Whether RabbitMQ may be installed where it is missing (Debian and Ubuntu, as root or by sudo).
        say: Gets the lines.
        environment: Where `AMQP_URI` is looked up.

    Raises:
        BrokerUnavailable: The named broker does not answer, or the private node does not start.
        ConfigError: There is no broker and no way to start one; the message has the ways out.
    """
    uri = environment.get("AMQP_URI")
    if uri:
        return _named(uri)
    log_file = directory.parent / "apt.log"
    if find_rabbitmq() is not None or (install and install_rabbitmq(log_file, say=say)):
        return start_private_node(PrivateNode(directory, port=port), say)
    if _has_docker():
        return _docker(say)
    raise ConfigError(
        "no broker: AMQP_URI is not set, RabbitMQ is not installed, and no Docker engine answers. One of three helps:\n"
        "  - set AMQP_URI to a broker you have, such as amqp://user:password@host:5672/\n"
        f"  - {how_to_install()}\n"
        "  - start Docker"
    )


def management_port_of_private_node(
    host: str, port: int, directory: Path = DEFAULT_DIRECTORY
) -> int | None:
    """Where the management API of the broker at that address is, if it is the private node of `directory`; `None` if not."""
    node = PrivateNode(directory)
    if host not in ("127.0.0.1", "localhost") or not node.is_known or node.port != port:
        return None
    return node.management_port


def how_to_install() -> str:
    """What a user can do where RabbitMQ is missing."""
    by_hand = "Debian, Ubuntu: sudo apt-get install rabbitmq-server; macOS: brew install rabbitmq"
    if debian_packages.may_install():
        return "have RabbitMQ installed, with apt-get: add --install to the command"
    return f"install RabbitMQ ({by_hand})"


def _named(uri: str) -> FoundBroker:
    # With several brokers the first is asked.
    match = URI_PART.fullmatch(next(iter(brokers_in(uri)), ""))
    scheme = (match["scheme"] if match else scheme_of(uri) or "").lower()
    if scheme not in ("amqp", "amqps"):
        found = f', not "{scheme}://"' if scheme_of(uri) else ""
        raise ConfigError(f"AMQP_URI must begin with amqp:// or amqps://{found}.")
    if match is None:
        raise ConfigError(
            "AMQP_URI cannot be read. Write amqp://user:password@host:port/vhost, and in the password %23 for #, "
            "%2F for /, %3F for ?, %40 for @ and so on."
        )
    host = match["host"].strip("[]") or "localhost"
    port = int(match["port"] or (5671 if scheme == "amqps" else 5672))
    where = f"{scheme}://{host}:{port}{match['path'] or ''}"  # without user and password
    if scheme == "amqps":
        version = "" if _accepts(host, port) else None
    else:
        version = probe_amqp(host, port, _PROBE_TIMEOUT)
    if version is None:
        raise BrokerUnavailable(
            f"AMQP_URI names {where}, where no broker answers within {_PROBE_TIMEOUT:g} s. "
            "Start that broker, correct AMQP_URI, or unset it to have a private broker started."
        )
    return FoundBroker(uri, f"RabbitMQ {version} at {where} (AMQP_URI)".replace("  ", " "))


def _accepts(host: str, port: int) -> bool:
    """Whether something listens: as much as can be told of a TLS port without the certificates to talk to it."""
    try:
        socket.create_connection((host, port), _PROBE_TIMEOUT).close()
    except OSError:
        return False
    return True


def start_private_node(node: PrivateNode, say: Say) -> FoundBroker:
    started = not node.status().running
    if started:
        say(f"starting a private RabbitMQ node in {shown(node.directory)} …")
    node.start()
    status = node.status()
    found = "private" if started else "private, already running"
    return FoundBroker(
        status.uri,
        f"RabbitMQ {status.version} at {status.uri} ({found}; data and log in {shown(node.directory)})",
        node,
        started,
    )


def shown(path: Path) -> str:
    """The path as a person would write it: relative to where they are, if it lies below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def install_rabbitmq(log_file: Path, *, say: Say = print) -> bool:
    """Install Debian's `rabbitmq-server` where that is possible without a password, and start no service with it.

    Returns whether RabbitMQ is installed afterwards.
    """
    if find_rabbitmq() is not None:
        return True
    if not debian_packages.may_install():
        return False
    if not debian_packages.install(["rabbitmq-server"], log_file, say):
        say(f"installing rabbitmq-server failed; apt-get's words are in {log_file}")
    return find_rabbitmq() is not None


# --- Docker ------------------------------------------------------------------------------------------


def _has_docker() -> bool:
    """Whether an engine answers and `docker compose` is there, with this project's file to give it."""
    if shutil.which("docker") is None or not _COMPOSE_FILE.exists():
        return False
    try:
        return all(
            subprocess.run(command, capture_output=True, timeout=15, check=False).returncode == 0
            for command in (["docker", "info"], ["docker", "compose", "version"])
        )
    except subprocess.TimeoutExpired:
        return False


def _docker(say: Say) -> FoundBroker:
    say(f"starting RabbitMQ in Docker ({_COMPOSE_FILE}) …")
    _compose("up", "--detach", "broker")
    address = _compose("port", "broker", "5672").strip()
    match = re.fullmatch(r".*:(\d+)", address)
    if match is None:
        raise BrokerUnavailable(f"docker compose tells no port for the broker, but {address!r}.")
    port = int(match.group(1))
    deadline = time.monotonic() + _DOCKER_TIMEOUT
    while (version := probe_amqp("127.0.0.1", port)) is None:
        if time.monotonic() > deadline:
            raise BrokerUnavailable(
                f"RabbitMQ in Docker does not answer on port {port} after {_DOCKER_TIMEOUT:g} s. "
                f"See: docker compose --file {_COMPOSE_FILE} logs broker"
            )
        time.sleep(0.25)
    uri = f"amqp://guest:guest@127.0.0.1:{port}/"
    return FoundBroker(uri, f"RabbitMQ {version} at {uri} (Docker)")


def _compose(*arguments: str) -> str:
    command = ["docker", "compose", "--file", str(_COMPOSE_FILE), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BrokerUnavailable(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout
