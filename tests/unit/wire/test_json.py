"""JSON, as Nameko's peers read and write it."""

from __future__ import annotations

import json
import math
from collections import OrderedDict, deque
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.wire import stock
from tests.unit.wire.values import (
    A_UUID,
    LOCAL,
    RICH,
    Colour,
    Data,
    Point,
    Record,
    bytes_values,
    nested,
    richer,
    stock_decode,
)

from mycelia.errors import UndecodableMessage, UnserializableValueError
from mycelia.wire import (
    JSON,
)

rich_values = pytest.mark.parametrize(
    "value", [value for value, _ in RICH], ids=lambda v: type(v).__name__
)


@rich_values
@pytest.mark.parametrize(
    "holder",
    [
        lambda v: v,
        lambda v: (v,),
        lambda v: OrderedDict(a=v),
        lambda v: MappingProxyType({"a": v}),
        lambda v: Point(v, 1),
        lambda v: deque([v]),
        lambda v: {"a": [1, {"b": v}]},
        lambda v: [v, None, b"x", 1.5],
        lambda v: [v, math.inf],
    ],
    ids=["bare", "tuple", "OrderedDict", "proxy", "namedtuple", "deque", "deep", "bytes", "inf"],
)
def test_json_keeps_the_type_of_rich_values_for_us_and_for_stock_peers(
    value: Any, holder: Any
) -> None:
    body = JSON.encode(holder(value))

    for found in (JSON.decode(body), stock_decode(body, JSON)):
        while isinstance(found, (list, dict)):
            found = found[0] if isinstance(found, list) else found.get("a", found.get("b"))
            if isinstance(found, list) and found[:1] == [1]:
                found = found[1]
        assert (type(found), found) == (type(value), value)


@rich_values
def test_json_writes_rich_values_as_kombu_writes_them(value: Any) -> None:
    theirs = json.loads(stock.encode({"v": [value]})[2])

    assert json.loads(JSON.encode({"v": [value]})) == theirs


class Moment(datetime):
    pass


class Coin(Decimal):
    pass


class AsMoment:
    def __json__(self) -> Any:
        return {"at": LOCAL}


@pytest.mark.parametrize(
    "value",
    [Moment(2024, 5, 6), Coin("1.20"), AsMoment(), {"a": AsMoment()}],
    ids=["datetime", "Decimal", "__json__", "nested"],
)
def test_json_subclasses_and_reduced_values_are_written_as_kombu_writes_them(value: Any) -> None:
    theirs = json.loads(stock.encode({"v": value})[2])

    assert json.loads(JSON.encode({"v": value})) == theirs


@pytest.mark.parametrize("beside", [None, math.nan, b"x", LOCAL], ids=repr)
def test_json_rich_values_in_a_record_are_text_as_its_schema_says(beside: Any) -> None:
    record = Data("n", Decimal("1.50"))
    body = JSON.encode([record, Record("m", LOCAL), beside])

    assert JSON.decode(body)[0] == {"name": "n", "price": "1.50"}
    assert JSON.decode(body)[1]["when"] == LOCAL.isoformat()
    assert msgspec.convert(JSON.decode(body)[1], Record) == Record("m", LOCAL)


@bytes_values
def test_json_bytes_are_written_as_kombu_writes_them(value: bytes) -> None:
    theirs = json.loads(stock.encode({"v": value})[2])

    assert json.loads(JSON.encode({"v": value})) == theirs


def test_json_bytes_in_a_record_are_base64_text_as_its_schema_says() -> None:
    record = Record("n", LOCAL, b"\x00\xff")
    assert msgspec.json.schema(Record)["$defs"]["Record"]["properties"]["photo"] == {
        "type": "string",
        "contentEncoding": "base64",
        "default": "",
    }

    for beside in (None, math.nan, b"x"):  # on each path alike
        back = JSON.decode(JSON.encode([record, beside]))[0]
        assert back["photo"] == "AP8="
        assert msgspec.convert(back, Record) == record


