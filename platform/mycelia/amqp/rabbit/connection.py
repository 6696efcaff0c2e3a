"""One connection to one broker. The only module that sees pika.

Who does what: asyncio's (or uvloop's) transport carries the bytes, TLS included; `FrameReader` takes the frames of messages and
confirms; pika does everything else: handshake, tuning, heartbeats both ways, channel numbers and states, reasons for closing.

    transport ⇄ BrokerConnection ─ FrameReader ─ messages, confirms ─→ ChannelSink of the channel
                                       └──────── all other frames ───→ pika ─→ replies, closings
    publishings, acks, pika's frames ─→ write() ─ one transport.write() for each loop turn

pika's public classes are driven through the interface it defines for transports (`connection_made`, `data_received`, …
in `pika.adapters.utils.nbio_interface`) with `internal_connection_workflow=False`: pika's own selector transport reads 4 KB
at a time, asyncio's 256 KB.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

import pika.connection
import pika.credentials
import pika.exceptions
import pika.frame
from pika.adapters.asyncio_connection import AsyncioConnection

from mycelia.amqp.rabbit.frames import ChannelSink, FrameReader
from mycelia.amqp.rabbit.liveness import (
    CHECK_EVERY_S,
    Liveness,
    ask_while_idle,
    read_tcp_state,
)
from mycelia.amqp.uri import Endpoint
from mycelia.errors import AccessRefused, BrokerUnavailable, LinkError, ProtocolError

__all__ = [
    "BrokerChannel",
    "BrokerConnection",
    "ChannelClosed",
    "ConnectionLost",
    "open_connection",
]

_FRAME_MAX: Final = 131072
"""Octets; RabbitMQ's own default. The broker may tune it down."""
_CHANNEL_MAX: Final = 2047
"""RabbitMQ's own default, until the broker has said it."""


_FLUSH_AT: Final = 12
"""Messages in one write. Enough to make the system call cheap; with more, peer and broker would wait for a whole turn
of ours and the three would work in turns instead of at once (measured: 12 beats 4 and no limit by about a tenth)."""


class ChannelClosed(LinkError):
    """The broker closed a channel, or we did.

    Attributes:
        code: AMQP reply code, for instance 404; 0 where there is none.
        text: what the broker said.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"channel closed: {code} {text}")
        self.code = code
        self.text = text


class ConnectionLost(BrokerUnavailable):
    """The connection is gone.

    Attributes:
        code: AMQP reply code where the broker closed it, for instance 320; 0 otherwise.
    """

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


class Settling(Protocol):
    """A channel that has settlements to write when the connection flushes."""

    def write_settlements(self, out: list[bytes]) -> None: ...


class _Pika(AsyncioConnection):  # type: ignore[misc]  # pika has no types
    """pika's connection, speaking through `BrokerConnection`."""

    def __init__(self, owner: BrokerConnection, parameters: Any) -> None:
        self._owner = owner
        self.closed_by_broker: tuple[int, str] | None = None
        super().__init__(
            parameters,
            on_open_callback=owner._on_open,
            on_open_error_callback=owner._on_closed,
            on_close_callback=owner._on_closed,
            custom_ioloop=owner.loop,
            internal_connection_workflow=False,
        )

    def _adapter_emit_data(self, data: bytes) -> None:
        self._owner.write(data)

    def _on_connection_close_from_broker(self, method_frame: Any) -> None:
        # During the handshake pika replaces this reason by a guess; the broker's words are better.
        method = method_frame.method
        self.closed_by_broker = (method.reply_code, method.reply_text)
        super()._on_connection_close_from_broker(method_frame)


