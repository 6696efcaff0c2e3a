"""The HTTP server of a process: one address, shared by its services; uvicorn below, on the services' own loop."""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import socket
import time
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, cast
from weakref import WeakKeyDictionary

import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Router
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketClose, WebSocketDisconnect

from mycelia.call import current_call
from mycelia.entrypoints.http.connection import HttpConnection, SlowClients
from mycelia.entrypoints.http.endpoint import CALL, CountingSender, Sender, shown_path
from mycelia.entrypoints.http.requests import BodyBudget
from mycelia.entrypoints.http.responses import problem
from mycelia.entrypoints.http.routes import HttpPart
from mycelia.errors import ConfigError
from mycelia.log_event import event
from mycelia.runtime import Host, Settings
from mycelia.runtime.access_log import AccessLog
from mycelia.runtime.settings import OF_HTTP

__all__ = ["HttpServer", "parse_address"]

log = logging.getLogger("mycelia.entrypoints")

BACKLOG = 2048
"""Connections the operating system keeps until they are accepted; uvicorn's default."""

BODIES = 32
"""How many of the largest bodies may be held at once. Arbitrary; with the default size half a gigabyte."""

DRAIN_TIMEOUT = 5.0
"""Seconds responses may take to leave once the last worker has ended; below the container's 10 s for a `stop()`."""

_ADDRESS = re.compile(r"(?:(?P<host>\[[^\]]+\]|[^:]*):)?(?P<port>\d{1,5})")

