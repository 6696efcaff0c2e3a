"""The hot-path codec: frames of messages to bytes and back (AMQP 0-9-1 §2.3.5, §4.2).

`FrameReader` takes what the socket gives, in any portions, and hands deliveries, returns and confirms to the channel
they belong to; everything else goes as a whole frame to `on_frame` (pika). `PublishEncoder` and `encode_ack()`,
`encode_nack()` are the way out. Pure: no socket, no clock.

A frame: type (1 octet: 1 method, 2 header, 3 body, 8 heartbeat), channel (2), size (4), `size` octets, 0xCE. A message is
a method frame, a header frame (class, weight, body size, properties) and body frames up to the body size; frames of
different channels may be interleaved.

Usually the three frames of a message lie whole and side by side in one read: `FrameReader.feed()` then takes them in one
step, with no state kept between them. The second way, frame by frame, serves split, large and interleaved messages,
and is where every fault is named.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from struct import error as StructError
from typing import Final, Protocol

from mycelia.amqp.fields import decode_properties, encode_properties, encode_short_string
from mycelia.amqp.model import Delivery, FaultyDelivery, Message, Returned, Settler
from mycelia.amqp.salvage import salvage_properties
from mycelia.errors import ProtocolError

__all__ = [
    "ChannelSink",
    "FrameReader",
    "PublishEncoder",
    "encode_ack",
    "encode_get",
    "encode_nack",
]

_HEAD = Struct(">BHI").unpack_from
_METHOD_HEAD = Struct(">BHII").unpack_from
_CONTENT_HEAD = Struct(">BHIHHQ").unpack_from
_U16 = Struct(">H").unpack_from
_U32 = Struct(">I").unpack_from
_U64 = Struct(">Q").unpack_from
_TAG_AND_BITS = Struct(">QB").unpack_from

_PACK_HEAD = Struct(">BHI").pack
_PACK_CONTENT_HEADER = Struct(">BHIHHQ").pack
_PACK_SETTLE = Struct(">BHIHHQBB").pack

_METHOD: Final = 1
_HEADER: Final = 2
_BODY: Final = 3
_HEARTBEAT: Final = 8
_BASIC: Final = 60
_DELIVER: Final = (60 << 16) | 60
_RETURN: Final = (60 << 16) | 50
_GET_OK: Final = (60 << 16) | 71
_GET_EMPTY: Final = (60 << 16) | 72
_ACK: Final = (60 << 16) | 80
_NACK: Final = (60 << 16) | 120

_FRAME_TYPES: Final = frozenset((_METHOD, _HEADER, _BODY, _HEARTBEAT))

_FRAME_END: Final = 0xCE
_FRAME_OVERHEAD: Final = 8  # seven octets before the payload and one behind it
_LEAST_MESSAGE: Final = 40
"""Octets: no whole message is shorter, and neither are the fixed parts that the first way reads blindly."""
_MAX_ROUTES: Final = 4096
"""Distinct (exchange, routing key) pairs kept in encoded or decoded form. Arbitrary; cleared when full."""


# --- out -----------------------------------------------------------------------------------------


def encode_ack(channel: int, delivery_tag: int, multiple: bool) -> bytes:
    """`basic.ack`; `multiple` means this tag and every one before it."""
    return _PACK_SETTLE(_METHOD, channel, 13, _BASIC, 80, delivery_tag, multiple, _FRAME_END)


def encode_nack(channel: int, delivery_tag: int, requeue: bool) -> bytes:
    """`basic.nack` of a single delivery."""
    return _PACK_SETTLE(
        _METHOD, channel, 13, _BASIC, 120, delivery_tag, 2 if requeue else 0, _FRAME_END
    )


def encode_get(channel: int, queue: str) -> bytes:
    """`basic.get`, to be settled.

    Raises:
        ProtocolError: AMQP cannot carry the name.
    """
    arguments = b"\x00\x3c\x00\x46\x00\x00" + encode_short_string(queue) + b"\x00"
    return _PACK_HEAD(_METHOD, channel, len(arguments)) + arguments + b"\xce"


class PublishEncoder:
    """Publishings on one channel as bytes: method, header and body frames, none larger than `frame_max`.

    Args:
        frame_max: octets of the largest frame, its eight of overhead included, as tuned with the broker.
    """

    __slots__ = ("_body_head", "_body_max", "_channel", "_methods")

    def __init__(self, channel: int, frame_max: int) -> None:
        self._channel = channel
        self._body_max = frame_max - _FRAME_OVERHEAD
        self._methods: dict[tuple[str, str, bool], bytes] = {}

    def encode(
        self,
        message: Message,
        message_id: str | None = None,
    ) -> bytes:
        """The bytes of one publishing. `message_id` is sent where the properties carry none.

        Raises:
            ProtocolError: a name, property, header or body that AMQP cannot carry.
        """
        try:
            route = (message.exchange, message.routing_key, message.mandatory)
            method = self._methods.get(route)
            if method is None:
                method = self._encode_method(route)
            values = encode_properties(message.properties, message_id)
            body = message.body
            size = len(body)
            channel = self._channel
            if len(values) + 12 > self._body_max:
                raise ProtocolError(
                    f"the headers and properties of a message are {len(values)} bytes, "
                    f"and the broker's frame_max leaves {self._body_max - 12}. Put large values into the body."
                )
            header = _PACK_CONTENT_HEADER(_HEADER, channel, len(values) + 12, _BASIC, 0, size)
            if size == 0:
                return b"".join((method, header, values, b"\xce"))
            if size <= self._body_max:
                head = _PACK_HEAD(_BODY, channel, size)
                return b"".join((method, header, values, b"\xce", head, body, b"\xce"))
            parts: list[bytes | memoryview] = [method, header, values, b"\xce"]
            view = memoryview(body)
            for start in range(0, size, self._body_max):
                piece = view[start : start + self._body_max]
                parts += (_PACK_HEAD(_BODY, channel, len(piece)), piece, b"\xce")
            return b"".join(parts)
        except (TypeError, AttributeError) as exc:
            raise _not_a_message(message, exc) from exc

    def _encode_method(self, route: tuple[str, str, bool]) -> bytes:
        exchange, routing_key, mandatory = route
        if len(self._methods) >= _MAX_ROUTES:
            self._methods.clear()
        arguments = b"".join(
            (
                b"\x00\x3c\x00\x28\x00\x00",  # basic.publish; the reserved "ticket"
                encode_short_string(exchange),
                encode_short_string(routing_key),
                b"\x01" if mandatory else b"\x00",
            )
        )
        method = _PACK_HEAD(_METHOD, self._channel, len(arguments)) + arguments + b"\xce"
        self._methods[route] = method
        return method


def _not_a_message(message: Message, error: Exception) -> ProtocolError:
    for name, value in (("exchange", message.exchange), ("routing key", message.routing_key)):
        if not isinstance(value, str):
            return ProtocolError(
                f"{message.target}: the {name} is a {type(value).__name__}, not text"
            )
    if not isinstance(message.body, bytes | bytearray | memoryview):
        return ProtocolError(
            f"{message.target}: the body is a {type(message.body).__name__}, not bytes. Encode it first."
        )
    return ProtocolError(f"{message.target}: cannot be written as AMQP: {error!r}")


# --- in ------------------------------------------------------------------------------------------


class ChannelSink(Protocol):
    """A channel that takes its messages and confirms straight from the frames."""

    settler: Settler
    """Given to every delivery."""
    consumer_tag: str
    """Of the channel's one consumer: chosen by us, so the reader need not read it from every delivery."""
    batch: list[Delivery]
    """Filled by the reader, which calls `on_batch()` when the portion it was fed is through."""

    def on_batch(self) -> None:
        """Take `batch` and leave an empty list in its place. Must not raise."""

    def on_undecodable(self, delivery_tag: int, error: ProtocolError) -> None:
        """A message whose properties or headers cannot be decoded. It is in `batch` all the same, as a `FaultyDelivery`."""

    def on_return(self, returned: Returned) -> None: ...

    def on_confirm(self, delivery_tag: int, multiple: bool, acknowledged: bool) -> None: ...

    def on_get_empty(self) -> None:
        """`basic.get` found no message. (What it finds comes in `batch`.)"""


