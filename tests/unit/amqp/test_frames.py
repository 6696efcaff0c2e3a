"""The hot-path codec, against pika's frames as the oracle."""

from __future__ import annotations

import contextlib
import itertools
import struct
from random import Random
from typing import Any

import pika.frame
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pika import spec

from mycelia.amqp.model import Delivery, Message, Properties, Returned
from mycelia.amqp.rabbit.frames import FrameReader, PublishEncoder, encode_ack, encode_nack
from mycelia.errors import ProtocolError

examples = settings(max_examples=60)

short_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
property_sets: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "content_type": st.just("application/json") | short_text,
        "headers": st.dictionaries(
            short_text,
            short_text | st.lists(short_text, max_size=3) | st.integers(-9, 9),
            max_size=3,
        ),
        "delivery_mode": st.integers(1, 2),
        "correlation_id": short_text,
        "reply_to": short_text,
        "message_id": short_text,
    },
)
FRAME_MAX = 4096
LARGEST_BODY = FRAME_MAX - 8


class Sink:
    """A channel that writes down what it is told."""

    def __init__(self, number: int, tag: str = "tag") -> None:
        self.settler: Any = object()
        self.consumer_tag = f"{tag}{number}"
        self.batch: list[Delivery] = []
        self.batches: list[int] = []
        self.events: list[tuple[Any, ...]] = []

    def on_batch(self) -> None:
        self.batches.append(len(self.batch))
        for one in self.batch:
            assert one.settler is self.settler
            assert one.consumer_tag == self.consumer_tag
            self.events.append(
                (
                    "deliver",
                    one.delivery_tag,
                    one.redelivered,
                    one.exchange,
                    one.routing_key,
                    one.properties,
                    one.body,
                )
            )
        self.batch = []

    def on_undecodable(self, delivery_tag: int, error: ProtocolError) -> None:
        self.events.append(("undecodable", delivery_tag))

    def on_return(self, returned: Returned) -> None:
        self.events.append(("return", returned))

    def on_confirm(self, delivery_tag: int, multiple: bool, acknowledged: bool) -> None:
        self.events.append(("confirm", delivery_tag, multiple, acknowledged))


def content(channel: int, method: Any, properties: dict[str, Any], body: bytes) -> list[bytes]:
    """The frames of a message as pika writes them."""
    frames = [
        pika.frame.Method(channel, method).marshal(),
        pika.frame.Header(channel, len(body), spec.BasicProperties(**properties)).marshal(),
    ]
    frames += [
        pika.frame.Body(channel, body[at : at + LARGEST_BODY]).marshal()
        for at in range(0, len(body), LARGEST_BODY)
    ]
    return frames


def delivery(
    channel: int,
    tag: int,
    body: bytes = b"body",
    properties: dict[str, Any] | None = None,
    redelivered: bool = False,
    exchange: str = "ex",
    routing_key: str = "key",
) -> list[bytes]:
    method = spec.Basic.Deliver(f"tag{channel}", tag, redelivered, exchange, routing_key)
    return content(channel, method, properties or {}, body)


def read(stream: bytes, cuts: list[int], channels: range) -> tuple[dict[int, Sink], list[bytes]]:
    """Feed `stream`, cut at `cuts`, to a reader."""
    other: list[bytes] = []
    reader = FrameReader(other.append, FRAME_MAX)
    sinks = {number: Sink(number) for number in channels}
    reader.sinks.update(sinks)
    edges = [0, *sorted(cuts), len(stream)]
    for start, stop in itertools.pairwise(edges):
        if start < stop:
            reader.feed(stream[start:stop])
    return sinks, other


# --- out ---


@examples
@given(
    short_text,
    short_text,
    st.booleans(),
    property_sets,
    st.sampled_from(
        [0, 1, 200, LARGEST_BODY - 1, LARGEST_BODY, LARGEST_BODY + 1, 3 * LARGEST_BODY, 20_000]
    ),
)
def test_publishing_is_written_as_pika_writes_it(
    exchange: str, routing_key: str, mandatory: bool, properties: dict[str, Any], size: int
) -> None:
    encoder = PublishEncoder(7, FRAME_MAX)
    body = bytes(index % 251 for index in range(size))
    method = spec.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory)
    expected = b"".join(content(7, method, properties, body))

    first = encoder.encode(
        Message(exchange, routing_key, body, Properties(**properties), mandatory)
    )
    again = encoder.encode(
        Message(exchange, routing_key, body, Properties(**properties), mandatory)
    )

    assert first == again == expected


@pytest.mark.parametrize("multiple", [True, False])
def test_ack_is_written_as_pika_writes_it(multiple: bool) -> None:
    expected = pika.frame.Method(9, spec.Basic.Ack(2**40, multiple)).marshal()

    assert encode_ack(9, 2**40, multiple) == expected


@pytest.mark.parametrize("requeue", [True, False])
def test_nack_is_written_as_pika_writes_it(requeue: bool) -> None:
    expected = pika.frame.Method(9, spec.Basic.Nack(5, multiple=False, requeue=requeue)).marshal()

    assert encode_nack(9, 5, requeue) == expected


