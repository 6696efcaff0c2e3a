"""What JSON and msgpack do alike: what is carried, what is refused, what broken bytes give."""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict, deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.wire.values import (
    PLAIN_FORMS,
    Data,
    Fraction,
    Point,
    Record,
    both_formats,
    bytes_values,
    cyclic,
    stock_decode,
)

from mycelia.errors import UndecodableMessage, UnserializableValueError
from mycelia.wire import (
    Serializer,
)


@both_formats
@pytest.mark.parametrize(("value", "form"), PLAIN_FORMS, ids=lambda v: type(v).__name__)
def test_plain_form_is_what_we_and_stock_peers_read(
    serializer: Serializer, value: Any, form: Any
) -> None:
    body = serializer.encode([value])

    assert serializer.decode(body) == [form]
    assert stock_decode(body, serializer) == [form]


@both_formats
@bytes_values
def test_bytes_survive_and_stock_peers_get_bytes(serializer: Serializer, value: bytes) -> None:
    body = serializer.encode({"v": [value]})

    assert serializer.decode(body) == {"v": [value]}
    assert stock_decode(body, serializer) == {"v": [value]}


@both_formats
@pytest.mark.parametrize("wrap", [bytearray, memoryview])
@pytest.mark.parametrize(
    "holder",
    [
        lambda v: v,
        lambda v: (v,),
        lambda v: OrderedDict(a=v),
        lambda v: Point(v, 1),
        lambda v: deque([v]),
    ],
    ids=["bare", "tuple", "OrderedDict", "namedtuple", "deque"],
)
def test_bytes_are_found_wherever_they_are(serializer: Serializer, wrap: Any, holder: Any) -> None:
    back = serializer.decode(serializer.encode(holder(wrap(b"xy"))))

    found = back
    while not isinstance(found, bytes):
        found = found["a"] if isinstance(found, dict) else found[0]
    assert found == b"xy"


@both_formats
@pytest.mark.parametrize("value", [math.inf, -math.inf, 1.7976931348623157e308, 5e-324])
def test_extreme_floats_survive_and_stock_peers_read_them(
    serializer: Serializer, value: float
) -> None:
    body = serializer.encode([None, value])

    assert serializer.decode(body) == [None, value]
    assert stock_decode(body, serializer) == [None, value]


@both_formats
@pytest.mark.parametrize(
    "holder",
    [lambda v: v, lambda v: [[v]], lambda v: {"a": v}, lambda v: Record("n", ratio=v), Fraction],
    ids=["bare", "list", "dict", "record", "subclass"],
)
def test_nan_survives_and_stock_peers_read_it(serializer: Serializer, holder: Any) -> None:
    body = serializer.encode(["null", None, 2**64 - 1, holder(math.nan)])

    for found in (serializer.decode(body)[3], stock_decode(body, serializer)[3]):
        while not isinstance(found, float):
            found = (found.get("a") or found["ratio"]) if isinstance(found, dict) else found[0]
        assert math.isnan(found)


@both_formats
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), r"^\$: object of type object cannot be carried by application/"),
        ({"a": [1, {"b-c": object()}]}, r"^\$\.a\[1\]\['b-c'\]: object of type object"),
        (Data("n", object()), r"^\$\.price: object of type object"),  # type: ignore[arg-type]
        ([Record(object())], r"^\$\[0\]\.name: object of type object"),  # type: ignore[arg-type]
        (b"x".hex, r"^\$: object of type builtin_function_or_method"),
        (cyclic(), r"^\$\.self\[0\]: the value holds itself"),
        ([int], r"^\$\[0\]: object of type type"),
        (iter([1]), r"^\$: object of type list_iterator"),
    ],
    ids=["bare", "nested", "dataclass", "struct", "function", "cycle", "class", "iterator"],
)
def test_value_that_cannot_be_carried_is_named_by_path_and_type(
    serializer: Serializer, value: Any, message: str
) -> None:
    with pytest.raises(UnserializableValueError, match=message):
        serializer.encode(value)


@both_formats
def test_value_that_is_nested_too_deeply_is_told_without_many_descents(
    serializer: Serializer,
) -> None:
    value: list[Any] = []
    for _ in range(50_000):
        value = [value, 1]
    encoded = 0

    class Counted:
        def __json__(self) -> int:
            nonlocal encoded
            encoded += 1
            return 1

    with pytest.raises(UnserializableValueError, match=r"^\$: the value is nested too deeply"):
        serializer.encode([Counted(), value])

    assert encoded <= 3


@both_formats
def test_error_in_the_applications_own_hook_is_told(serializer: Serializer) -> None:
    class Broken:
        def __json__(self) -> Any:
            raise ZeroDivisionError("by zero")

    with pytest.raises(
        UnserializableValueError, match=r"^\$\[0\]: object of type Broken .*by zero"
    ):
        serializer.encode([Broken()])


@both_formats
@pytest.mark.parametrize(
    "value",
    [
        {"__type__": "mine", "__value__": 1},
        {"__type__": "date"},
        {"__type__": "date", "__value__": "2013-01-01", "more": 1},
        {"__type__": ["date"], "__value__": 1},
        "__type__",
    ],
)
def test_map_that_only_looks_tagged_is_left_alone(serializer: Serializer, value: Any) -> None:
    assert serializer.decode(serializer.encode({"v": value})) == {"v": value}


@both_formats
@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("datetime", "soon"),
        ("date", 7),
        ("time", None),
        ("decimal", "x"),
        ("uuid", {"hex": "0"}),
        ("uuid", "0"),
        ("uuid", {}),
        ("bytes", 1),
        ("base64", "a"),
    ],
)
def test_tagged_value_that_is_none_is_undecodable(
    serializer: Serializer, tag: str, value: Any
) -> None:
    body = serializer.encode({"__type__": tag, "__value__": value})

    with pytest.raises(UndecodableMessage, match=f'tagged as "{tag}", which .* is not'):
        serializer.decode(body)


@both_formats
@given(body=st.binary(max_size=40))
def test_any_bytes_give_a_value_or_our_error(serializer: Serializer, body: bytes) -> None:
    with contextlib.suppress(UndecodableMessage):
        serializer.decode(body)
