"""Field tables and properties, against pika's codec as the oracle."""

from __future__ import annotations

import contextlib
import enum
import struct
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pika.data
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pika import spec

from mycelia.amqp.fields import (
    decode_properties,
    decode_table,
    encode_properties,
    encode_short_string,
    encode_table,
)
from mycelia.amqp.model import Properties
from mycelia.errors import ProtocolError

examples = settings(max_examples=60)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
short_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=63)  # at most 252 octets
seconds = st.integers(0, 253402300799)  # to the end of the year 9999
moments = seconds.map(lambda s: datetime.fromtimestamp(s, UTC))
decimals = st.builds(
    lambda unscaled, places: Decimal(unscaled).scaleb(-places).normalize(),  # pika drops the zeros
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 9),
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | text
    | st.binary(max_size=60)
    | moments
    | decimals
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(short_text, inner, max_size=4),
    max_leaves=12,
)
tables = st.dictionaries(short_text, values, max_size=6)


def pika_table(table: dict[str, Any]) -> bytes:
    pieces: list[bytes] = []
    pika.data.encode_table(pieces, table)
    return b"".join(pieces)


@examples
@given(tables)
def test_table_reads_what_pika_writes(table: dict[str, Any]) -> None:
    data = pika_table(table)

    assert decode_table(data) == (table, len(data))


@examples
@given(tables)
def test_table_is_written_as_pika_writes_it(table: dict[str, Any]) -> None:
    assert encode_table(table) == pika_table(table)


@examples
@given(
    st.dictionaries(
        short_text,
        st.floats(allow_nan=False, allow_infinity=False)
        | st.lists(st.floats(allow_nan=False, allow_infinity=False)),
    )
)
def test_floats_go_there_and_back(table: dict[str, Any]) -> None:
    assert decode_table(encode_table(table))[0] == table


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"t\x01", True),
        (b"t\x00", False),
        (b"b\xff", -1),
        (b"B\xff", 255),
        (b"s\xff\xfe", -2),
        (b"U\xff\xfe", -2),
        (b"u\xff\xfe", 65534),
        (b"I\xff\xff\xff\xfe", -2),
        (b"i\xff\xff\xff\xfe", 4294967294),
        (b"l" + b"\xff" * 8, -1),
        (b"L" + b"\xff" * 8, -1),
        (b"f" + struct.pack(">f", 1.5), 1.5),
        (b"d" + struct.pack(">d", 0.1), 0.1),
        (b"D\x02\xff\xff\xff\xfe", Decimal("-0.02")),
        (b"S\x00\x00\x00\x03\xe2\x82\xac", "€"),
        (b"S\x00\x00\x00\x02\xff\xfe", b"\xff\xfe"),
        (b"x\x00\x00\x00\x02ab", b"ab"),
        (b"A\x00\x00\x00\x03Vt\x01", [None, True]),
        (b"F\x00\x00\x00\x04\x01kt\x01", {"k": True}),
        (b"T" + struct.pack(">Q", 86400), datetime(1970, 1, 2, tzinfo=UTC)),
        (b"V", None),
    ],
    ids=lambda value: repr(value[:1]) if isinstance(value, bytes) else "",
)
def test_every_field_type_is_read(field: bytes, value: object) -> None:
    body = b"\x01x" + field
    in_table = struct.pack(">I", len(body)) + body
    in_list = b"\x01xA" + struct.pack(">I", len(field)) + field
    in_list = struct.pack(">I", len(in_list)) + in_list

    assert decode_table(in_table)[0] == {"x": value}
    assert decode_table(in_list)[0] == {"x": [value]}


def test_milliseconds_in_a_timestamp_become_a_number() -> None:
    body = b"\x01xT" + struct.pack(">Q", 1_700_000_000_000_000)

    assert decode_table(struct.pack(">I", len(body)) + body)[0] == {"x": 1_700_000_000_000_000}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            datetime(2024, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))),
            datetime(2024, 1, 1, tzinfo=UTC),
        ),
        (("a", 1), ["a", 1]),
        (bytearray(b"ab"), b"ab"),
        (enum.Enum("Colour", {"RED": "red"}, type=str).RED, "red"),
        (2**31, 2**31),
        (-(2**31) - 1, -(2**31) - 1),
    ],
)
def test_values_of_kindred_types_are_written(value: object, expected: object) -> None:
    assert decode_table(encode_table({"x": value}))[0] == {"x": expected}