def test_headers_larger_than_a_frame_are_refused() -> None:
    encoder = PublishEncoder(1, FRAME_MAX)

    with pytest.raises(ProtocolError, match="Put large values into the body"):
        encoder.encode(Message("", "q", b"", Properties(headers={"x": "y" * FRAME_MAX})))


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (Message("x" * 256, "q", b"", Properties()), "at most 255"),
        (Message("", "\ud83d", b"", Properties()), "UTF-8 cannot carry"),
        (Message(None, "q", b"", Properties()), "the exchange is a NoneType"),  # type: ignore[arg-type]
        (Message("", 7, b"", Properties()), "the routing key is a int"),  # type: ignore[arg-type]
        (Message("", "q", "text", Properties()), "the body is a str"),  # type: ignore[arg-type]
        (Message("", "q", {"a": 1}, Properties()), "the body is a dict"),  # type: ignore[arg-type]
        (Message("", "q", None, Properties()), "the body is a NoneType"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_message_is_refused_in_words(message: Message, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        PublishEncoder(1, FRAME_MAX).encode(message)


def test_publishing_after_more_routes_than_are_kept_is_still_right() -> None:
    encoder = PublishEncoder(1, FRAME_MAX)
    first = encoder.encode(Message("", "q0", b"", Properties()))
    for number in range(5000):
        encoder.encode(Message("", f"q{number}", b"", Properties()))

    assert encoder.encode(Message("", "q0", b"", Properties())) == first


# --- in ---


def messages(*kinds: str) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    one = st.tuples(
        st.sampled_from(kinds),
        property_sets,
        st.sampled_from([0, 1, 50, LARGEST_BODY, LARGEST_BODY + 1, 10_000]),
        st.booleans(),
        short_text,
        short_text,
    )
    return st.lists(one, max_size=4)


consuming = messages("deliver", "deliver", "other")
publishing = messages("return", "ack", "nack", "other")


def _frames_and_events(
    channel: int, tag: int, message: tuple[Any, ...]
) -> tuple[list[bytes], tuple[Any, ...] | None]:
    kind, properties, size, flag, exchange, routing_key = message
    body = bytes(index % 251 for index in range(size))
    if kind == "deliver":
        event: tuple[Any, ...] = (
            kind,
            tag,
            flag,
            exchange,
            routing_key,
            Properties(**properties),
            body,
        )
        return delivery(channel, tag, body, properties, flag, exchange, routing_key), event
    if kind == "return":
        method = spec.Basic.Return(312, "NO_ROUTE", exchange, routing_key)
        returned = Returned(312, "NO_ROUTE", exchange, routing_key, Properties(**properties), body)
        return content(channel, method, properties, body), (kind, returned)
    if kind == "other":
        return [pika.frame.Method(channel, spec.Basic.Cancel(routing_key, True)).marshal()], None
    confirm = spec.Basic.Ack(tag, flag) if kind == "ack" else spec.Basic.Nack(tag, flag)
    return [pika.frame.Method(channel, confirm).marshal()], ("confirm", tag, flag, kind == "ack")


@examples
@given(
    st.lists(consuming | publishing, min_size=1, max_size=3),
    st.integers(0, 2**32),
    st.lists(st.floats(0, 1), max_size=8),
)
def test_any_split_and_interleaving_gives_the_same_events(
    plans: list[list[tuple[Any, ...]]], seed: int, cuts_at: list[float]
) -> None:
    random = Random(seed)
    queues: list[list[bytes]] = []
    expected: dict[int, list[tuple[Any, ...]]] = {}
    for channel, plan in enumerate(plans, start=1):
        frames: list[bytes] = []
        expected[channel] = []
        for tag, message in enumerate(plan, start=1):
            written, event = _frames_and_events(channel, tag, message)
            frames += written
            if event is not None:
                expected[channel].append(event)
        queues.append(frames)
    others = sum(one[0] == "other" for plan in plans for one in plan)
    stream = b""
    heartbeat = pika.frame.Heartbeat().marshal()
    while any(queues):
        stream += random.choice([queue for queue in queues if queue]).pop(0)
        if random.random() < 0.1:
            stream += heartbeat
            others += 1
    cuts = [round(at * len(stream)) for at in cuts_at]

    sinks, other = read(stream, cuts, range(1, 4))

    assert {number: sinks[number].events for number in expected} == expected
    assert len(other) == others


def test_every_single_split_gives_the_same_events() -> None:
    stream = b"".join(
        delivery(1, 1, b"first", {"headers": {"a": "b"}})
        + delivery(2, 1, b"")
        + [pika.frame.Heartbeat().marshal()]
        + delivery(1, 2, b"x" * 5000)
    )
    whole, _ = read(stream, [], range(1, 3))
    assert len(whole[1].events) == 2

    for cut in range(len(stream)):
        sinks, other = read(stream, [cut], range(1, 3))
        assert [sink.events for sink in sinks.values()] == [sink.events for sink in whole.values()]
        assert len(other) == 1


def test_octet_by_octet_gives_the_same_events() -> None:
    stream = b"".join(delivery(1, 1, b"first", {"headers": {"a": "b"}}) + delivery(1, 2, b""))

    sinks, _ = read(stream, list(range(len(stream))), range(1, 2))

    assert [event[1] for event in sinks[1].events] == [1, 2]


def test_one_read_is_one_batch_for_each_channel() -> None:
    stream = b"".join(
        delivery(1, 1) + delivery(2, 1) + delivery(1, 2) + delivery(1, 3, b"x" * 9000)
    )

    sinks, _ = read(stream, [], range(1, 3))

    assert sinks[1].batches == [3]
    assert sinks[2].batches == [1]


def test_frames_of_channels_without_a_sink_go_to_pika_whole() -> None:
    frames = delivery(5, 1)

    _, other = read(b"".join(frames), [10], range(1, 2))

    assert other == frames


def test_undecodable_headers_cost_the_message_and_not_the_stream() -> None:
    good = delivery(1, 2)
    method, header, body = delivery(1, 1, properties={"headers": {"x": "y"}})
    header = header.replace(b"\x01xS", b"\x01x?")

    for cuts in ([], [len(method) + 5]):
        sinks, _ = read(b"".join([method, header, body, *good]), cuts, range(1, 2))
        assert ("undecodable", 1) in sinks[1].events
        assert sinks[1].events[-1][1] == 2


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (b"AMQP\x00\x00\x09\x01", "no frame has type 65.*Is this the port of an AMQP"),
        (b"HTTP/1.1 400 Bad Request\r\n", "no frame has type 72"),
        (b"\x04\x00\x00\x00\x00\x00\x00\xce", "no frame has type 4"),
        (b"\x01\x00\x01\x00\x00\x20\x00", "frame of 8200 bytes, and frame_max is 4096"),
        (b"\x01\x00\x01\x00\x00\x00\x04\x00\x3c\x00\x50\x00", "ends in 0x00, not 0xce"),
        (b"\x01\x00\x01\x00\x00\x00\x02\x00\x3c\xce", "method frame of 2 bytes"),
        (b"\x01\x00\x01\x00\x00\x00\x04\x00\x3c\x00\x50\xce", "confirm of 4 bytes"),
        (pika.frame.Body(1, b"x").marshal(), "body frame on channel 1 without a message"),
        (delivery(1, 1)[1], "header frame on channel 1 without a message"),
        (delivery(1, 1)[0] * 2, "60.60 on channel 1 in the middle of a message"),
        (delivery(1, 1)[0] + delivery(1, 1)[2], "body frame on channel 1 where a header"),
        (b"".join(delivery(1, 1, b"xy")[:2] + delivery(1, 1, b"xyz")[2:]), "1 bytes longer"),
        (
            b"".join([*delivery(1, 1, b"xy")[:2], pika.frame.Body(1, b"x").marshal()])
            + delivery(1, 1)[1],
            "header frame on channel 1 where a body",
        ),
        (
            delivery(1, 1)[0] + b"\x02\x00\x01\x00\x00\x00\x0e\x00\x0a" + b"\x00" * 12 + b"\xce",
            "not of class basic",
        ),
    ],
)
def test_malformed_stream_is_refused_with_its_fault(stream: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        read(stream, [], range(1, 2))
    with pytest.raises(ProtocolError, match=words):
        read(stream, list(range(len(stream))), range(1, 2))


@examples
@given(st.data())
def test_broken_stream_gives_only_our_error(data: st.DataObject) -> None:
    stream = bytearray(
        b"".join(
            delivery(1, 1, b"one", {"headers": {"x": ["y"]}, "content_type": "text/plain"})
            + content(1, spec.Basic.Return(312, "NO_ROUTE", "e", "k"), {}, b"two")
            + [encode_ack(1, 5, True)]
            + delivery(1, 2, b"x" * 5000)
        )
    )
    for _ in range(data.draw(st.integers(1, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=3))

    with contextlib.suppress(ProtocolError):
        read(bytes(stream), cuts, range(1, 2))


def test_messages_before_a_fault_are_handed_out() -> None:
    reader = FrameReader(lambda _frame: None, FRAME_MAX)
    sink = reader.sinks[1] = Sink(1)

    with pytest.raises(ProtocolError):
        reader.feed(b"".join(delivery(1, 1)) + b"garbage")

    assert [event[1] for event in sink.events] == [1]


def test_short_deliver_method_is_refused() -> None:
    arguments = struct.pack(">HHB", 60, 60, 200) + b"x" * 20
    method = struct.pack(">BHI", 1, 1, len(arguments)) + arguments + b"\xce"
    stream = method + b"".join(delivery(1, 1)[1:])

    with pytest.raises(ProtocolError):
        read(stream, [], range(1, 2))
    with pytest.raises(ProtocolError):
        read(stream, [len(method) + 3], range(1, 2))