def test_json_carries_integers_of_any_size_even_beside_null() -> None:
    assert JSON.decode(JSON.encode([2**200, -(2**200), None])) == [2**200, -(2**200), None]


def test_json_keys_are_written_as_python_writes_them() -> None:
    value = {1: "a", 1.5: "b", None: "c", False: "d"}

    assert JSON.decode(JSON.encode(value)) == json.loads(json.dumps(value))


def test_json_keys_are_written_alike_on_both_of_its_paths() -> None:
    value = {A_UUID: 1, Colour.RED: 2, date(2013, 1, 1): 3, 4: 5}
    form = {str(A_UUID): 1, "red": 2, "2013-01-01": 3, "4": 5}

    assert JSON.decode(JSON.encode(value)) == form
    assert JSON.decode(JSON.encode({**value, "b": b""})) == {**form, "b": b""}


class Infinite:
    def __json__(self) -> Any:
        return {"at": LOCAL, "most": math.inf}


class Price(Decimal, Enum):
    LOW = "1.50"


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (math.inf, math.inf),
        (Infinite(), {"at": LOCAL, "most": math.inf}),
        (Price.LOW, Decimal("1.50")),
        (2**200, 2**200),
        ("\ud800", "\ud800"),
        (Colour.RED, "red"),
        ({None: 1, True: 2, 3: [None]}, {"null": 1, "true": 2, "3": [None]}),
    ],
    ids=["infinity", "__json__", "enum", "integer", "surrogate", "text enum", "keys"],
)
def test_json_beside_rich_values_everything_is_written_as_elsewhere(value: Any, read: Any) -> None:
    back = JSON.decode(JSON.encode([value, Decimal("1.0"), A_UUID]))

    assert back == [read, Decimal("1.0"), A_UUID]
    assert type(back[0]) is type(read)


def test_json_carries_lone_surrogates_as_kombu_does() -> None:
    body = JSON.encode({"v": "\ud800"})

    assert body == b'{"v":"\\ud800"}'
    assert JSON.decode(body) == stock_decode(body, JSON) == {"v": "\ud800"}


def test_key_that_json_cannot_carry_is_named_by_its_map() -> None:
    with pytest.raises(UnserializableValueError, match=r"^\$\.a: object of type dict .*keys"):
        JSON.encode({"a": {(1, 2): 3}})


@pytest.mark.parametrize(
    "value",
    [*(value for value, _ in RICH), b"text", b"\x00\xff", math.inf, 2**200, "\ud800", None],
    ids=lambda v: type(v).__name__,
)
def test_values_of_a_stock_json_peer_arrive_as_the_types_they_were(value: Any) -> None:
    content_type, content_encoding, body = stock.encode({"deep": [{"v": value}]})

    back = JSON.decode(body)["deep"][0]["v"]

    assert (content_type, content_encoding) == (JSON.content_type, JSON.content_encoding)
    assert (type(back), back) == (type(value), value)


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b'{"a": 1', "line 1 column 8"),
        (b'{"a": 1,\n "b" 2}', "line 2 column 6"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b"[" * 100_000, "nested too deeply"),
        (b"nonsense", "line 1 column 1"),
    ],
)
def test_broken_json_is_told_with_its_place(body: bytes, where: str) -> None:
    with pytest.raises(UndecodableMessage, match=where) as raised:
        JSON.decode(body)
    assert f"a body of {len(body)} bytes is not application/json" in str(raised.value)


@given(cut=st.integers(0, 60))
def test_json_that_is_cut_off_gives_our_error(cut: int) -> None:
    body = JSON.encode({"args": [1, b"\xff", "é", math.nan], "kwargs": {"n": None}})

    with pytest.raises(UndecodableMessage):
        JSON.decode(body[: min(cut, len(body) - 1)])


@given(nested(richer))
def test_json_round_trip_also_through_kombu(value: Any) -> None:
    body = JSON.encode(value)

    assert JSON.decode(body) == stock_decode(body, JSON) == value


@given(nested(richer))
def test_json_reads_what_kombu_writes(value: Any) -> None:
    assert JSON.decode(stock.encode(value)[2]) == value
