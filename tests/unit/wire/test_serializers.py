from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import math
import zlib
from collections import OrderedDict, defaultdict, deque, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from types import MappingProxyType
from typing import Any
from uuid import UUID

import kombu.exceptions
import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.wire import stock

from mycelia.errors import ConfigError, UndecodableMessage, UnserializableValueError
from mycelia.wire import (
    JSON,
    MSGPACK,
    Serializer,
    SerializerRegistry,
    decompress,
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


# --- what is written -----------------------------------------------------------------------------


@both_formats
@pytest.mark.parametrize(("value", "form"), PLAIN_FORMS, ids=lambda v: type(v).__name__)
def test_plain_form_is_what_we_and_stock_peers_read(
    serializer: Serializer, value: Any, form: Any
) -> None:
    body = serializer.encode([value])

    assert serializer.decode(body) == [form]
    assert stock_decode(body, serializer) == [form]


@pytest.mark.parametrize(("value", "text"), RICH, ids=lambda v: type(v).__name__)
def test_json_writes_rich_values_as_strings(value: Any, text: str) -> None:
    body = JSON.encode({"v": value})

    assert JSON.decode(body) == {"v": text}
    assert stock_decode(body, JSON) == {"v": text}


@pytest.mark.parametrize(("value", "text"), RICH, ids=lambda v: type(v).__name__)
def test_json_writes_rich_values_alike_on_both_of_its_paths(value: Any, text: str) -> None:
    """NaN and bytes take the slower path; what stands beside them must not change."""
    assert JSON.decode(JSON.encode([value, None, b"x"])) == [text, None, b"x"]
    assert JSON.decode(JSON.encode([value, math.inf])) == [text, math.inf]


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


@both_formats
@bytes_values
def test_bytes_survive_and_stock_peers_get_bytes(serializer: Serializer, value: bytes) -> None:
    body = serializer.encode({"v": [value]})

    assert serializer.decode(body) == {"v": [value]}
    assert stock_decode(body, serializer) == {"v": [value]}


@bytes_values
def test_json_bytes_are_written_as_kombu_writes_them(value: bytes) -> None:
    theirs = json.loads(stock.encode({"v": value})[2])

    assert json.loads(JSON.encode({"v": value})) == theirs


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


def test_msgpack_record_keeps_its_values() -> None:
    record = Record("n", LOCAL, b"\x00\xff")

    back = MSGPACK.decode(MSGPACK.encode([record, Data("d", Decimal("1.50"))]))

    assert msgspec.convert(back[0], Record) == record
    assert back[1] == {"name": "d", "price": Decimal("1.50")}


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


def test_json_carries_lone_surrogates_as_kombu_does() -> None:
    body = JSON.encode({"v": "\ud800"})

    assert body == b'{"v":"\\ud800"}'
    assert JSON.decode(body) == stock_decode(body, JSON) == {"v": "\ud800"}


def test_msgpack_keeps_keys_of_any_type() -> None:
    assert MSGPACK.decode(MSGPACK.encode({1: 2, b"k": 3})) == {1: 2, b"k": 3}


# --- what cannot be written ----------------------------------------------------------------------


def cyclic() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = [value]
    return value


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


def test_key_that_json_cannot_carry_is_named_by_its_map() -> None:
    with pytest.raises(UnserializableValueError, match=r"^\$\.a: object of type dict .*keys"):
        JSON.encode({"a": {(1, 2): 3}})


def test_integer_that_msgpack_cannot_carry_is_named() -> None:
    with pytest.raises(UnserializableValueError, match=r"^\$\[1\]: object of type int .*range"):
        MSGPACK.encode([1, 2**64])


@both_formats
def test_error_in_the_applications_own_hook_is_told(serializer: Serializer) -> None:
    class Broken:
        def __json__(self) -> Any:
            raise ZeroDivisionError("by zero")

    with pytest.raises(
        UnserializableValueError, match=r"^\$\[0\]: object of type Broken .*by zero"
    ):
        serializer.encode([Broken()])


# --- what stock peers write ----------------------------------------------------------------------


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


@pytest.mark.parametrize("value", [1, "é", b"\xff", [1.5, None], {"a": {"b": True}}, {1: 2}])
def test_values_of_a_stock_msgpack_peer_are_read(value: Any) -> None:
    content_type, content_encoding, body = stock.encode(value, "msgpack")

    assert (content_type, content_encoding) == (MSGPACK.content_type, MSGPACK.content_encoding)
    assert MSGPACK.decode(body) == value


def test_msgpack_timestamps_of_other_languages_are_datetimes() -> None:
    moment = datetime(2013, 1, 1, 5, 17, tzinfo=UTC)

    assert MSGPACK.decode(msgpack.packb(moment, datetime=True)) == moment


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


# --- broken bytes --------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "body", [b"\x81", b"\xc1", b"\x01\x02", b"\x91" * 100_000, b"\xa1\xff", b"\x81\x90\x01"]
)
def test_broken_msgpack_is_told(body: bytes) -> None:
    with pytest.raises(
        UndecodableMessage, match=f"a body of {len(body)} bytes is not application/x-"
    ):
        MSGPACK.decode(body)


