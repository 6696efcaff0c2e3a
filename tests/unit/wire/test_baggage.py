"""W3C baggage: read and written as OpenTelemetry does, and bounded."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.baggage import get_all, set_baggage
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context

from mycelia.errors import UnserializableValueError
from mycelia.wire import (
    MAX_BAGGAGE_LENGTH,
    MAX_BAGGAGE_MEMBERS,
    format_baggage,
    is_baggage,
    parse_baggage,
)

names = st.text("abcxyzABC019_-.", min_size=1, max_size=10)
# OpenTelemetry strips blanks at both ends of a value, so those do not come back.
values = st.text(st.characters(codec="utf-8"), max_size=20).map(str.strip)
members = st.dictionaries(names, values, max_size=8)


@given(members)
def test_baggage_survives_the_way(given_members: dict[str, str]) -> None:
    text = format_baggage(given_members)

    assert is_baggage(text)
    assert parse_baggage(text) == given_members


@given(members)
def test_opentelemetry_reads_what_we_write_and_we_what_it_writes(
    given_members: dict[str, str],
) -> None:
    text = format_baggage(given_members)
    assert get_all(W3CBaggagePropagator().extract({"baggage": text}, Context())) == given_members

    context = Context()
    for name, value in given_members.items():
        context = set_baggage(name, value, context)
    carrier: dict[str, str] = {}
    W3CBaggagePropagator().inject(carrier, context)
    assert parse_baggage(carrier.get("baggage", "")) == given_members


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", {}),
        ("tenant=acme", {"tenant": "acme"}),
        (
            " tenant = acme ;secret;k=v , plan=gold%20plus\t",
            {"tenant": "acme", "plan": "gold plus"},
        ),
        ("a=1,a=2", {"a": "2"}),
        ("a=b=c", {"a": "b=c"}),
        ("no-value,=nameless,two words=x,ok=1", {"ok": "1"}),
        ("a=%zz%", {"a": "%zz%"}),
        ("a=x\r\nevil: 1", {}),
        ("a=\x00", {}),
        ("a=\x1b[2J", {}),
        ("a=é", {}),
        ("a=" + "x" * 4096 + ",b=1", {"b": "1"}),
        ("a=" + "x" * MAX_BAGGAGE_LENGTH, {}),
        (b"a=1", {}),
        (5, {}),
        (None, {}),
        (["a=1"], {}),
    ],
)
def test_a_header_is_read_as_far_as_it_is_baggage(header: Any, expected: dict[str, str]) -> None:
    assert parse_baggage(header) == expected


def test_a_million_characters_are_none_and_ten_thousand_members_the_first_180() -> None:
    assert parse_baggage("a=" + "x" * 1_000_000) == {}
    many = ",".join(f"{n}=1" for n in range(1200))
    assert list(parse_baggage(many)) == [str(n) for n in range(MAX_BAGGAGE_MEMBERS)]


@given(st.text() | st.binary() | st.none() | st.integers())
def test_whatever_comes_is_read_without_an_error(header: Any) -> None:
    assert len(parse_baggage(header)) <= MAX_BAGGAGE_MEMBERS


@pytest.mark.parametrize(
    ("too_much", "said"),
    [
        ({f"k{n}": "v" for n in range(181)}, "181 members"),
        ({"a": "x" * 5000}, "5002 characters"),
        ({"a": "ü" * 1000}, "6002 characters"),
        ({"a": "x" * 4000, "b": "x" * 4000, "c": "x" * 400}, "8408 characters"),
        ({5: "x"}, "name 5 is no text"),
        ({"": "x"}, "name '' is no text"),
    ],
)
def test_more_than_a_header_holds_is_refused_with_the_numbers(
    too_much: dict[Any, str], said: str
) -> None:
    with pytest.raises(UnserializableValueError, match=said):
        format_baggage(too_much)


def test_a_value_cannot_add_a_member_or_a_line() -> None:
    text = format_baggage({"a": 'x,b=2;p=1\r\n"\\', "half": "\ud83d"})

    assert "\n" not in text
    assert parse_baggage(text) == {"a": 'x,b=2;p=1\r\n"\\', "half": "?"}
