"""Bodies as text to read and edit, and back."""

from __future__ import annotations

import json
import zlib
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.amqp import Properties
from mycelia.control.dead_letters import Payload, changed_payload, with_changes
from mycelia.errors import ConfigError
from mycelia.wire import JSON, MSGPACK

AS_JSON = Properties("application/json", "utf-8")
AS_MSGPACK = Properties(MSGPACK.content_type, MSGPACK.content_encoding)


@pytest.mark.parametrize("serializer", [JSON, MSGPACK])
def test_unchanged_text_gives_the_same_value_back(serializer: Any) -> None:
    properties = Properties(serializer.content_type, serializer.content_encoding)
    value = {"at": date(2024, 5, 6), "seats": [1, 2.5, None, "é"]}

    payload = Payload.of(serializer.encode(value), properties)
    body, changed = changed_payload(payload.text, properties)

    assert payload.form == "json"
    assert serializer.decode(body) == value
    assert (changed.content_type, changed.content_encoding) == (
        serializer.content_type,
        serializer.content_encoding,
    )


@given(
    st.binary(max_size=200),
    st.sampled_from([AS_JSON, AS_MSGPACK, Properties(), Properties("text/plain")]),
)
def test_every_body_is_shown(body: bytes, properties: Properties) -> None:
    payload = Payload.of(body, properties)

    assert payload.form in ("json", "text", "base64")
    assert isinstance(payload.text, str)


def test_packed_body_is_unpacked_and_goes_on_unpacked() -> None:
    properties = Properties(
        "application/json", "utf-8", {"compression": "application/x-gzip", "own": 1}
    )

    payload = Payload.of(zlib.compress(b'{"a": 1}'), properties)
    body, changed = changed_payload('{"a": 2}', properties)

    assert payload.value == {"a": 1}
    assert (body, changed.headers) == (b'{"a":2}', {"own": 1})


def test_bomb_is_not_unpacked() -> None:
    properties = Properties("application/json", "utf-8", {"compression": "application/x-gzip"})

    payload = Payload.of(zlib.compress(b"0" * 10_000_000), properties, max_bytes=1_000_000)

    assert payload.form == "base64"
    assert "more than 1000000 bytes" in (payload.problem or "")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([("a.b.1", 7)], {"a": {"b": [1, 7]}}),
        (
            [("a.c", None), ("x", {"y": 1}), ("x.y", 2)],
            {"a": {"b": [1, 2], "c": None}, "x": {"y": 2}},
        ),
        ([("", [3])], [3]),
    ],
)
def test_parts_are_set(changes: list[tuple[str, Any]], expected: Any) -> None:
    text = with_changes(Payload.of(b'{"a": {"b": [1, 2]}}', AS_JSON), changes)

    assert json.loads(text) == expected


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b'{"a": [1]}', "a.1"),
        (b'{"a": [1]}', "a.x"),
        (b'{"a": 1}', "a.b"),
        (b"{}", "a.b"),
        (b"{", "a"),
    ],
)
def test_path_that_leads_nowhere_is_told(body: bytes, path: str) -> None:
    with pytest.raises(ConfigError):
        with_changes(Payload.of(body, AS_JSON), [(path, 1)])


@pytest.mark.parametrize(
    ("text", "properties"),
    [
        ("{", AS_JSON),
        ("{", AS_MSGPACK),
        ("é", Properties("text/plain", "ascii")),
        ("x", Properties("text/plain", "no-such")),
    ],
)
def test_text_that_cannot_be_the_payload_is_told(text: str, properties: Properties) -> None:
    with pytest.raises(ConfigError):
        changed_payload(text, properties)