class BrokerConnection(asyncio.Protocol):
    """An open connection. Made by `open_connection()`; lives on the loop that was running then.

    Attributes:
        endpoint: the broker it leads to.
        frame_max: octets of the largest frame, as tuned.
        channel_max: channels that may be open at a time.
        server_properties: what the broker said of itself.
        lost: done when the connection is gone; its result says why.
        has_room: whether the write buffer is below its bound (and leads anywhere).
        blocked: the broker has stopped taking publishings.
        on_blocked: called with the new value when `blocked` changes.
        on_writable: called when the write buffer has room again.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        parameters: Any,
        loop: asyncio.AbstractEventLoop,
        write_buffer_bytes: int,
        peer_timeout: float = 0.0,
    ) -> None:
        self.loop = loop
        self.endpoint = endpoint
        self.frame_max = _FRAME_MAX
        self.channel_max = _CHANNEL_MAX
        self.server_properties: dict[str, Any] = {}
        self.opened: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[ConnectionLost] = loop.create_future()
        self.blocked = False
        self.on_blocked: Callable[[bool], None] = _ignore
        self.on_writable: Callable[[], None] = _ignore
        self._reader = FrameReader(self._on_frame, _FRAME_MAX)
        self._transport: asyncio.Transport | None = None
        self._write_buffer_bytes = write_buffer_bytes
        self._peer_timeout = peer_timeout
        self._liveness: Liveness | None = None
        self._next_look: asyncio.TimerHandle | None = None
        self.has_room = True
        self._paused = False
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._settling: list[Settling] = []
        self._flush_scheduled = False
        self._messages = 0  # since the last flush
        self._is_busy = False  # the last flush ended a turn of several messages
        self._fault: Exception | None = None
        self._pika = _Pika(self, parameters)

    # --- what the channels use ---

    def write(self, data: bytes) -> None:
        """Send `data`: at once if nothing else is being written, else together with what this turn of the loop brings."""
        self._messages += 1
        if self._flush_scheduled or self._is_busy or self._transport is None:
            self._out.append(data)
            self._out_bytes += len(data)
            if self._out_bytes >= self._write_buffer_bytes:
                self.has_room = False
            if not self._flush_scheduled:
                self._flush_soon()
            elif len(self._out) >= _FLUSH_AT:
                self._write_out()
        else:
            # Alone, so far: a trip through the loop would only delay it. What this turn still brings is collected.
            self._flush_scheduled = True
            self._transport.write(data)
            self.loop.call_soon(self._flush)

    def settle_soon(self, channel: Settling) -> None:
        """Have `channel` write its settlements into this loop turn's one write."""
        self._settling.append(channel)
        if not self._flush_scheduled:
            self._flush_soon()

    def _flush_soon(self) -> None:
        """Write at the end of this loop turn, or, when there is much to write, of the next.

        A turn begins with reading. Under load the next turn's messages can ride with this turn's, which saves a fifth of
        the system calls.
        """
        self._flush_scheduled = True
        self.loop.call_soon(self._flush_next_turn if self._is_busy else self._flush)

    def _flush_next_turn(self) -> None:
        self.loop.call_soon(self._flush)

    def write_settlements(self) -> None:
        """Put the settlements so far before what is written next (a channel's closing, for instance)."""
        for channel in self._settling:
            channel.write_settlements(self._out)
        self._settling.clear()

    def _flush(self) -> None:
        self._flush_scheduled = False
        self._is_busy = self._messages > 1
        self._messages = 0
        if self._settling:
            self.write_settlements()
        self._write_out()

    def _write_out(self) -> None:
        out = self._out
        if out:
            if self._transport is not None:
                self._transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()
            was_full = self._out_bytes >= self._write_buffer_bytes
            self._out_bytes = 0
            if was_full:
                self.has_room = not self._paused
                # Where the socket has taken it all, the transport never pauses, and so never tells that it goes on.
                self.loop.call_soon(self._tell_room)

    def _tell_room(self) -> None:
        if self.has_room:
            self.on_writable()

    async def open_channel(self, timeout: float) -> BrokerChannel:
        """Open a channel.

        Raises:
            BrokerUnavailable: no answer within `timeout` seconds.
            ConnectionLost: the connection is (or goes) down.
        """
        channel = self.open_channel_nowait()
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(channel.opened)
        except TimeoutError:
            raise BrokerUnavailable(
                f"{self.endpoint}: no answer to channel.open within {timeout:g} s"
            ) from None
        return channel

    def open_channel_nowait(self) -> BrokerChannel:
        """Open a channel without waiting for the broker's answer: what is written to it is taken in order."""
        if self.lost.done():
            raise ConnectionLost(str(self.lost.result()))
        channel = BrokerChannel(self)
        try:
            channel.attach(self._pika.channel(on_open_callback=channel.on_open))
        except pika.exceptions.AMQPError as exc:
            raise ConnectionLost(f"{self.endpoint}: no channel can be opened: {exc!r}") from exc
        return channel

    def set_sink(self, channel_number: int, sink: ChannelSink) -> None:
        """Give the messages and confirms of a channel to `sink` from now on."""
        self._reader.sinks[channel_number] = sink

    def remove_sink(self, channel_number: int) -> None:
        self._reader.sinks.pop(channel_number, None)

    async def aclose(self, timeout: float) -> None:
        """Close channels and connection in order; cut it off after `timeout` seconds. Idempotent."""
        if not self.lost.done():
            self.write_settlements()
            if not (self._pika.is_closing or self._pika.is_closed):
                self._pika.close()
            await asyncio.wait([self.lost], timeout=timeout)
        if not self.lost.done():
            self.abort(ConnectionLost(f"{self.endpoint}: closed by us"))
            await asyncio.wait([self.lost], timeout=1.0)  # abort() only needs a loop turn or two

    def abort(self, reason: Exception) -> None:
        """Cut the connection off at once, for `reason`."""
        if self._fault is None:
            self._fault = reason
        if self._transport is None:
            self._finish(reason)
        elif not self._pika.is_closed:
            self._pika._terminate_stream(reason)

    # --- what the transport calls (asyncio.Protocol) ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's
        self._transport = transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(high=self._write_buffer_bytes)
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ask_while_idle(raw, self._peer_timeout)
        self._pika._proto_connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._pika.bytes_received += len(data)  # what pika's heartbeat check looks at
        if self._fault is not None:
            return
        try:
            self._reader.feed(data)
        except ProtocolError as exc:
            self.abort(exc)

    def eof_received(self) -> bool:
        return bool(self._pika._proto_eof_received())

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if exc is None and self._pika._error is None and not self._pika._got_eof:
            exc = ConnectionResetError("closed by the peer")
        if not self._pika.is_closed:
            self._pika._proto_connection_lost(exc)
        self._finish(exc)

    def pause_writing(self) -> None:
        self._paused = True
        self.has_room = False

    def resume_writing(self) -> None:
        self._paused = False
        self.has_room = self._out_bytes < self._write_buffer_bytes
        self.on_writable()

    # --- what pika calls ---

    def _on_frame(self, data: bytes) -> None:
        try:
            frame = pika.frame.decode_frame(data)[1]
        except Exception as exc:
            raise ProtocolError(f"a frame that cannot be read: {data[:40]!r} ({exc!r})") from exc
        try:
            self._pika._process_frame(frame)
        except Exception as exc:
            raise ProtocolError(f"{frame!r:.200} makes no sense now: {exc!r}") from exc

    def _on_open(self, _pika: Any) -> None:
        self.frame_max = self._reader.frame_max = self._pika.params.frame_max
        self.channel_max = self._pika.params.channel_max or _CHANNEL_MAX
        self.server_properties = dict(self._pika.server_properties or {})
        self._pika.add_on_connection_blocked_callback(lambda *_: self._set_blocked(True))
        self._pika.add_on_connection_unblocked_callback(lambda *_: self._set_blocked(False))
        heartbeat = self._pika.params.heartbeat or 0
        self._liveness = Liveness(heartbeat, self._peer_timeout, self.loop.time())
        self._next_look = self.loop.call_later(CHECK_EVERY_S, self._look)
        if not self.opened.done():
            self.opened.set_result(None)

    def _look(self) -> None:
        """See whether the broker still lives."""
        self._next_look = None
        if self.lost.done() or self._liveness is None or self._transport is None:
            return
        tcp = None
        if self._peer_timeout:
            tcp = read_tcp_state(self._transport.get_extra_info("socket"))
        verdict = self._liveness.look(self.loop.time(), self._pika.bytes_received, tcp)
        if verdict is not None:
            self.abort(ConnectionLost(f"{self.endpoint}: {verdict}"))
        else:
            self._next_look = self.loop.call_later(CHECK_EVERY_S, self._look)

    def _on_closed(self, _pika: Any, reason: Exception) -> None:
        self._finish(reason)

    def _set_blocked(self, blocked: bool) -> None:
        if blocked != self.blocked:
            self.blocked = blocked
            self.on_blocked(blocked)

    def _finish(self, reason: Exception | None) -> None:
        if self.lost.done():
            return
        self._paused = True  # what is written now would vanish
        self.has_room = False
        if self._next_look is not None:
            self._next_look.cancel()
        error = self._explain(self._fault or reason)
        self.lost.set_result(
            error if isinstance(error, ConnectionLost) else ConnectionLost(str(error))
        )
        if not self.opened.done():
            self.opened.set_exception(error)
            self.opened.exception()  # whoever opened may have stopped waiting

    def _explain(self, reason: Exception | None) -> LinkError:
        """The reason in our words, with host, user and virtual host; never the password."""
        where = self.endpoint
        if self._pika.closed_by_broker is not None:
            code, text = self._pika.closed_by_broker
            if not self.opened.done() and _is_refusal(code, text):
                return AccessRefused(
                    f'{where} refused user "{where.user}" at virtual host "{where.vhost}": {code} {text.rstrip(".")}. '
                    "Check user, password and virtual host in AMQP_URI, and the user's permissions."
                )
            return ConnectionLost(f"{where}: closed by the broker: {code} {text}", code)
        if isinstance(reason, LinkError):
            return reason
        if isinstance(reason, pika.exceptions.AMQPHeartbeatTimeout):
            return ConnectionLost(
                f"{where}: no sign of life from the broker for {self._pika.params.heartbeat} s"
            )
        if isinstance(reason, pika.exceptions.ConnectionClosedByClient):
            return ConnectionLost(f"{where}: closed by us")
        if isinstance(reason, pika.exceptions.AMQPError):
            return ConnectionLost(f"{where}: {reason.args[0] if reason.args else reason!r}")
        return ConnectionLost(f"{where}: {reason or 'closed'}")