@both_formats
@given(body=st.binary(max_size=40))
def test_any_bytes_give_a_value_or_our_error(serializer: Serializer, body: bytes) -> None:
    with contextlib.suppress(UndecodableMessage):
        serializer.decode(body)


@given(cut=st.integers(0, 60))
def test_json_that_is_cut_off_gives_our_error(cut: int) -> None:
    body = JSON.encode({"args": [1, b"\xff", "é", math.nan], "kwargs": {"n": None}})

    with pytest.raises(UndecodableMessage):
        JSON.decode(body[: min(cut, len(body) - 1)])


# --- round trips ---------------------------------------------------------------------------------

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


@given(nested(rich))
def test_json_round_trip_also_through_kombu(value: Any) -> None:
    body = JSON.encode(value)

    assert JSON.decode(body) == stock_decode(body, JSON) == value


@given(nested(richer))
def test_json_reads_what_kombu_writes(value: Any) -> None:
    assert JSON.decode(stock.encode(value)[2]) == value


@given(nested(richer))
def test_msgpack_round_trip_and_kombu_reads_it(value: Any) -> None:
    body = MSGPACK.encode(value)

    assert MSGPACK.decode(body) == value
    stock_decode(body, MSGPACK)


# --- the registry --------------------------------------------------------------------------------


def upper(value: Any) -> str:
    return json.dumps(value).upper()


def lower(value: str) -> Any:
    assert isinstance(value, str)  # as amqp's auto_decode gives it
    return json.loads(value.lower())


def broken_encoder(value: Any) -> bytes:
    raise ValueError("never")


UPPER = {
    "encoder": f"{__name__}.upper",
    "decoder": f"{__name__}.lower",
    "content_type": "application/x-upper-json",
    "content_encoding": "utf-8",
}

CONFIGS: list[dict[str, Any]] = [
    {},
    {"serializer": "msgpack"},
    {"serializer": "json", "ACCEPT": ["json", "msgpack"]},
    {"serializer": "msgpack", "ACCEPT": ["json"]},
    {"ACCEPT": ["yaml"]},
    {"ACCEPT": ["pickle", "json"]},
    {"serializer": "pickle"},
    {"serializer": "upper", "SERIALIZERS": {"upper": UPPER}},
    {"SERIALIZERS": {"upper": UPPER}, "ACCEPT": ["json", "upper"]},
]


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
def test_registry_writes_and_accepts_what_stock_nameko_does(config: dict[str, Any]) -> None:
    their_serializer, their_accept = stock.nameko.serialization.setup(config)
    accepted = stock.prepare_accept_content(their_accept)

    registry = SerializerRegistry.from_config(config)

    assert registry.default.name == their_serializer
    for name in ("json", "msgpack", "yaml", "pickle", *config.get("SERIALIZERS", ())):
        value = {"a": [1, "b"]}
        content_type, content_encoding, body = stock.encode(value, name)
        try:
            theirs = stock.loads(
                body.decode() if content_encoding == "utf-8" else body,
                content_type,
                content_encoding,
                accept=accepted,
            )
        except kombu.exceptions.ContentDisallowed:
            with pytest.raises(UndecodableMessage, match="is not accepted; accepted: "):
                registry.decode(body, content_type, content_encoding)
        else:
            assert registry.decode(body, content_type, content_encoding) == theirs == value


