"""msgpack, as kombu registers it, with more types."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest
from hypothesis import given
from tests.unit.wire import stock
from tests.unit.wire.values import LOCAL, RICH, Data, Record, nested, richer, stock_decode

from mycelia.errors import UndecodableMessage, UnserializableValueError
from mycelia.wire import (
    MSGPACK,
)


@pytest.mark.parametrize(("value", "text"), RICH, ids=lambda v: type(v).__name__)
def test_msgpack_keeps_rich_values_and_stock_peers_read_their_text(value: Any, text: str) -> None:
    body = MSGPACK.encode({"v": value})

    back = MSGPACK.decode(body)["v"]
    assert (type(back), back) == (type(value), value)
    their = stock_decode(body, MSGPACK)["v"]
    assert set(their) == {"__type__", "__value__"}
    if not isinstance(value, UUID):
        assert their["__value__"] == text


def test_msgpack_keeps_the_time_zone() -> None:
    there = timezone(timedelta(hours=-5))

    back = MSGPACK.decode(MSGPACK.encode(datetime(2013, 1, 1, tzinfo=there)))

    assert back.utcoffset() == timedelta(hours=-5)


def test_msgpack_record_keeps_its_values() -> None:
    record = Record("n", LOCAL, b"\x00\xff")

    back = MSGPACK.decode(MSGPACK.encode([record, Data("d", Decimal("1.50"))]))

    assert msgspec.convert(back[0], Record) == record
    assert back[1] == {"name": "d", "price": Decimal("1.50")}


def test_msgpack_keeps_keys_of_any_type() -> None:
    assert MSGPACK.decode(MSGPACK.encode({1: 2, b"k": 3})) == {1: 2, b"k": 3}


def test_integer_that_msgpack_cannot_carry_is_named() -> None:
    with pytest.raises(UnserializableValueError, match=r"^\$\[1\]: object of type int .*range"):
        MSGPACK.encode([1, 2**64])


@pytest.mark.parametrize("value", [1, "é", b"\xff", [1.5, None], {"a": {"b": True}}, {1: 2}])
def test_values_of_a_stock_msgpack_peer_are_read(value: Any) -> None:
    content_type, content_encoding, body = stock.encode(value, "msgpack")

    assert (content_type, content_encoding) == (MSGPACK.content_type, MSGPACK.content_encoding)
    assert MSGPACK.decode(body) == value


def test_msgpack_timestamps_of_other_languages_are_datetimes() -> None:
    moment = datetime(2013, 1, 1, 5, 17, tzinfo=UTC)

    assert MSGPACK.decode(msgpack.packb(moment, datetime=True)) == moment


@pytest.mark.parametrize(
    "body", [b"\x81", b"\xc1", b"\x01\x02", b"\x91" * 100_000, b"\xa1\xff", b"\x81\x90\x01"]
)
def test_broken_msgpack_is_told(body: bytes) -> None:
    with pytest.raises(
        UndecodableMessage, match=f"a body of {len(body)} bytes is not application/x-"
    ):
        MSGPACK.decode(body)


@given(nested(richer))
def test_msgpack_round_trip_and_kombu_reads_it(value: Any) -> None:
    body = MSGPACK.encode(value)

    assert MSGPACK.decode(body) == value
    stock_decode(body, MSGPACK)