class BrokerChannel:
    """A channel, with pika's callbacks as awaitables.

    Attributes:
        number: of the channel on its connection.
        opened: done when the broker has opened it.
        closed: done when it is gone; its result is `ChannelClosed` or `ConnectionLost`.
        is_open: whether it may be written to. After the closing handshake RabbitMQ answers a frame on a closed
            channel by closing the whole connection (504 CHANNEL_ERROR), so this turns false with the closing frame.
        on_cancelled: called when the broker cancels the consumer on this channel.
        on_closed: called at once when `closed` is done.
    """

    def __init__(self, connection: BrokerConnection) -> None:
        self.connection = connection
        self.number = 0
        self.opened: asyncio.Future[None] = connection.loop.create_future()
        self.closed: asyncio.Future[LinkError] = connection.loop.create_future()
        self.is_open = False
        self.on_cancelled: Callable[[], None] = _ignore
        self.on_closed: Callable[[LinkError], None] = _ignore
        self._pika: Any = None
        self._waiting: set[asyncio.Future[Any]] = set()

    def attach(self, channel: Any) -> None:
        self._pika = channel
        self.number = channel.channel_number
        self.is_open = True
        channel.add_on_close_callback(self._on_close)
        channel.add_on_cancel_callback(lambda _frame: self.on_cancelled())

    def on_open(self, _channel: Any) -> None:
        if not self.opened.done():
            self.opened.set_result(None)

    async def call(self, method: str, timeout: float, **arguments: Any) -> Any:
        """Call `method` of pika's channel and return the broker's answer (pika's method object).

        Raises:
            ChannelClosed: the broker closed the channel over it.
            ConnectionLost: the connection went down.
            BrokerUnavailable: no answer within `timeout` seconds.
            ProtocolError: the arguments cannot be written as AMQP.
        """
        if self.closed.done():
            raise self._closed_error()
        reply: asyncio.Future[Any] = self.connection.loop.create_future()

        def on_reply(frame: Any) -> None:
            if not reply.done():
                reply.set_result(frame.method)

        self._waiting.add(reply)
        try:
            getattr(self._pika, method)(callback=on_reply, **arguments)
            async with asyncio.timeout(timeout):
                return await reply
        except TimeoutError:
            raise BrokerUnavailable(
                f"{self.connection.endpoint}: no answer to {method} within {timeout:g} s"
            ) from None
        except pika.exceptions.ChannelWrongStateError as exc:
            raise ChannelClosed(0, str(exc)) from exc
        except (pika.exceptions.AMQPError, ValueError, TypeError) as exc:
            raise ProtocolError(f"{method}: {exc!r}") from exc
        finally:
            self._waiting.discard(reply)

    def tell(self, method: str, **arguments: Any) -> None:
        """Call `method` of pika's channel without an answer (`nowait`): if the broker refuses, it closes the channel.

        Raises:
            ChannelClosed, ConnectionLost: it is gone already.
            ProtocolError: the arguments cannot be written as AMQP.
        """
        if self.closed.done():
            raise self._closed_error()
        try:
            getattr(self._pika, method)(**arguments)
        except pika.exceptions.ChannelWrongStateError as exc:
            raise ChannelClosed(0, str(exc)) from exc
        except (pika.exceptions.AMQPError, ValueError, TypeError) as exc:
            raise ProtocolError(f"{method}: {exc!r}") from exc

    def call_nowait(self, method: str, on_reply: Callable[[], None], **arguments: Any) -> None:
        """Call `method` of pika's channel, which is open, and have `on_reply` called with the broker's answer, if one comes."""
        getattr(self._pika, method)(callback=lambda _frame: on_reply(), **arguments)

    async def close(self, timeout: float) -> None:
        """Close it, after what has been written. Idempotent; waits at most `timeout` seconds."""
        self.close_nowait()
        await asyncio.wait([self.closed], timeout=timeout)

    def close_nowait(self) -> None:
        """Have it closed, after what has been written."""
        if not (self.closed.done() or self._pika.is_closing or self._pika.is_closed):
            self.connection.write_settlements()
            self.is_open = False
            if self._pika.is_open:
                self._pika.close()

    def _closed_error(self) -> LinkError:
        reason = self.closed.result()
        if isinstance(reason, ChannelClosed):
            return ChannelClosed(reason.code, reason.text)
        return ConnectionLost(str(reason), getattr(reason, "code", 0))

    def _on_close(self, _channel: Any, reason: Exception) -> None:
        error: LinkError
        if isinstance(reason, pika.exceptions.ChannelClosed):
            error = ChannelClosed(reason.reply_code, reason.reply_text)
        else:
            error = self.connection._explain(self.connection._fault or reason)
        self.connection.remove_sink(self.number)
        self.is_open = False
        if not self.closed.done():
            self.closed.set_result(error)
            self.on_closed(error)
        for waiting in (self.opened, *self._waiting):
            if not waiting.done():
                waiting.set_exception(self._closed_error())
        if self.opened.done() and not self.opened.cancelled():
            self.opened.exception()  # nobody may be waiting for it


