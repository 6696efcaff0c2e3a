"""Whatever bytes stand where a message's properties should be: what can be read is read, and nothing raises."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.amqp.test_fields import short_text, tables
from tests.unit.amqp.test_frames import Sink

from mycelia.amqp.fields import decode_properties, encode_properties, encode_table
from mycelia.amqp.model import FaultyDelivery, Properties
from mycelia.amqp.rabbit.frames import FrameReader
from mycelia.amqp.salvage import salvage_properties
from mycelia.errors import ProtocolError

examples = settings(max_examples=200)


def table(entries: bytes) -> bytes:
    return struct.pack(">I", len(entries)) + entries


def entry(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + value


def nested(kind: bytes, depth: int) -> bytes:
    """A value of tables or lists in one another."""
    value = b"V"
    for _ in range(depth):
        inner = entry(b"k", value) if kind == b"F" else value
        value = kind + table(inner)
    return value


def with_headers(raw_table: bytes) -> bytes:
    """A property list with this header table, and properties before and behind it."""
    before = encode_properties(Properties(content_type="application/json"))
    behind = encode_properties(
        Properties(delivery_mode=2, correlation_id="c-1", reply_to="r-1", message_id="m-1")
    )
    flags = struct.unpack(">H", before[:2])[0] | struct.unpack(">H", behind[:2])[0] | 0x2000
    return struct.pack(">H", flags) + before[2:] + raw_table + behind[2:]


def is_decodable(values: bytes) -> bool:
    try:
        decode_properties(values, 0, len(values))
    except ProtocolError:
        return False
    return True


hostile_values = (
    st.binary(max_size=40)
    | st.builds(nested, st.sampled_from([b"F", b"A"]), st.integers(60, 120))
    | st.builds(
        lambda kind, size: kind + struct.pack(">I", size),
        st.sampled_from([b"S", b"x", b"A", b"F"]),
        st.integers(0, 2**32 - 1),
    )
    | st.sampled_from([b"?", b"D\xff\x7f\xff\xff\xff", b"T" + b"\xff" * 8, b"f\x7f\xc0\x00\x00"])
)
hostile_tables = st.binary(max_size=80).map(table) | st.lists(
    st.builds(entry, st.binary(max_size=20), hostile_values), max_size=6
).map(lambda entries: table(b"".join(entries)))


@examples
@given(hostile_tables)
def test_what_stands_behind_a_hostile_table_is_read_whatever_it_holds(raw_table: bytes) -> None:
    values = with_headers(raw_table)

    properties, raw_headers = salvage_properties(values, 0, len(values))

    assert raw_headers == raw_table
    assert (properties.content_type, properties.delivery_mode) == ("application/json", 2)
    assert (properties.correlation_id, properties.reply_to) == ("c-1", "r-1")
    assert properties.message_id == "m-1"
    assert isinstance(properties.headers, dict)


@examples
@given(st.binary(max_size=200))
def test_any_bytes_are_salvaged_without_an_error(values: bytes) -> None:
    properties, raw_headers = salvage_properties(values, 0, len(values))

    assert isinstance(properties, Properties)
    assert raw_headers in values


@examples
@given(tables, st.builds(nested, st.sampled_from([b"F", b"A"]), st.integers(65, 300)))
def test_entries_beside_one_that_is_nested_too_deep_are_kept(
    good: dict[str, Any], deep: bytes
) -> None:
    good.pop("deep", None)
    encoded = encode_table(good)[4:]
    values = with_headers(table(entry(b"deep", deep) + encoded))

    properties, _ = salvage_properties(values, 0, len(values))

    again = with_headers(table(encoded))
    assert properties.headers == decode_properties(again, 0, len(again)).headers


@examples
@given(tables, short_text)
def test_sound_properties_are_salvaged_as_they_are_decoded(
    headers: dict[str, Any], correlation_id: str
) -> None:
    values = encode_properties(
        Properties(headers=headers, correlation_id=correlation_id, priority=3, timestamp=7)
    )

    salvaged = salvage_properties(values, 0, len(values)).properties

    assert salvaged == decode_properties(values, 0, len(values))


def frames_of(tag: int, values: bytes, body: bytes) -> bytes:
    method = b"\x00\x3c\x00\x3c\x00" + struct.pack(">Q", tag) + b"\x00\x02ex\x03key"
    header = struct.pack(">HHQ", 60, 0, len(body)) + values
    pieces = [(1, method), (2, header)] + ([(3, body)] if body else [])
    return b"".join(
        struct.pack(">BHI", kind, 1, len(payload)) + payload + b"\xce" for kind, payload in pieces
    )


class Keeper(Sink):
    """Keeps the deliveries themselves."""

    def __init__(self) -> None:
        super().__init__(1)
        self.deliveries: list[Any] = []

    def on_batch(self) -> None:
        self.deliveries += self.batch
        self.batch = []


@examples
@given(
    st.lists(st.binary(max_size=60) | hostile_tables.map(with_headers), min_size=1, max_size=4),
    st.binary(max_size=30),
    st.data(),
)
def test_whatever_its_properties_a_message_comes_up_once_and_in_its_place(
    lists: list[bytes], body: bytes, data: st.DataObject
) -> None:
    stream = b"".join(frames_of(tag, values, body) for tag, values in enumerate(lists, 1))
    cut = data.draw(st.integers(0, len(stream)))
    sink = Keeper()
    reader = FrameReader(lambda frame: None)
    reader.sinks[1] = sink

    reader.feed(stream[:cut])
    reader.feed(stream[cut:])

    assert [one.delivery_tag for one in sink.deliveries] == list(range(1, len(lists) + 1))
    assert all(one.body == body for one in sink.deliveries)
    for one, values in zip(sink.deliveries, lists, strict=True):
        assert (one.fault is None) == is_decodable(values)
        assert isinstance(one, FaultyDelivery) == (one.fault is not None)
