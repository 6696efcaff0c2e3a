"""Every peer: what it is, how it is started, and what it leaves at the broker."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from benchmarks.process import ROOT, PeerProcess

_GO_SOURCE = Path(__file__).parent / "peers" / "go"
_GO_SYSTEM_PATH = "/usr/share/gocode"
"""Where Debian's packages put Go libraries (golang-github-rabbitmq-amqp091-go-dev)."""


@dataclass(frozen=True, slots=True)
class Site:
    """What a program of a peer is given: the broker, a directory of the run, a free port."""

    uri: str
    directory: Path
    http_port: int

    @classmethod
    def prepare(cls, uri: str, directory: Path) -> Site:
        """A site in an existing directory."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return cls(uri, directory, probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Program:
    """A program: its command line, and what its environment has beside the site's."""

    argv: Callable[[Site], Sequence[str]]
    env: Mapping[str, str] = field(default_factory=dict)
    consumes: str = ""
    """The queue that has a consumer once it is ready. Empty: it reports `ready` by itself."""

    def start(self, title: str, site: Site, *options: str) -> PeerProcess:
        """Start it, with further options on the command line."""
        given = {"AMQP_URI": site.uri, "BENCH_HTTP_PORT": str(site.http_port), **self.env}
        return PeerProcess(title, [*self.argv(site), *options], given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One peer. A question it has no programs for is not asked of it."""

    name: str
    about: str
    distributions: tuple[str, ...] = ()
    absent: Callable[[], str | None]
    """Why it cannot be run here, or None where it can."""
    rpc: tuple[Program, Program] | None = None
    """Server and client."""
    events: tuple[Program, Program] | None = None
    """Handler and publisher."""
    service: str = ""
    """The name of the service that `nameko run` starts: the peer takes part in start-up."""
    queues: tuple[str, ...] = ()
    exchanges: tuple[str, ...] = ()


def _module(module: str, role: str, **env: str) -> Program:
    return Program(lambda site: [sys.executable, "-m", f"benchmarks.peers.{module}", role], env)


def _nameko_run(target: str, service: str, **settings: object) -> Program:
    """`nameko run --config FILE MODULE:CLASS`, as a user types it."""

    def argv(site: Site) -> list[str]:
        # JSON is YAML, and needs no library to write.
        config = site.directory / f"{service}.yaml"
        config.write_text(json.dumps({"AMQP_URI": site.uri, **settings}))
        nameko = str(Path(sys.executable).with_name("nameko"))
        return [nameko, "run", "--config", str(config), f"benchmarks.peers.{target}"]

    return Program(argv, consumes=f"rpc-{service}")


def _imports(statement: str) -> Callable[[], str | None]:
    """Absent where `statement` fails; tried in a process of its own."""

    @lru_cache(maxsize=1)
    def absent() -> str | None:
        path = os.pathsep.join((str(ROOT / "platform"), os.environ.get("PYTHONPATH", "")))
        tried = subprocess.run(
            [sys.executable, "-c", statement],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
        return None if tried.returncode == 0 else tried.stderr.strip().splitlines()[-1]

    return absent


@lru_cache(maxsize=1)
def go_binary() -> Path | str:
    """Build the Go peer; a string is the reason why it cannot be built."""
    go = shutil.which("go")
    if go is None:
        return "no Go tool chain: `go` is not on the PATH"
    binary = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mycelia-bench-go"
    binary.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mycelia-bench-go-") as directory:
        # A copy, because a build by go.mod writes a go.sum beside it.
        source = shutil.copytree(_GO_SOURCE, Path(directory) / "gopeer")
        if _has_system_library():
            env, options = {"GOPATH": _GO_SYSTEM_PATH, "GO111MODULE": "off"}, []
        else:
            env, options = {}, ["-mod=mod"]
        built = subprocess.run(
            [go, "build", *options, "-o", str(binary), "."],
            cwd=source,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    if built.returncode:
        return f"go build failed: {(built.stderr.strip().splitlines() or ['no output'])[-1]}"
    return binary


def go_library() -> str:
    """Where the Go peer's amqp091-go comes from, with its version."""
    if not _has_system_library():
        return next(
            line.removeprefix("require ").strip()
            for line in (_GO_SOURCE / "go.mod").read_text().splitlines()
            if line.startswith("require ")
        )
    package = "golang-github-rabbitmq-amqp091-go-dev"
    if shutil.which("dpkg-query") is None:
        return f"{_GO_SYSTEM_PATH}, version unknown"
    asked = subprocess.run(
        ["dpkg-query", "--show", package], capture_output=True, text=True, timeout=30, check=False
    )
    return " ".join(asked.stdout.split()) or f"{_GO_SYSTEM_PATH}, version unknown"


def _has_system_library() -> bool:
    return Path(_GO_SYSTEM_PATH, "src/github.com/rabbitmq/amqp091-go").is_dir()


def _go_absent() -> str | None:
    built = go_binary()
    return built if isinstance(built, str) else None


def _go(role: str, **env: str) -> Program:
    return Program(lambda site: [str(go_binary()), role], env)


def mycelia_peer(
    kind: str, target: str, name: str = "", section: Mapping[str, object] | None = None
) -> Peer:
    """A service of ours as a peer.

    Args:
        kind: "async" or "def".
        target: its class in `benchmarks.peers.mycelia_service`.
        name: of the peer; `mycelia-<kind>` by default.
        section: `mycelia:` of its configuration.
    """
    service = f"bench_{kind}"
    settings: dict[str, object] = {} if section is None else {"mycelia": section}
    serve = _nameko_run(f"mycelia_service:{target}", service, **settings)
    return Peer(
        name=name or f"mycelia-{kind}",
        about=f"`{'async def' if kind == 'async' else 'def'}` handlers under `nameko run`, "
        "mycelia.Client; Nameko's wire; quorum event queue",
        distributions=("mycelia", "pika", "msgspec", "uvloop"),
        absent=_imports("from mycelia import Client, EventDispatcher, event_handler, rpc"),
        rpc=(serve, _module("mycelia_client", f"rpc-client-{service}")),
        events=(serve, _module("mycelia_client", f"event-publisher-{service}")),
        service=service,
        queues=(
            f"rpc-{service}",
            f"evt-{service}_feed-departed--{service}.departed",
        ),
        exchanges=(f"{service}_feed.events",),
    )


def _go_peer(name: str, queue_type: str, *, rpc: bool) -> Peer:
    return Peer(
        name=name,
        about=f"amqp091-go; RPC on a transient queue, direct reply-to; {queue_type} event queue",
        absent=_go_absent,
        rpc=(_go("rpc-server"), _go("rpc-client")) if rpc else None,
        events=(_go("event-handler", BENCH_QUEUE_TYPE=queue_type), _go("event-publisher")),
        queues=("bench-go-echo", f"bench-go-departed-{queue_type}"),
        exchanges=("bench-go.events",),
    )


def _go_on_namekos_wire() -> Peer:
    """What a Go team has to write to talk with a fleet of Nameko services: the same broker work as Mycelia's."""
    wire = {"BENCH_WIRE": "nameko"}
    return Peer(
        name="go-nameko",
        about="amqp091-go on Nameko's wire: topic exchange, durable queues, own reply queue, acked replies",
        absent=_go_absent,
        rpc=(_go("rpc-server", **wire), _go("rpc-client", **wire)),
        queues=("rpc-bench_go",),
    )


_NAMEKO_SERVE = _nameko_run("nameko_service:BenchNameko", "bench_nameko")
_FASTSTREAM_ABSENT = _imports("import faststream.rabbit")

PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        mycelia_peer("async", "BenchAsync"),
        mycelia_peer("def", "BenchDef"),
        _go_peer("go", "classic", rpc=True),
        _go_peer("go-quorum", "quorum", rpc=False),
        _go_on_namekos_wire(),
        Peer(
            name="pika",
            about="pika's asyncio adapter, by hand; direct reply-to; classic event queue",
            distributions=("pika", "uvloop"),
            absent=_imports("import pika, uvloop"),
            rpc=(_module("pika_peer", "rpc-server"), _module("pika_peer", "rpc-client")),
            events=(_module("pika_peer", "event-handler"), _module("pika_peer", "event-publisher")),
            queues=("bench-pika-echo", "bench-pika-departed"),
            exchanges=("bench-pika.events",),
        ),
        Peer(
            name="aio-pika",
            about="aio-pika, by hand; direct reply-to; classic event queue",
            distributions=("aio-pika", "aiormq", "uvloop"),
            absent=_imports("import aio_pika, uvloop"),
            rpc=(_module("aio_pika_peer", "rpc-server"), _module("aio_pika_peer", "rpc-client")),
            events=(
                _module("aio_pika_peer", "event-handler"),
                _module("aio_pika_peer", "event-publisher"),
            ),
            queues=("bench-aio-pika-echo", "bench-aio-pika-departed"),
            exchanges=("bench-aio-pika.events",),
        ),
        Peer(
            name="faststream",
            about="RabbitBroker.request, one call in flight for each broker; classic event queue",
            distributions=("faststream", "aio-pika", "uvloop"),
            absent=_FASTSTREAM_ABSENT,
            rpc=(
                _module("faststream_peer", "rpc-server"),
                _module("faststream_peer", "rpc-client"),
            ),
            events=(
                _module("faststream_peer", "event-handler"),
                _module("faststream_peer", "event-publisher"),
            ),
            queues=("bench-faststream-echo", "bench-faststream-departed"),
            exchanges=("bench-faststream.events",),
        ),
        Peer(
            name="faststream-replies",
            about="the same server; the client publishes with a reply queue of its own",
            distributions=("faststream", "aio-pika", "uvloop"),
            absent=_FASTSTREAM_ABSENT,
            rpc=(
                _module("faststream_peer", "rpc-server"),
                _module("faststream_peer", "rpc-client-replies"),
            ),
            queues=("bench-faststream-echo",),
        ),
        Peer(
            name="nameko",
            about="stock container under `nameko run`, ClusterRpcProxy; classic event queue",
            distributions=("nameko", "kombu", "amqp", "eventlet"),
            absent=_imports("import nameko.standalone.rpc, kombu, eventlet"),
            rpc=(_NAMEKO_SERVE, _module("nameko_client", "rpc-client")),
            events=(_NAMEKO_SERVE, _module("nameko_client", "event-publisher")),
            service="bench_nameko",
            queues=(
                "rpc-bench_nameko",
                "evt-bench_nameko_feed-departed--bench_nameko.departed",
            ),
            exchanges=("bench_nameko_feed.events",),
        ),
        Peer(
            name="fastapi",
            about="uvicorn and httpx.AsyncClient: HTTP, no broker between",
            distributions=("fastapi", "uvicorn", "httpx", "uvloop"),
            absent=_imports("import fastapi, uvicorn, httpx, uvloop"),
            rpc=(_module("fastapi_peer", "rpc-server"), _module("fastapi_peer", "rpc-client")),
        ),
    )
}
"""Every peer by name, in the order of the tables."""
