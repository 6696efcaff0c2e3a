"""Which serializers a service has, which it accepts, and what each content type means."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import kombu.exceptions
import pytest
from tests.unit.wire import stock

from mycelia.errors import ConfigError, UndecodableMessage, UnserializableValueError
from mycelia.wire import (
    JSON,
    MSGPACK,
    SerializerRegistry,
)


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
    with pytest.raises(UndecodableMessage, match="a body of 1 bytes is not utf-8 text"):
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


@pytest.mark.parametrize("content_encoding", ["UTF-8", "utf8", "us-ascii", "binary", ""])
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
