"""Values of every kind that travels, and how the tests of both formats look at them."""

from __future__ import annotations

import dataclasses
import enum
from collections import OrderedDict, defaultdict, deque, namedtuple
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from types import MappingProxyType
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import strategies as st
from tests.unit.wire import stock

from mycelia.wire import (
    JSON,
    MSGPACK,
    Serializer,
)

both_formats = pytest.mark.parametrize("serializer", [JSON, MSGPACK], ids=lambda s: s.name)


LOCAL = datetime(2013, 1, 1, 5, 17, 0, 250_000)  # noqa: DTZ001  # naive ones travel too


A_UUID = UUID("0af76519-16cd-43dd-8448-eb211c80319c")


class Colour(enum.Enum):
    RED = "red"


class Rank(enum.IntEnum):
    FIRST = 1


class Record(msgspec.Struct):
    name: str
    when: datetime | None = None
    photo: bytes = b""
    ratio: float = 0.0


@dataclasses.dataclass
class Data:
    name: str
    price: Decimal


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Fraction(float):
    pass


class Reducible:
    def __json__(self) -> dict[str, Any]:
        return {"reduced": [1]}


Point = namedtuple("Point", "x y")  # the untyped kind is what is meant


PLAIN_FORMS: list[tuple[Any, Any]] = [
    (None, None),
    (True, True),
    (2**63 - 1, 2**63 - 1),
    (-(2**63), -(2**63)),
    (1.5, 1.5),
    ('é漢🛩\x00"\\', 'é漢🛩\x00"\\'),
    ((1, 2), [1, 2]),
    ({3}, [3]),
    (frozenset({3}), [3]),
    (deque([1]), [1]),
    (Point(1, 2), [1, 2]),
    (OrderedDict(a=1), {"a": 1}),
    (defaultdict(int, a=1), {"a": 1}),
    (MappingProxyType({"a": {1}}), {"a": [1]}),
    (Colour.RED, "red"),
    (Rank.FIRST, 1),
    (Text("t"), "t"),
    (Number(3), 3),
    (Fraction(2.5), 2.5),
    (Reducible(), {"reduced": [1]}),
    (timedelta(days=1), "P1D"),
    ([{"a": [Colour.RED, {"b": (1,)}]}], [{"a": ["red", {"b": [1]}]}]),
]


# What JSON carries as strings, and msgpack as themselves.
RICH: list[tuple[Any, str]] = [
    (LOCAL, "2013-01-01T05:17:00.250000"),
    (
        datetime(2013, 1, 1, 5, 17, tzinfo=timezone(timedelta(hours=-5))),
        "2013-01-01T05:17:00-05:00",
    ),
    (date(2013, 1, 1), "2013-01-01"),
    (time(5, 17), "05:17:00"),
    (Decimal("1.50"), "1.50"),
    (A_UUID, str(A_UUID)),
]


bytes_values = pytest.mark.parametrize(
    "value", [b"", b"text", b"\x00\xff", bytes(range(256))], ids=["empty", "text", "binary", "all"]
)


def stock_decode(body: bytes, serializer: Serializer) -> Any:
    return stock.decode(body, serializer.content_type, serializer.content_encoding)


def cyclic() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = [value]
    return value


text = st.text('abc_é漢🛩\x00"\\/ 0')


rich = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | text
    | st.binary(max_size=20)
)


richer = rich | st.datetimes() | st.dates() | st.times() | st.uuids() | st.decimals(allow_nan=False)


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=10
    )