_servers: WeakKeyDictionary[Host, HttpServer] = WeakKeyDictionary()


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `WEB_SERVER_ADDRESS`: `host:port`, `:port` or `port`; no host means all interfaces.

    Raises:
        ConfigError: it is something else.
    """
    match = _ADDRESS.fullmatch(text.strip())
    if match is None or int(match["port"]) > 65535:
        raise ConfigError(
            f'configuration key "WEB_SERVER_ADDRESS": expected "host:port", such as "0.0.0.0:8000", got {text!r}.'
        )
    return (match["host"] or "0.0.0.0").strip("[]"), int(match["port"])


class HttpServer:
    """Serves the parts of all services of one process: methods, applications, sites. Lives on one event loop.

    A service adds its parts and joins, retires them when it stops, and leaves when its workers have ended. The address is
    given up when the last part has retired; the server is gone when the last service has left.

    Args:
        address: as `WEB_SERVER_ADDRESS`; port 0 takes a free one.
        access_log: writes a line for each request; `None` for none.
        is_shared: whether other processes of this command listen at the same address.
        head_timeout: seconds in which the head of a request must have come.
        trusted_proxies: addresses and networks whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed.
        max_held_bytes: of bodies that were read before their methods run, together.
    """

    def __init__(
        self,
        address: str,
        *,
        access_log: AccessLog | None = None,
        is_shared: bool = False,
        head_timeout: float = 10.0,
        trusted_proxies: Sequence[str] = (),
        max_held_bytes: int = 512 * 1024 * 1024,
    ) -> None:
        self.host, self.port = parse_address(address)
        """Where it listens; the port is the bound one after `bind()`."""
        self.slow_clients = SlowClients()
        self.bodies = BodyBudget(max_held_bytes)
        self._access_log = access_log
        self._is_shared = is_shared
        self._head_timeout = head_timeout
        self._trusted_proxies = list(trusted_proxies)
        self._parts: list[HttpPart] = []
        self._router = Router(redirect_slashes=False, default=_answer_unknown)
        self._socket: socket.socket | None = None
        self._binding = asyncio.Lock()
        self._uvicorn: uvicorn.Server | None = None
        self._clock: asyncio.Task[None] | None = None
        self._services: set[str] = set()
        self.has_ended = False

    @classmethod
    def of(cls, host: Host) -> HttpServer:
        """The server of a process, made when first asked for.

        Raises:
            ConfigError: `WEB_SERVER_ADDRESS` is of a wrong type, or no address.
        """
        server = _servers.get(host)
        if server is None or server.has_ended:
            Settings.demand(host.config, OF_HTTP)
            section = host.settings.mycelia
            server = _servers[host] = cls(
                host.settings.WEB_SERVER_ADDRESS,
                access_log=_access_log_of(host),
                is_shared=section.processes > 1,
                head_timeout=section.http_header_timeout,
                trusted_proxies=section.http_trusted_proxies or (),
                max_held_bytes=BODIES * section.http_max_body_bytes,
            )
        return server

    @property
    def address(self) -> str:
        """`host:port`, the port being the one that is bound."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    # --- life cycle ---------------------------------------------------------------------------

    def add(self, part: HttpPart) -> None:
        """Route requests to `part`.

        Raises:
            ConfigError: another part has the same path and HTTP method.
        """
        for other in self._parts:
            if part.shape and part.shape == other.shape and part.shared_verbs(other):
                verbs = "/".join(sorted(part.shared_verbs(other)))
                raise ConfigError(
                    f'{part.title} and {other.title} both answer {verbs} "{part.path}". Give one of them another path.'
                )
        self._arrange([*self._parts, part])

    def _arrange(self, parts: list[HttpPart]) -> None:
        self._parts = sorted(parts, key=lambda part: part.order)
        self._router.routes = list(self._parts)

    async def join(self, service: str) -> None:
        """Take part; binds the address for the first service.

        Raises:
            ConfigError: the address cannot be had.
        """
        self._services.add(service)
        async with self._binding:
            if self._socket is None:
                self._socket = await _bind(self.host, self.port, shared=self._is_shared)
                self.port = self._socket.getsockname()[1]

    async def start(self) -> None:
        """Answer requests. May be called again."""
        assert self._socket is not None
        if self._uvicorn is None:
            _quieten_uvicorn()
            connection = partial(
                HttpConnection, head_timeout=self._head_timeout, slow_clients=self.slow_clients
            )
            config = uvicorn.Config(
                self,
                lifespan="off",
                # Always h11, whatever else is installed: one parser, one answer to what may be read two ways.
                http=cast(Any, connection),
                proxy_headers=bool(self._trusted_proxies),
                forwarded_allow_ips=self._trusted_proxies,
                ws="websockets-sansio",  # for sites and applications
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=1,
            )
            config.load()
            self._uvicorn = uvicorn.Server(config)
            self._uvicorn.lifespan = config.lifespan_class(config)
            self._clock = asyncio.create_task(_tick(self._uvicorn), name="mycelia:http:clock")
            await self._uvicorn.startup(sockets=[self._socket])
            log.info(event("http_listening", address=self.address))

    def retire(self, service: str) -> None:
        """Take no more requests for a service; the last one gives up the address."""
        for part in self._parts:
            if part.service == service:
                part.retire()
        if self._uvicorn is not None and all(part.stopping.is_set() for part in self._parts):
            _stop_accepting(self._uvicorn)

    async def leave(self, service: str) -> None:
        """A service's workers have ended: forget its parts; the last service ends the server."""
        self._services.discard(service)
        if self._services:
            self._arrange([part for part in self._parts if part.service != service])
            return
        if self._uvicorn is not None and self._clock is not None:
            self.has_ended = True
            await self._drain(self._uvicorn)
            self._clock.cancel()
            await self._uvicorn.shutdown()
        self.slow_clients.tell()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _drain(self, server: uvicorn.Server) -> None:
        """Let responses leave, for a while; then cut."""
        _stop_accepting(server)
        tasks = set(server.server_state.tasks)
        if tasks:
            _, unfinished = await asyncio.wait(tasks, timeout=DRAIN_TIMEOUT)
            if unfinished:
                log.warning(event("responses_cut", address=self.address, responses=len(unfinished)))
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # for the connections to hear of it

    # --- the ASGI application -----------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Never raises but for cancellation."""
        # The next request on a connection may be begun by the task of the one before it, with that one's context.
        current_call.set(None)
        if scope["type"] == "websocket":
            try:
                await self._router(scope, receive, send)
            except WebSocketDisconnect:  # an application that did not look
                log.debug(event("client_gone", path=scope["path"]))
            return
        access_log = self._access_log
        if access_log is None:
            await self._answer(scope, receive, Sender(scope, send))
            return
        sender = CountingSender(scope, send)
        started = time.monotonic()
        try:
            await self._answer(scope, receive, sender)
        finally:
            client = scope.get("client")
            access_log.write_request(
                scope.get(CALL),
                verb=scope["method"],
                path=shown_path(scope),
                status=sender.status,
                is_broken=sender.is_broken,
                duration=time.monotonic() - started,
                client=client[0] if client else None,
                out_bytes=sender.sent_bytes,
            )

    async def _answer(self, scope: Scope, receive: Receive, sender: Sender) -> None:
        try:
            _refuse_framed_twice(scope)
            await self._router(scope, receive, sender)
        except ClientDisconnect:
            log.debug(event("client_gone", verb=scope["method"], path=shown_path(scope)))
        except Exception as exc:  # noqa: BLE001
            await self._answer_error(exc, scope, receive, sender)
        if sender.status == HTTPStatus.REQUEST_TIMEOUT:
            self.slow_clients.count_body()

    async def _answer_error(
        self, error: Exception, scope: Scope, receive: Receive, sender: Sender
    ) -> None:
        if not isinstance(error, HTTPException) or sender.status:
            # A stream's iterator, or a fault of ours. What has begun is cut off by uvicorn: the client must not take
            # it for the whole.
            sender.is_broken = bool(sender.status)
            log.error(
                event(
                    "response_failed",
                    verb=scope["method"],
                    path=shown_path(scope),
                    call_id=sender.call_id,
                ),
                exc_info=error,
            )
            error = HTTPException(500, "The request failed inside the service.")
        if not sender.status:
            answer = problem(
                error.status_code, error.detail, headers=error.headers, instance=scope["path"]
            )
            await answer(scope, receive, sender)