async def open_connection(
    endpoint: Endpoint,
    *,
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    heartbeat: float = 60.0,
    connection_name: str = "mycelia",
    timeout: float = 10.0,
    write_buffer_bytes: int = 4 * 1024 * 1024,
    peer_timeout: float = 0.0,
) -> BrokerConnection:
    """Connect to one broker, all the way to an open virtual host.

    Args:
        heartbeat: seconds; 0 for none. The peer is given up after one and a half of them without a byte (or 5 s more than one,
            whichever is less).
        peer_timeout: seconds; 0 for never. The peer is given up when its machine has acknowledged nothing for so long (`liveness.py`).
        connection_name: shown by the broker's management.
        timeout: seconds for name resolution, TCP, TLS and handshake together.

    Raises:
        AccessRefused: user, password or virtual host are wrong.
        BrokerUnavailable: nothing answers as a broker does.
    """
    _quieten_pika()
    loop = asyncio.get_running_loop()
    parameters = pika.connection.ConnectionParameters(
        host=endpoint.host,
        port=endpoint.port,
        virtual_host=endpoint.vhost,
        credentials=pika.credentials.PlainCredentials(endpoint.user, endpoint.password),
        heartbeat=max(1, round(heartbeat)) if heartbeat > 0 else 0,  # AMQP has whole seconds
        frame_max=_FRAME_MAX,
        client_properties={"product": "mycelia", "connection_name": connection_name},
    )
    connection: BrokerConnection | None = None

    def make_connection() -> BrokerConnection:
        nonlocal connection
        connection = BrokerConnection(endpoint, parameters, loop, write_buffer_bytes, peer_timeout)
        return connection

    try:
        async with asyncio.timeout(timeout):
            await loop.create_connection(
                make_connection,
                endpoint.host,
                endpoint.port,
                ssl=ssl_context,
                server_hostname=(server_hostname or endpoint.host) if ssl_context else None,
            )
            assert connection is not None
            await asyncio.shield(connection.opened)
    except TimeoutError:
        _give_up(connection)
        raise BrokerUnavailable(f"{endpoint}: no AMQP handshake within {timeout:g} s") from None
    except ProtocolError as exc:
        raise BrokerUnavailable(f"{endpoint}: {exc}") from exc
    except OSError as exc:  # includes name resolution and TLS
        _give_up(connection)
        raise BrokerUnavailable(f"{endpoint}: {_reason_of(exc)}") from exc
    except asyncio.CancelledError:
        _give_up(connection)
        raise
    return connection


def _give_up(connection: BrokerConnection | None) -> None:
    if connection is not None:
        connection.abort(ConnectionLost(f"{connection.endpoint}: given up while connecting"))


def _reason_of(error: OSError) -> str:
    """What the system says, for instance "Connection refused" (asyncio's own text only repeats the address)."""
    if isinstance(error, ssl.SSLError) or error.errno is None or error.errno <= 0:
        return str(error)
    return os.strerror(error.errno)


def _is_refusal(code: int, text: str) -> bool:
    """Whether trying again is of no use: not for a virtual host that is down or a limit that is reached."""
    return code in (403, 530) and "is down" not in text and "limit" not in text


def _quieten_pika() -> None:
    """Keep pika's own lines on every connection's life to itself: ours say it in one. A level set by the user stays."""
    logger = logging.getLogger("pika")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)


def _ignore(*_arguments: Any) -> None:
    pass
