"""Entries of a log: what is written is read, what cannot be read is named, whatever the bytes."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, TypedDict
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mycelia.amqp import Properties
from mycelia.errors import ConfigError, UnserializableValueError
from mycelia.logs.batch_format import (
    MAX_ENTRY_BYTES,
    DecodedEntry,
    decode_entry,
    encode_columns,
    entry_properties,
    producer_of,
)
from mycelia.logs.record import Record, RecordHeaders, RecordKey
from mycelia.logs.value_codec import ValueCodec


@dataclass
class Departed:
    flight: str
    delay: float
    at: datetime | None = None


class Cargo(TypedDict):
    kilos: int


class Everything(msgspec.Struct):
    when: datetime
    day: date
    price: Decimal
    ident: UUID
    raw: bytes


ANY = ValueCodec[Any](None, 'log "any"')
TYPED = ValueCodec[Departed](Departed, 'log "departed"')


def batch(
    values: list[Any],
    keys: list[RecordKey] | None = None,
    times: list[int | None] | None = None,
    headers: list[RecordHeaders] | None = None,
    codec: ValueCodec[Any] = ANY,
) -> bytes:
    nothing: list[Any] = [None] * len(values)
    return encode_columns(keys or nothing, times or nothing, headers, [codec.encode(values)])


def read(
    body: bytes, count: int | None = None, codec: ValueCodec[Any] = ANY, **changes: Any
) -> DecodedEntry[Any]:
    properties = entry_properties(0, "p", 0)
    assert properties.headers is not None
    properties.headers["x-log-count"] = count
    properties.headers |= changes
    return decode_entry(properties, body, codec)


def reason(entry: DecodedEntry[Any]) -> str:
    (fault,) = entry.faults
    assert entry.records == []
    return fault.reason


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
).filter(lambda value: "\ud800" not in repr(value))
texts = st.text(st.characters(codec="utf-8"))
records = st.builds(
    Record,
    st.none() | texts | st.binary() | st.integers(-(2**63), 2**64 - 1),
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.none() | st.dictionaries(texts, texts | st.integers(0, 2**63), max_size=3),
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | texts
    | st.lists(texts, max_size=3)
    | st.dictionaries(texts, texts, max_size=3),
)


@given(st.lists(records, max_size=40))
def test_what_is_written_is_read(written: list[Record[Any]]) -> None:
    body = batch(
        [record.value for record in written],
        [record.key for record in written],
        [record.time for record in written],
        [record.headers for record in written],
    )

    entry = read(body, len(written))

    assert entry.faults == []
    assert entry.records == written
    assert entry.keys == [record.key for record in written]
    assert entry.values == [record.value for record in written]
    assert list(entry.indexes) == list(range(len(written)))


def test_large_batches_are_read() -> None:
    for count in (15, 16, 0xFFFF, 0x10000):
        entry = read(batch(list(range(count))), count)

        assert [record.value for record in entry.records] == list(range(count))


def test_values_come_back_as_their_type() -> None:
    value = Everything(
        datetime(2026, 11, 26, 17, 0, tzinfo=UTC),
        date(2026, 11, 26),
        Decimal("1.50"),
        UUID(int=7),
        b"\xff",
    )
    codec = ValueCodec[Everything](Everything, "log")

    (record,) = read(batch([value], codec=codec), 1, codec).records

    assert record.value == value


@pytest.mark.parametrize(
    ("of", "value"),
    [
        (Departed, Departed("AA1", 3.5)),
        (Cargo, {"kilos": 7}),
        (list[int], [1, 2]),
        (int | None, None),
    ],
    ids=str,
)
def test_a_log_is_of_any_type_that_msgspec_knows(of: Any, value: Any) -> None:
    codec = ValueCodec[Any](of, "log")

    assert [record.value for record in read(batch([value], codec=codec), 1, codec).records] == [
        value
    ]


def test_type_that_cannot_be_read_is_refused_when_the_log_is_made() -> None:
    with pytest.raises(ConfigError, match=r'log "x": of=.* is no type'):
        ValueCodec(str | bytes, 'log "x"')


@pytest.mark.parametrize(
    ("codec", "value", "said"),
    [
        (
            TYPED,
            Departed("AA1", "late"),
            r"Departed: value 1 of 2, Departed, .*Expected `float`, got `str` - at `\$.delay`",
        ),  # type: ignore[arg-type]
        (TYPED, {"flight": "AA1"}, "missing required field `delay`"),
        (ANY, object(), "value 1 of 2, object, cannot be appended: .*no plain form"),
        (ANY, 2**70, "value 1 of 2, int"),
        (ANY, {"half": "\ud800"}, "value 1 of 2, dict"),
    ],
    ids=["wrong field", "missing field", "any object", "huge", "half a pair"],
)
def test_value_that_cannot_be_written_is_named(
    codec: ValueCodec[Any], value: Any, said: str
) -> None:
    good = Departed("AA2", 1.0)

    with pytest.raises(UnserializableValueError, match=said):
        codec.encode([good, value])


def test_record_of_another_type_leaves_the_others() -> None:
    values = [Departed("AA1", 1.0), {"flight": 7}, Departed("AA2", 2.0)]
    body = batch(values, ["a", "b", "c"], [1, 2, 3])

    entry = read(body, 3, TYPED)

    assert [(record.key, record.value.flight) for record in entry.records] == [
        ("a", "AA1"),
        ("c", "AA2"),
    ]
    assert list(entry.indexes) == [0, 2]
    (fault,) = entry.faults
    assert (fault.index, fault.body) == (1, msgspec.msgpack.encode({"flight": 7}))
    assert "$.flight" in fault.reason


@dataclass
class Strict:
    number: int

    def __post_init__(self) -> None:
        if self.number < 0:
            raise {-1: KeyError, -2: AttributeError, -3: SystemExit}[self.number]("not below 0")


@pytest.mark.parametrize("number", [-1, -2, -3])
def test_record_that_its_type_does_not_take_leaves_the_others(number: int) -> None:
    codec = ValueCodec[Strict](Strict, 'log "strict"')

    entry = read(batch([{"number": 1}, {"number": number}, {"number": 2}]), 3, codec)

    assert [record.value.number for record in entry.records] == [1, 2]
    (fault,) = entry.faults
    assert (fault.index, fault.body) == (1, msgspec.msgpack.encode({"number": number}))
    assert "its type does not take it" in fault.reason
    assert "not below 0" in fault.reason
    with pytest.raises(UnserializableValueError, match=r"value 1 of 2, dict, .*not below 0"):
        codec.encode([{"number": 1}, {"number": number}])


# --- bytes that are none ---------------------------------------------------------------------------

HUGE_ARRAY = b"\xdd\x7f\xff\xff\xff"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", r"truncated \(byte 0\)"),
        (batch([1, 2, 3])[:-1], r"truncated \(byte \d+\)"),
        (batch([1, 2, 3]) + b"\x00", r"trailing characters \(byte 8\)"),
        (b"\x94\xc0\xc0\xc0\x91\xc1", r"\(byte \d+\)"),
        (b"\x93\xc0\xc0\x90", r"length 4"),
        (b"\x94\xc0\xc0\xc0\x80", r"`\$\[3\]`"),
        (b"\x94\xc0\x91\xa1x\xc0\x91\x01", r"`\$\[1\]\[0\]`"),
        (b"\x94\x92\x01\x02\xc0\xc0\x91\x01", r"1 values, but 2 keys"),
        (b"\x94\x91\xc3\xc0\xc0\x91\x01", r"key 0 is bool"),
        (b"\x94\x91\x90\xc0\xc0\x91\x01", r"key 0 is list"),
        (b"\x94" + HUGE_ARRAY * 4, r"truncated"),
        (HUGE_ARRAY * 900, r"batch of 4500 bytes"),
        (b"\x91" * 5000, r"batch of 5000 bytes"),
        (b"\x94\xc0\xc0\xc0\x91" + b"\x91" * 100_000 + b"\x01", r"nested too deeply"),
        (b"\x94\xc0\xc0\xc0\x91\x81\x80\x01", r"must be hashable \(byte 8\)"),
    ],
)
def test_malformed_batch_says_where_it_breaks(body: bytes, said: str) -> None:
    assert read(body).faults[0].body == body
    assert re.search(said, reason(read(body))), reason(read(body))
    assert reason(read(body, codec=TYPED))


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_garbage_gives_a_fault_or_records_and_nothing_else(body: bytes) -> None:
    for codec in (ANY, TYPED):
        for content_type in (
            "application/x-mycelia-records",
            "application/json",
            "application/x-msgpack",
        ):
            properties = Properties(content_type=content_type, headers={"x-log-format": 1})
            entry = decode_entry(properties, body, codec)
            assert bool(entry.faults) or all(isinstance(one, Record) for one in entry.records)


@given(st.data())
def test_flipped_byte_gives_a_fault_or_records_and_nothing_else(data: st.DataObject) -> None:
    whole = bytearray(batch([Departed("AA1", 1.0)] * 20, ["a"] * 20, [1] * 20, codec=TYPED))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] = data.draw(st.integers(0, 255))

    entry = read(bytes(whole), codec=TYPED)

    assert len(entry.records) + len(entry.faults) > 0


def test_count_that_does_not_fit_is_a_fault() -> None:
    assert "says 4 records, the body holds 3" in reason(read(batch([1, 2, 3]), 4))


@pytest.mark.parametrize("version", [None, 2, "1", [1]])
def test_version_that_is_not_known_is_a_fault(version: Any) -> None:
    entry = read(batch([1]), 1, **{"x-log-format": version})

    assert "version 1 can be read here" in reason(entry)


def test_compressed_batch_is_read_and_its_size_is_bounded() -> None:
    compression = {"compression": "application/x-gzip"}
    body = batch(["x" * 1000] * 100)
    bomb = zlib.compress(bytes(MAX_ENTRY_BYTES + 1))

    assert len(read(zlib.compress(body), 100, **compression).records) == 100
    assert "16777216 bytes once decompressed" in reason(read(bomb, **compression))
    assert "cut off" in reason(read(zlib.compress(body)[:-9], **compression))
    assert "not known here" in reason(read(body, compression="application/unheard-of"))


def test_body_that_would_become_far_more_objects_is_refused() -> None:
    """Two million empty lists of a byte each would be 128 MB."""
    body = b"\x94\xc0\xc0\xc0\x91\xdd" + (2_000_000).to_bytes(4, "big") + b"\x90" * 2_000_000

    assert "lists and maps, more than the limit" in reason(read(body))
    json = b"[" + b",".join([b"[]"] * 1_000_000) + b"]"
    entry = decode_entry(Properties(content_type="application/json"), json, ANY)
    assert "lists and maps, more than the limit" in reason(entry)


def test_plain_message_that_is_nested_without_end_is_a_fault() -> None:
    entry = decode_entry(Properties(content_type="application/json"), b"[" * 200_000, ANY)

    assert "nested too deeply" in reason(entry)


# --- plain messages --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b'{"flight": "AA1", "delay": 3}'),
        ("application/JSON; charset=utf-8", b'{"flight": "AA1", "delay": 3}'),
        ("application/x-msgpack", msgspec.msgpack.encode({"flight": "AA1", "delay": 3})),
        ("application/msgpack", msgspec.msgpack.encode({"flight": "AA1", "delay": 3})),
    ],
)
def test_plain_message_is_a_batch_of_one(content_type: str, body: bytes) -> None:
    headers = {"x-log-key": "JFK", "x-log-time-ms": 5, "x-stream-offset": 9, "trace": "t"}

    entry = decode_entry(Properties(content_type=content_type, headers=headers), body, TYPED)

    assert entry.records == [Record("JFK", 5, {"trace": "t"}, Departed("AA1", 3.0))]
    assert list(entry.indexes) == [0]


def test_plain_message_without_headers_has_key_and_time_of_its_value() -> None:
    properties = Properties(content_type="application/json", timestamp=7)
    body = b'{"origin": "JFK"}'

    (bare,) = decode_entry(properties, body, ANY).records
    (told,) = decode_entry(
        properties, body, ANY, lambda value: value["origin"], lambda value: 1
    ).records

    assert bare == Record(None, 7000, None, {"origin": "JFK"})
    assert told == Record("JFK", 1, None, {"origin": "JFK"})


@pytest.mark.parametrize(
    ("content_type", "headers", "body", "said"),
    [
        (None, {}, b"1", r'content type "\(none\)" is none of a log'),
        ("text/plain", {}, b"1", "text/plain"),
        (
            "application/json",
            {},
            b'{"flight": "AA1", "delay": "x"}',
            r"Expected `float`.*\$\.delay",
        ),
        ("application/json", {}, b"{", "truncated"),
        (
            "application/json",
            {"x-log-key": 1.5},
            b'{"flight": "AA1", "delay": 1}',
            "x-log-key is 1.5",
        ),
        (
            "application/json",
            {"x-log-time-ms": "soon"},
            b'{"flight": "AA1", "delay": 1}',
            "time-ms is 'soon'",
        ),
    ],
)
def test_plain_message_that_cannot_be_read_is_a_fault(
    content_type: str | None, headers: dict[str, Any], body: bytes, said: str
) -> None:
    entry = decode_entry(Properties(content_type=content_type, headers=headers), body, TYPED)

    assert re.search(said, reason(entry)), reason(entry)


def test_plain_message_whose_key_cannot_be_had_is_a_fault() -> None:
    entry = decode_entry(
        Properties(content_type="application/json"), b"{}", ANY, lambda value: value["origin"]
    )

    assert "KeyError: 'origin'" in reason(entry)


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({"x-log-producer": "p", "x-log-sequence": 7}, ("p", 7)),
        ({"x-log-producer": "p"}, None),
        ({"x-log-producer": "", "x-log-sequence": 7}, None),
        ({"x-log-producer": "p", "x-log-sequence": -1}, None),
        ({"x-log-producer": "p", "x-log-sequence": True}, None),
        ({"x-log-producer": 1, "x-log-sequence": 7}, None),
        (None, None),
    ],
)
def test_producer_and_sequence_count_only_together(headers: Any, told: Any) -> None:
    assert producer_of(headers) == told