class _Content:
    """A message of which the header or a part of the body has yet to come."""

    __slots__ = ("chunks", "header", "is_return", "method", "missing")

    def __init__(self, method: bytes, is_return: bool) -> None:
        self.method = method
        self.is_return = is_return
        self.header: bytes | None = None
        self.missing = 0
        self.chunks: list[bytes] = []


class FrameReader:
    """Turns the byte stream into messages, confirms and whole frames. Any split of the stream gives the same events.

    Attributes:
        sinks: channel number → the channel that takes messages and confirms directly. Other channels' frames go
            to `on_frame`.
        frame_max: the largest frame the peer may send; smaller limits are tuned in after the handshake.
    """

    def __init__(self, on_frame: Callable[[bytes], None], frame_max: int = 131072) -> None:
        self.sinks: dict[int, ChannelSink] = {}
        self.frame_max = frame_max
        self._on_frame = on_frame
        self._portions: list[bytes] = []  # bytes of a frame that is not whole yet …
        self._held = 0  # … how many …
        self._need = 0  # … and how many make it worth looking again
        self._contents: dict[int, _Content] = {}
        self._routes: dict[bytes, tuple[str, str]] = {}

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream and hand on what they complete.

        Raises:
            ProtocolError: the bytes are not AMQP 0-9-1. The reader is of no further use.
        """
        if self._held:
            self._portions.append(data)
            self._held += len(data)
            if self._held < self._need:
                return
            data = b"".join(self._portions)
            self._portions.clear()
            self._held = 0
        touched: list[ChannelSink] = []
        try:
            position = self._read(data, touched)
        except (IndexError, StructError) as exc:
            raise ProtocolError(f"a method frame is shorter than its arguments: {exc}") from exc
        finally:
            for sink in touched:
                sink.on_batch()
        if position < len(data):
            self._portions.append(data[position:])
            self._held = len(data) - position

    def _read(self, data: bytes, touched: list[ChannelSink]) -> int:
        """Take every whole frame; return the position of the first that is not. Flat: this is the hot loop."""
        sinks = self.sinks
        contents = self._contents
        routes = self._routes
        payload_max = self.frame_max - _FRAME_OVERHEAD
        position = 0
        total = len(data)
        while position < total:
            if total - position > _LEAST_MESSAGE:
                kind, channel, size, method = _METHOD_HEAD(data, position)
                if (
                    method == _DELIVER
                    and kind == 1
                    and (sink := sinks.get(channel)) is not None
                    and not (contents and channel in contents)
                ):
                    header = position + size + 8
                    if header + 22 < total:
                        kind, other, header_size, class_id, _, body_size = _CONTENT_HEAD(
                            data, header
                        )
                        header_end = header + 7 + header_size
                        if body_size:
                            end = header_end + 8 + body_size
                            whole = (
                                end < total
                                and _HEAD(data, header_end + 1) == (3, channel, body_size)
                                and data[end] == 0xCE
                                and body_size <= payload_max
                            )
                        else:
                            end = header_end
                            whole = end < total
                        if (
                            whole
                            and kind == 2
                            and other == channel
                            and class_id == _BASIC
                            and data[header - 1] == 0xCE
                            and data[header_end] == 0xCE
                            and size <= payload_max
                            and header_size <= payload_max
                        ):
                            # consumer tag, delivery tag, redelivered, exchange and routing key
                            start = position + 12 + data[position + 11]
                            delivery_tag, redelivered = _TAG_AND_BITS(data, start)
                            raw = data[start + 9 : header - 1]
                            route = routes.get(raw) or self._decode_route(raw)
                            position = end + 1
                            batch = sink.batch
                            if not batch:
                                touched.append(sink)
                            try:
                                properties = decode_properties(data, header + 19, header_end)
                            except ProtocolError as error:
                                body = data[header_end + 8 : end] if body_size else b""
                                batch.append(
                                    _faulty(
                                        sink,
                                        delivery_tag,
                                        redelivered != 0,
                                        route,
                                        data[header + 19 : header_end],
                                        body,
                                        error,
                                    )
                                )
                                continue
                            batch.append(
                                Delivery(
                                    sink.settler,
                                    sink.consumer_tag,
                                    delivery_tag,
                                    redelivered != 0,
                                    route[0],
                                    route[1],
                                    properties,
                                    data[header_end + 8 : end] if body_size else b"",
                                )
                            )
                            continue
            end = self._frame_end(data, position, total)
            if end < 0:
                return position
            self._take_frame(data, position, end, touched)
            position = end + 1
        return position

    # --- the second way: one frame at a time ---

    def _frame_end(self, data: bytes, position: int, total: int) -> int:
        """The position of the last octet of the frame at `position`; -1 if it is not whole."""
        if total - position < 7:
            self._need = 7
            return -1
        size: int
        kind, channel, size = _HEAD(data, position)
        if size > self.frame_max - _FRAME_OVERHEAD or kind not in _FRAME_TYPES:
            raise self._not_a_frame(data, position, kind, size)
        end = position + 7 + size
        if end >= total:
            self._need = size + _FRAME_OVERHEAD
            return -1
        if data[end] != _FRAME_END:
            raise ProtocolError(
                f"frame of type {kind} on channel {channel} ends in {data[end]:#04x}, not 0xce"
            )
        return end

    def _take_frame(self, data: bytes, position: int, end: int, touched: list[ChannelSink]) -> None:
        kind, channel, size = _HEAD(data, position)
        sink = self.sinks.get(channel)
        if sink is None or kind == _HEARTBEAT:
            self._on_frame(data[position : end + 1])
            return
        content = self._contents.get(channel)
        if kind != _METHOD:
            if content is None:
                raise ProtocolError(
                    f"{_frame_name(kind)} frame on channel {channel} without a message it belongs to"
                )
            if self._add(content, kind, channel, data[position + 7 : end]):
                del self._contents[channel]
                self._finish(content, sink, touched)
            return
        if size < 4:
            raise ProtocolError(f"method frame of {size} bytes on channel {channel}")
        (method,) = _U32(data, position + 7)
        if content is not None:
            raise ProtocolError(
                f"method {method >> 16}.{method & 0xFFFF} on channel {channel} in the middle of a message"
            )
        if method in (_DELIVER, _RETURN):
            self._contents[channel] = _Content(data[position + 11 : end], method == _RETURN)
        elif method == _GET_OK:
            # as a delivery, but without a consumer tag and with the number of messages left
            self._contents[channel] = _Content(b"\x00" + data[position + 11 : end - 4], False)
        elif method == _GET_EMPTY:
            sink.on_get_empty()
        elif method in (_ACK, _NACK):
            if size != 13:
                raise ProtocolError(f"confirm of {size} bytes on channel {channel}, not 13")
            delivery_tag, bits = _TAG_AND_BITS(data, position + 11)
            sink.on_confirm(delivery_tag, bits & 1 == 1, method == _ACK)
        else:
            self._on_frame(data[position : end + 1])

    def _add(self, content: _Content, kind: int, channel: int, payload: bytes) -> bool:
        """Add a header or body frame to its message; return whether the message is whole now."""
        if (kind == _HEADER) != (content.header is None):
            raise ProtocolError(
                f"{_frame_name(kind)} frame on channel {channel} where a "
                f"{'header' if content.header is None else 'body'} frame must come"
            )
        if kind == _HEADER:
            if len(payload) < 12 or _U16(payload, 0)[0] != _BASIC:
                raise ProtocolError(
                    f"content header on channel {channel} is not of class basic (60): {payload[:14]!r}"
                )
            content.header = payload
            (content.missing,) = _U64(payload, 4)
        else:
            content.missing -= len(payload)
            if content.missing < 0:
                raise ProtocolError(
                    f"body on channel {channel} is {-content.missing} bytes longer than its header says"
                )
            content.chunks.append(payload)
        return content.missing == 0

    def _finish(self, content: _Content, sink: ChannelSink, touched: list[ChannelSink]) -> None:
        method = content.method
        header = content.header or b""
        body = b"".join(content.chunks)
        if content.is_return:
            sink.on_return(_decode_return(method, header, body))
            return
        tag_end = 1 + method[0]
        delivery_tag, redelivered = _TAG_AND_BITS(method, tag_end)
        exchange, routing_key = route = self._decode_route(method[tag_end + 9 :])
        if not sink.batch:
            touched.append(sink)
        try:
            properties = decode_properties(header, 12, len(header))
        except ProtocolError as error:
            sink.batch.append(
                _faulty(sink, delivery_tag, redelivered != 0, route, header[12:], body, error)
            )
            return
        sink.batch.append(
            Delivery(
                sink.settler,
                sink.consumer_tag,
                delivery_tag,
                redelivered != 0,
                exchange,
                routing_key,
                properties,
                body,
            )
        )

    def _decode_route(self, raw: bytes) -> tuple[str, str]:
        """Exchange and routing key: the two short strings that `raw` consists of."""
        exchange, end = _split_short_string(raw, 0)
        routing_key, end = _split_short_string(raw, end)
        if end != len(raw):
            raise ProtocolError(f"exchange and routing key are not two short strings: {raw[:80]!r}")
        if len(self._routes) >= _MAX_ROUTES:
            self._routes.clear()
        route = self._routes[raw] = (exchange, routing_key)
        return route

    def _not_a_frame(self, data: bytes, position: int, kind: int, size: int) -> ProtocolError:
        start = data[position : position + 16]
        if kind in _FRAME_TYPES:
            return ProtocolError(
                f"frame of {size + _FRAME_OVERHEAD} bytes, and frame_max is {self.frame_max}: {start!r}"
            )
        hint = " Is this the port of an AMQP 0-9-1 broker?" if position == 0 else ""
        return ProtocolError(f"no frame has type {kind}: the peer sent {start!r}.{hint}")


def _faulty(
    sink: ChannelSink,
    delivery_tag: int,
    redelivered: bool,
    route: tuple[str, str],
    values: bytes,
    body: bytes,
    error: ProtocolError,
) -> FaultyDelivery:
    """A delivery with as much of `values`, its undecodable properties, as can be read."""
    sink.on_undecodable(delivery_tag, error)
    properties, raw_headers = salvage_properties(values, 0, len(values))
    return FaultyDelivery(
        sink.settler,
        sink.consumer_tag,
        delivery_tag,
        redelivered,
        route[0],
        route[1],
        properties,
        body,
        fault=error,
        raw_headers=raw_headers,
    )


def _frame_name(kind: int) -> str:
    return "header" if kind == _HEADER else "body"


def _split_short_string(raw: bytes, position: int) -> tuple[str, int]:
    if position >= len(raw):
        raise ProtocolError(f"a short string is missing in {raw[:80]!r}")
    end = position + 1 + raw[position]
    return raw[position + 1 : end].decode("utf-8", "surrogateescape"), end


def _decode_return(method: bytes, header: bytes, body: bytes) -> Returned:
    (reply_code,) = _U16(method, 0)
    reply_text, end = _split_short_string(method, 2)
    exchange, end = _split_short_string(method, end)
    routing_key, end = _split_short_string(method, end)
    if end != len(method):
        raise ProtocolError(f"broken basic.return: {method[:80]!r}")
    try:
        properties = decode_properties(header, 12, len(header))
    except ProtocolError:  # our own publishing: whoever waits for it knows it by its correlation id
        properties = salvage_properties(header, 12, len(header)).properties
    return Returned(reply_code, reply_text, exchange, routing_key, properties, body)