def _nested(depth: int) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for _ in range(depth):
        table = {"x": table}
    return table


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"x": object()}, "no field type for object"),
        ({"x": 2**63}, "does not fit 64 bits"),
        ({"x": Decimal("1e20")}, "does not fit AMQP's decimal"),
        ({"x": Decimal("NaN")}, "no decimal for NaN"),
        ({"x": datetime(1969, 1, 1, tzinfo=UTC)}, "before 1970"),
        ({"x" * 256: 1}, "at most 255"),
        ({1: 1}, "names are text"),
        ({"x": "\ud800"}, "header 'x': .* UTF-8 cannot carry"),
        ({"x": ["a", "\ud800"]}, "header 'x': .* UTF-8 cannot carry"),
        ({"x": {"inner": "\ud800"}}, "header 'inner': .* UTF-8 cannot carry"),
        ({"\ud800": 1}, "header name .* UTF-8 cannot carry"),
        ({"x": float("nan")}, "header 'x': nan is not a number"),
        ({"x": [1.5, float("inf")]}, "header 'x': inf is not a number"),
        ({"x": {"inner": -float("inf")}}, "header 'inner': -inf is not a number"),
        (_nested(100), "nested more than"),
    ],
)
def test_unwritable_table_is_refused_with_its_reason(table: dict[str, Any], words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        encode_table(table)


def test_hostile_nesting_is_refused() -> None:
    data = b""
    for _ in range(5000):
        body = b"\x01xF" + data if data else b"\x01xF\x00\x00\x00\x00"
        data = struct.pack(">I", len(body)) + body

    with pytest.raises(ProtocolError, match="nested more than"):
        decode_table(data)


def _field(kind: bytes, payload: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return payload.map(lambda raw: kind + raw)


def _sized(payload: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return payload.map(lambda raw: struct.pack(">I", len(raw)) + raw)


def _octets(count: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=count, max_size=count)


_any_name = st.binary(max_size=20).map(lambda raw: bytes((len(raw),)) + raw)
_any_scalar = st.one_of(
    _field(b"V", st.just(b"")),
    *(_field(bytes((kind,)), _octets(1)) for kind in b"tbB"),
    *(_field(bytes((kind,)), _octets(2)) for kind in b"sUu"),
    *(_field(bytes((kind,)), _octets(4)) for kind in b"Iif"),
    *(_field(bytes((kind,)), _octets(8)) for kind in b"lLdT"),
    st.sampled_from(
        [
            b"d" + struct.pack(">d", float("nan")),
            b"d" + struct.pack(">d", float("inf")),
            b"f" + struct.pack(">f", -float("inf")),
            b"T" + struct.pack(">Q", 2**63),
            b"T" + struct.pack(">Q", 2**64 - 1),
        ]
    ),
    _field(b"D", _octets(5)),
    *(_field(bytes((kind,)), _sized(st.binary(max_size=30))) for kind in b"Sx"),
)
_any_field = st.recursive(
    _any_scalar,
    lambda inner: (
        _field(b"A", _sized(st.lists(inner, max_size=3).map(b"".join)))
        | _field(
            b"F",
            _sized(st.lists(st.tuples(_any_name, inner).map(b"".join), max_size=3).map(b"".join)),
        )
    ),
    max_leaves=8,
)


@settings(max_examples=400)
@given(_any_field, st.integers(0, 70), st.booleans())
def test_whatever_is_read_can_be_written(field: bytes, depth: int, in_lists: bool) -> None:
    """Every type, every value, any nesting: who has taken a message can keep it and send it on."""
    for _ in range(depth):
        if in_lists:
            field = b"A" + struct.pack(">I", len(field)) + field
        else:
            field = b"F" + struct.pack(">I", len(field) + 2) + b"\x01n" + field
    data = struct.pack(">I", len(field) + 2) + b"\x01x" + field
    try:
        read, _ = decode_table(data)
    except ProtocolError:
        assume(False)  # deeper than 64

    written = encode_table(read)

    assert decode_table(written)[0] == read


@examples
@given(tables, st.data())
def test_broken_table_gives_only_our_error(table: dict[str, Any], data: st.DataObject) -> None:
    good = bytearray(encode_table(table))
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(good)))

    for broken in (bytes(good), bytes(good[:cut])):
        with contextlib.suppress(ProtocolError):
            decode_table(broken)


# --- short strings ---


def test_octets_that_are_not_utf8_survive_in_short_strings() -> None:
    raw = bytes(range(1, 200))
    encoded = b"\x80\x00" + bytes((len(raw),)) + raw

    properties = decode_properties(encoded, 0, len(encoded))

    assert encode_properties(properties) == encoded


def test_short_string_longer_than_255_octets_is_refused() -> None:
    with pytest.raises(ProtocolError, match="256 bytes long"):
        encode_short_string("é" * 128)


# --- properties ---

octets = st.integers(0, 255)
property_sets: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "content_type": short_text,
        "content_encoding": short_text,
        "headers": tables,
        "delivery_mode": octets,
        "priority": octets,
        "correlation_id": short_text,
        "reply_to": short_text,
        "expiration": short_text,
        "message_id": short_text,
        "timestamp": st.integers(0, 2**64 - 1),
        "type": short_text,
        "user_id": short_text,
        "app_id": short_text,
        "cluster_id": short_text,
    },
)