@pytest.mark.parametrize("content_type", [None, "", "application/data", "application/text"])
@pytest.mark.parametrize(
    ("content_encoding", "body"),
    [
        (None, "é".encode()),
        ("utf-8", "é".encode()),
        ("latin-1", b"\xe9"),
        ("binary", b"\xe9"),
        ("BINARY", b"\xff"),
        (None, b""),
    ],
)
def test_data_of_no_type_is_read_as_kombu_reads_it(
    content_type: str | None, content_encoding: str | None, body: bytes
) -> None:
    theirs = stock.loads(body, content_type, content_encoding, accept={"application/json"})

    ours = SerializerRegistry().decode(body, content_type, content_encoding)

    assert (type(ours), ours) == (type(theirs), theirs)


def test_data_that_is_not_the_text_it_says_is_undecodable() -> None:
    with pytest.raises(UndecodableMessage, match=r'type "\(none\)" is not utf-8 text'):
        SerializerRegistry().decode(b"\xff", None, None)


def test_empty_body_is_given_as_it_is() -> None:
    """As kombu does, whatever the content type."""
    assert stock.loads(b"", "application/json", "utf-8") == b""

    assert SerializerRegistry().decode(b"", "application/json", "utf-8") == b""


def test_refusal_names_the_type_and_what_is_accepted() -> None:
    registry = SerializerRegistry.from_config({"ACCEPT": ["json", "application/x-msgpack"]})

    with pytest.raises(
        UndecodableMessage,
        match=r'"image/png" is not accepted; accepted: application/json, application/x-msgpack. .*ACCEPT',
    ):
        registry.decode(b"x", "image/png", "binary")


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_content_type_with_parameters_is_understood(content_type: str) -> None:
    """Stock Nameko refuses it; clients in other languages write it."""
    registry = SerializerRegistry()

    assert registry.decode(b"[1]", content_type, None) == [1]
    assert registry.for_reply(content_type) is JSON


def test_json_in_another_encoding_is_read() -> None:
    assert (
        SerializerRegistry().decode('"é"'.encode("latin-1"), "application/json", "latin-1") == "é"
    )


@pytest.mark.parametrize("content_encoding", ["UTF-8", "utf8", "binary", "no-such-encoding"])
def test_odd_name_of_utf_8_does_no_harm(content_encoding: str) -> None:
    assert SerializerRegistry().decode(b'"\xc3\xa9"', "application/json", content_encoding) == "é"


def test_oversized_body_is_refused_with_both_sizes() -> None:
    registry = SerializerRegistry(max_body_bytes=10)

    assert registry.decode(b'"12345678"', "application/json") == "12345678"
    with pytest.raises(UndecodableMessage, match="has 11 bytes, more than the limit of 10"):
        registry.decode(b'"123456789"', "application/json")


def test_serializer_to_write_with_need_not_be_accepted() -> None:
    """As in Nameko: `Publisher(serializer="msgpack")` in a service that reads JSON."""
    registry = SerializerRegistry()

    assert registry.by_name("msgpack") is MSGPACK
    assert registry.accepted_content_types == ("application/json",)


def test_reply_is_in_the_requests_format_or_the_default() -> None:
    registry = SerializerRegistry()

    assert registry.for_reply("application/x-msgpack") is MSGPACK
    assert registry.for_reply("image/png") is JSON
    assert registry.for_reply(None) is JSON


def test_pickle_is_off_unless_accepted() -> None:
    registry = SerializerRegistry.from_config({"ACCEPT": ["json", "msgpack", "yaml"]})

    with pytest.raises(ConfigError, match=r"pickle is switched off.*ACCEPT"):
        registry.by_name("pickle")
    with pytest.raises(UndecodableMessage, match="is not accepted"):
        registry.decode(stock.encode(1, "pickle")[2], "application/x-python-serialize", "binary")
    assert registry.for_reply("application/x-python-serialize") is JSON