def _access_log_of(host: Host) -> AccessLog | None:
    """Who writes the requests' lines; `http_access_log`, where it says anything, goes before `access_log`."""
    wanted = host.settings.mycelia.http_access_log
    if wanted is None:
        return host.access_log
    return (host.access_log or AccessLog.of(True)) if wanted else None


async def _answer_unknown(scope: Scope, receive: Receive, send: Send) -> None:
    """What no part has."""
    if scope["type"] == "http":
        raise HTTPException(404, "There is nothing at this path.")
    await WebSocketClose()(scope, receive, send)  # before it is accepted: answered 403


def _refuse_framed_twice(scope: Scope) -> None:
    """Two servers might see such a body's end in two places, which lets one request hide in another."""
    names = {name for name, _ in scope["headers"]}
    if b"content-length" in names and b"transfer-encoding" in names:
        raise HTTPException(
            400,
            "A request has either Content-Length or Transfer-Encoding, not both (RFC 9112, 6.1).",
            {"Connection": "close"},
        )


async def _tick(server: uvicorn.Server) -> None:
    """What uvicorn does each second, for the Date header; its own loop looks for signals as well, ten times a second."""
    while True:
        await server.on_tick(0)
        await asyncio.sleep(1.0)


def _stop_accepting(server: uvicorn.Server) -> None:
    """Accept no more connections; end those that are idle now, and each other one after its response. Idempotent."""
    if server.should_exit:  # a websocket can be told only once
        return
    server.should_exit = True
    for listener in server.servers:
        listener.close()
    for connection in list(server.server_state.connections):
        connection.shutdown()


async def _bind(host: str, port: int, *, shared: bool) -> socket.socket:
    """A listening socket; with `shared`, one that the other processes of the fleet may have as well.

    Raises:
        ConfigError: the address cannot be had, and what to do.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, place = min(found, key=lambda info: info[0] != socket.AF_INET)
        # Listening from now on, because two sockets may be bound to one address as long as neither listens.
        listener = socket.create_server(
            place,
            family=family,
            backlog=BACKLOG,
            reuse_port=shared,
            dualstack_ipv6=family == socket.AF_INET6 and socket.has_dualstack_ipv6(),
        )
    except OSError as exc:
        raise ConfigError(_refusal(host, port, exc)) from exc
    listener.setblocking(False)
    return listener


def _refusal(host: str, port: int, error: OSError) -> str:
    key, address = 'configuration key "WEB_SERVER_ADDRESS"', f"{host}:{port}"
    if isinstance(error, socket.gaierror):
        return f"{key}: no such host {host!r} ({error.strerror})."
    why = f"{error.strerror}."
    if error.errno == errno.EADDRINUSE:
        why = "another program does. Stop it, or choose another port; port 0 takes a free one."
    elif error.errno == errno.EACCES:
        why = "not permitted. Choose a port of 1024 or above."
    return f"cannot listen on {address} ({key}): {why}"


def _quieten_uvicorn() -> None:
    """uvicorn's own INFO lines repeat what the runtime says; a level that somebody has set stays."""
    logger = logging.getLogger("uvicorn.error")
    if logger.level == logging.NOTSET and logging.getLogger("uvicorn").level == logging.NOTSET:
        logger.setLevel(logging.WARNING)
