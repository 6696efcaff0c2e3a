"""A TCP proxy that breaks: put it between a client and its broker, and choose how the network fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import cast
from urllib.parse import urlsplit, urlunsplit

__all__ = ["Fault", "TcpProxy"]


class Fault(Enum):
    """How the network fails. "Upstream" is from the client to the server, "downstream" the way back."""

    NONE = "none"
    REFUSED = "refused"
    """Nobody listens: connections are cut, and new ones refused by the operating system."""
    CLOSED = "closed"
    """Connections are cut, and new ones accepted and cut at once, as by a balancer with nothing behind it.
    Unlike refused ones they can be counted."""
    UPSTREAM_BLACKHOLE = "upstream blackhole"
    """What the client sends vanishes; the connection stays open."""
    DOWNSTREAM_BLACKHOLE = "downstream blackhole"
    """What the server sends vanishes; the connection stays open."""
    UPSTREAM_STALL = "upstream stall"
    """Nothing is read from the client, as by a server that cannot keep up: its buffers fill. Nothing is lost: after
    `heal()` it goes on where it stopped."""
    UPSTREAM_TIMEOUT = "upstream timeout"
    """What the client sends vanishes, and after `timeout_s` the connection is cut."""
    DOWNSTREAM_TIMEOUT = "downstream timeout"
    """What the server sends vanishes, and after `timeout_s` the connection is cut."""


_UPSTREAM = {Fault.UPSTREAM_BLACKHOLE, Fault.UPSTREAM_TIMEOUT}
_DOWNSTREAM = {Fault.DOWNSTREAM_BLACKHOLE, Fault.DOWNSTREAM_TIMEOUT}
_TIMEOUT = {Fault.UPSTREAM_TIMEOUT, Fault.DOWNSTREAM_TIMEOUT}
_CUT = {Fault.REFUSED, Fault.CLOSED}


_Write = Callable[[bytes], None]


class TcpProxy:
    """Forwards connections to a target until it is told to fail.

        async with TcpProxy("127.0.0.1", 5672) as proxy:
            link = connect(proxy.uri("amqp://guest:guest@127.0.0.1:5672/"))
            await proxy.fail(Fault.DOWNSTREAM_BLACKHOLE)
            ...
            await proxy.heal()

    A connection that has lost bytes to a blackhole stays broken after `heal()`: its stream has a hole, as after a
    firewall has forgotten it. New connections are whole. `drop()` cuts the broken ones.

    Lives on one event loop. It keeps its port over faults.

    Args:
        target_host: where connections are forwarded to.
        target_port: its port.
        timeout_s: seconds until a connection under a `…_TIMEOUT` fault is cut.
        latency_s: seconds each chunk of bytes takes, each way. May be changed while running.
    """

    def __init__(
        self,
        target_host: str,
        target_port: int,
        *,
        timeout_s: float = 0.5,
        latency_s: float = 0.0,
    ) -> None:
        self.target_host = target_host
        self.target_port = target_port
        self.timeout_s = timeout_s
        self.latency_s = latency_s
        self.host = "127.0.0.1"
        self.port = 0
        """The port to connect to; known once started."""
        self.fault = Fault.NONE
        self.accepted_count = 0
        """Connections accepted since the start, those cut at once included."""
        self._server: asyncio.Server | None = None
        self._pipes: set[_Pipe] = set()
        self._connecting: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> TcpProxy:
        await self._listen()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop_listening()
        self.drop()
        for task in list(self._connecting):
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)

    @property
    def connection_count(self) -> int:
        """Connections open right now."""
        return len(self._pipes)

    def uri(self, target_uri: str) -> str:
        """`target_uri` with this proxy's host and port instead of the target's."""
        parts = urlsplit(target_uri)
        user_info, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user_info}{at}{self.host}:{self.port}"))

    async def fail(self, fault: Fault) -> None:
        """Fail from now on, for the open connections and for new ones, until `heal()` or another `fail()`."""
        self.fault = fault
        if fault is Fault.REFUSED:
            await self._stop_listening()
        else:
            await self._listen()
        for pipe in list(self._pipes):
            pipe.suffer(fault)

    async def heal(self) -> None:
        """Work again for new connections, and for those that have lost nothing."""
        await self.fail(Fault.NONE)

    def drop(self) -> None:
        """Cut every open connection now (a TCP reset); new ones are welcome."""
        for pipe in list(self._pipes):
            pipe.cut()

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: _ClientSide(self), self.host, self.port
            )
            self.port = self._server.sockets[0].getsockname()[1]

    async def _stop_listening(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
            self.drop()  # else waiting for the server would wait for its connections
            await server.wait_closed()

    def _accept(self, client: asyncio.Transport) -> _Pipe:
        self.accepted_count += 1
        pipe = _Pipe(self, client)
        self._pipes.add(pipe)
        pipe.suffer(self.fault)
        # And once more: uvloop begins to read after `connection_made()`, whatever was said there.
        asyncio.get_running_loop().call_soon(lambda: pipe.suffer(self.fault))
        if self.fault not in _CUT:
            task = asyncio.get_running_loop().create_task(
                self._connect(pipe), name="mycelia:tcp-proxy:connect"
            )
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)
        return pipe

    async def _connect(self, pipe: _Pipe) -> None:
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: _ServerSide(pipe), self.target_host, self.target_port
            )
        except OSError:
            pipe.cut()

    def _forget(self, pipe: _Pipe) -> None:
        self._pipes.discard(pipe)


class _Pipe:
    """One connection: the client's side, the server's side, and what happens between them."""

    def __init__(self, proxy: TcpProxy, client: asyncio.Transport) -> None:
        self._proxy = proxy
        self._loop = asyncio.get_running_loop()
        self.client: asyncio.Transport = client
        self.server: asyncio.Transport | None = None
        self._early = bytearray()
        """What the client sent before the server was there."""
        self._is_open = True
        self._loses_upstream = False
        self._loses_downstream = False
        self._is_stalled = False
        self._is_server_full = False
        self._deadline: asyncio.TimerHandle | None = None
        self._due = 0.0

    def suffer(self, fault: Fault) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._is_stalled = fault is Fault.UPSTREAM_STALL
        self._read_from_client_or_not()
        if fault in _CUT:
            self.cut()
        elif fault in _TIMEOUT:
            self._deadline = self._loop.call_later(self._proxy.timeout_s, self.cut)

    def server_is_full(self, is_full: bool) -> None:
        """The server reads more slowly than the client writes, or has caught up."""
        self._is_server_full = is_full
        self._read_from_client_or_not()

    def _read_from_client_or_not(self) -> None:
        if self.client.is_closing():
            return
        if self._is_stalled or self._is_server_full:
            self.client.pause_reading()
        else:
            self.client.resume_reading()

    def cut(self) -> None:
        if not self._is_open:
            return
        self._shut()
        self.client.abort()
        if self.server is not None:
            self.server.abort()

    def _shut(self) -> None:
        self._is_open = False
        if self._deadline is not None:
            self._deadline.cancel()
        self._proxy._forget(self)

    def end(self) -> None:
        """One side has closed: the other gets what is still on its way, then the end."""
        if self._is_open:
            self._later(self._close, b"")

    def server_connected(self, server: asyncio.Transport) -> None:
        self.server = server
        if not self._is_open:
            server.abort()
        elif self._early:
            server.write(bytes(self._early))
            self._early.clear()

    def upstream(self, data: bytes) -> None:
        self._loses_upstream |= self._proxy.fault in _UPSTREAM
        if not self._loses_upstream:
            self._later(self._write_upstream, data)

    def downstream(self, data: bytes) -> None:
        self._loses_downstream |= self._proxy.fault in _DOWNSTREAM
        if not self._loses_downstream:
            self._later(self._write_downstream, data)

    def _later(self, write: _Write, data: bytes) -> None:
        latency = self._proxy.latency_s
        now = self._loop.time()
        if not latency and self._due <= now:
            write(data)
            return
        # Never before what came earlier, even where the latency has been lowered meanwhile.
        self._due = max(self._due + 1e-6, now + latency)
        self._loop.call_at(self._due, write, data)

    def _write_upstream(self, data: bytes) -> None:
        if self.server is None:
            self._early += data
        elif self._is_open:
            self.server.write(data)

    def _write_downstream(self, data: bytes) -> None:
        if self._is_open:
            self.client.write(data)

    def _close(self, _: bytes) -> None:
        if self._is_open:
            self.client.close()
            if self.server is not None:
                self.server.close()
            self._shut()


class _ClientSide(asyncio.Protocol):
    def __init__(self, proxy: TcpProxy) -> None:
        self._proxy = proxy
        self._pipe: _Pipe | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._pipe = self._proxy._accept(cast(asyncio.Transport, transport))

    def data_received(self, data: bytes) -> None:
        if self._pipe is not None:
            self._pipe.upstream(data)

    def pause_writing(self) -> None:
        if self._pipe is not None and self._pipe.server is not None:
            self._pipe.server.pause_reading()

    def resume_writing(self) -> None:
        if self._pipe is not None and self._pipe.server is not None:
            self._pipe.server.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._pipe is not None:
            self._pipe.end()


class _ServerSide(asyncio.Protocol):
    def __init__(self, pipe: _Pipe) -> None:
        self._pipe = pipe

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._pipe.server_connected(cast(asyncio.Transport, transport))

    def data_received(self, data: bytes) -> None:
        self._pipe.downstream(data)

    def pause_writing(self) -> None:
        self._pipe.server_is_full(True)

    def resume_writing(self) -> None:
        self._pipe.server_is_full(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pipe.end()