def test_raw_carries_text_and_bytes_only() -> None:
    raw = SerializerRegistry().by_name("raw")

    assert (raw.encode("é"), raw.encode(b"\xff"), raw.decode(b"\xff")) == (
        b"\xc3\xa9",
        b"\xff",
        b"\xff",
    )
    with pytest.raises(
        UnserializableValueError, match="list cannot be carried by application/data"
    ):
        raw.encode([1])


def test_yaml_is_safe_yaml() -> None:
    yaml = SerializerRegistry.from_config({"ACCEPT": ["yaml"]}).by_name("yaml")

    assert yaml.decode(yaml.encode({"a": date(2013, 1, 1)})) == {"a": date(2013, 1, 1)}
    with pytest.raises(UndecodableMessage, match="could not determine a constructor"):
        yaml.decode(b"!!python/object/apply:os.getcwd []")


def test_custom_serializers_errors_become_ours() -> None:
    registry = SerializerRegistry.from_config(
        {"SERIALIZERS": {"x": {**UPPER, "encoder": f"{__name__}.broken_encoder"}}, "ACCEPT": ["x"]}
    )

    with pytest.raises(
        UnserializableValueError, match=r"cannot be carried by application/x-upper-json \(never\)"
    ):
        registry.by_name("x").encode(1)
    with pytest.raises(
        UndecodableMessage, match="is not application/x-upper-json: JSONDecodeError"
    ):
        registry.by_name("x").decode(b"{")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"serializer": "xml"}, 'no serializer "xml"; there are: json, msgpack'),
        ({"ACCEPT": ["xml"]}, 'no serializer "xml"'),
        ({"ACCEPT": [7]}, 'no serializer "7"'),
        ({"ACCEPT": [["json"]]}, "no serializer"),
        ({"ACCEPT": "json"}, r"write a list of serializers, such as \[json\]"),
        ({"ACCEPT": 5}, "write a list"),
        ({"SERIALIZERS": ["x"]}, "write a map"),
        ({"SERIALIZERS": {"x": None}}, "SERIALIZERS.x is None; it needs encoder, decoder"),
        ({"SERIALIZERS": {"x": {"encoder": "json.dumps"}}}, "it needs encoder, decoder"),
        (
            {"SERIALIZERS": {"x": {**UPPER, "decoder": "no.such"}}},
            'SERIALIZERS.x.decoder: "no.such"',
        ),
        ({"SERIALIZERS": {"x": {**UPPER, "kind": 1}}}, r"unknown keys \['kind'\]"),
    ],
)
def test_configuration_that_cannot_be_is_told(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SerializerRegistry.from_config(config)


# --- compressed bodies ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["zlib", "gzip", "bzip2", "lzma"])
def test_body_that_kombu_compressed_is_read(method: str) -> None:
    compressed, content_type = stock.compress(b"payload" * 100, method)

    assert decompress(compressed, {"compression": content_type}, 700) == b"payload" * 100


@pytest.mark.parametrize("headers", [None, {}, {"other": 1}, {"compression": None}])
def test_body_that_is_not_compressed_is_left_alone(headers: dict[str, Any] | None) -> None:
    assert decompress(b"payload", headers, 1) == b"payload"


def test_compressed_body_cannot_fill_the_memory() -> None:
    bomb = zlib.compress(bytes(10_000_000))

    with pytest.raises(UndecodableMessage, match="more than 1000 bytes once decompressed"):
        decompress(bomb, {"compression": "application/x-gzip"}, 1000)


@pytest.mark.parametrize(
    ("body", "method", "message"),
    [
        (
            b"x",
            "application/x-brotli",
            'compressed with "application/x-brotli", which is not known',
        ),
        (b"x", 7, 'compressed with "7"'),
        (b"nonsense", "application/x-gzip", "is not application/x-gzip"),
        (b"nonsense", "application/x-bz2", "is not application/x-bz2"),
        (b"nonsense nonsense", "application/x-lzma", "is not application/x-lzma"),
        (zlib.compress(b"payload")[:-3], "application/x-gzip", "cut off"),
        (b"", "application/x-gzip", "cut off"),
    ],
)
def test_compressed_body_that_cannot_be_read_is_undecodable(
    body: bytes, method: Any, message: str
) -> None:
    with pytest.raises(UndecodableMessage, match=message):
        decompress(body, {"compression": method}, 1000)
