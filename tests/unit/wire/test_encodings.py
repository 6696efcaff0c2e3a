"""Content encodings: a short list, so that a message cannot choose what its decoding costs."""

from __future__ import annotations

import encodings
import encodings.aliases
import gc
import json

import kombu.serialization
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.errors import UndecodableMessage
from mycelia.wire import SerializerRegistry
from mycelia.wire.encodings import BINARY, codec_of

KNOWN = [
    "utf-8",
    "utf8",
    "us-ascii",
    "ascii",
    "iso-8859-1",
    "latin-1",
    "latin1",
    "utf-16",
    "utf-16le",
    "utf-16-be",
    "utf-32",
    "utf-32le",
    "utf-32-be",
]


@pytest.mark.parametrize("content_type", ["application/json", "application/text", None])
@pytest.mark.parametrize("name", [*KNOWN, *map(str.upper, KNOWN)])
def test_text_in_a_known_encoding_is_read(content_type: str | None, name: str) -> None:
    body = json.dumps("Zoe").encode(name)

    read = SerializerRegistry().decode(body, content_type, name)

    assert read == ("Zoe" if content_type == "application/json" else '"Zoe"')


def test_what_kombu_takes_for_bytes_stays_bytes() -> None:
    for name in kombu.serialization.SKIP_DECODE:
        assert codec_of(name) == BINARY
        assert SerializerRegistry().decode(b"\xff", None, name) == b"\xff"


QUADRATIC_OR_ODD = [
    "punycode",
    "idna",
    "unicode_escape",
    "raw_unicode_escape",
    "utf-7",
    "zlib",
    "bz2",
    "base64",
    "rot13",
    "undefined",
    "mbcs",
    "gzip",
    "no-such-encoding",
    " utf-8",
    "utf-8\x00",
    "../x",
]


@pytest.mark.parametrize("content_type", ["application/json", "application/data", None])
@pytest.mark.parametrize("name", QUADRATIC_OR_ODD)
def test_every_other_encoding_is_refused_by_name(content_type: str | None, name: str) -> None:
    with pytest.raises(UndecodableMessage, match="is not known here; known: utf-8, ") as raised:
        SerializerRegistry().decode(b"x-" * 150_000, content_type, name)

    assert f'content encoding "{name}"' in str(raised.value)


def test_no_codec_of_python_is_reached_but_the_listed_ones() -> None:
    linear = {"utf-8", "latin-1", BINARY} | {
        f"utf-{bits}{order}" for bits in (16, 32) for order in ("", "-le", "-be")
    }
    names = {*encodings.aliases.aliases, *encodings.aliases.aliases.values()}

    reached = set()
    for name in names:
        try:
            reached.add(codec_of(name.replace("_", "-")))
        except UndecodableMessage:
            continue

    assert reached <= linear


@given(name=st.text(min_size=1, max_size=200))
def test_a_refusal_is_short_whatever_the_name(name: str) -> None:
    with pytest.raises(UndecodableMessage) as raised:
        codec_of(f"x-{name}")

    assert len(str(raised.value)) < 250


def test_unknown_names_are_not_kept() -> None:
    registry = SerializerRegistry()
    known = set(encodings._cache)  # type: ignore[attr-defined]  # where Python keeps what it looked up

    for n in range(1000):
        with pytest.raises(UndecodableMessage):
            registry.decode(b"1", "application/json", f"x-made-up-{n}")

    gc.collect()
    assert set(encodings._cache) == known  # type: ignore[attr-defined]