def pika_properties(present: dict[str, Any]) -> bytes:
    return b"".join(spec.BasicProperties(**present).encode())


@examples
@given(property_sets)
def test_properties_are_written_as_pika_writes_them(present: dict[str, Any]) -> None:
    assert encode_properties(Properties(**present)) == pika_properties(present)


@examples
@given(property_sets)
def test_properties_read_what_pika_writes(present: dict[str, Any]) -> None:
    data = pika_properties(present)

    assert decode_properties(b"??" + data, 2, 2 + len(data)) == Properties(**present)


def test_message_id_is_lent_where_there_is_none() -> None:
    own, lent = Properties(message_id="own"), Properties()

    assert encode_properties(own, "lent") == encode_properties(own)
    assert encode_properties(lent, "lent") == encode_properties(Properties(message_id="lent"))
    assert lent.message_id is None


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"delivery_mode": 256}, "delivery_mode: 256"),
        ({"delivery_mode": -1}, "delivery_mode: -1"),
        ({"priority": -1}, "priority: -1"),
        ({"priority": "high"}, "priority: 'high'"),
        ({"timestamp": -1}, "timestamp: -1"),
        ({"timestamp": 2**64}, "timestamp: "),
        ({"timestamp": 1.5}, "timestamp: 1.5"),
        ({"timestamp": "now"}, "timestamp: 'now'"),
        ({"headers": ["a"]}, "headers: .* is not a dict"),
        *(
            ({name: value}, f"property {name}: ")
            for name in Properties.__slots__
            if name not in ("headers", "delivery_mode", "priority", "timestamp")
            for value in ("x" * 256, "€" * 86, "\ud83d", 5, b"bytes", ["list"])
        ),
    ],
)
def test_property_that_cannot_be_written_is_named(properties: dict[str, Any], words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        encode_properties(Properties(**properties))


@examples
@given(st.binary(max_size=255), st.integers(0, 2**64 - 1), st.integers(0, 255))
def test_properties_that_are_read_can_be_written(raw: bytes, seconds: int, octet: int) -> None:
    text = bytes((len(raw),)) + raw
    one = bytes((octet,))
    body = b"\xdf\xfc" + text * 2 + one * 2 + text * 4 + struct.pack(">Q", seconds) + text * 4

    read = decode_properties(body, 0, len(body))

    assert encode_properties(read) == body


@examples
@given(property_sets, st.data())
def test_broken_properties_give_only_our_error(
    present: dict[str, Any], data: st.DataObject
) -> None:
    good = bytearray(encode_properties(Properties(**present)))
    good[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(good)))

    for broken in (bytes(good), bytes(good[:cut])):
        with contextlib.suppress(ProtocolError):
            decode_properties(broken, 0, len(broken))


def test_unknown_property_flags_are_refused() -> None:
    with pytest.raises(ProtocolError, match="does not have"):
        decode_properties(b"\x00\x01", 0, 2)


def test_values_beyond_the_end_are_refused() -> None:
    data = encode_properties(Properties(content_type="text/plain", correlation_id="1"))

    with pytest.raises(ProtocolError, match="end \\+1 bytes"):
        decode_properties(data, 0, len(data) - 1)
