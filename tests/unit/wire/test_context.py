from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.wire import stock

from mycelia.errors import UnserializableValueError
from mycelia.wire import (
    ATTEMPT_HEADER,
    BAGGAGE,
    CALL_ID_STACK,
    DEADLINE_HEADER,
    MAX_ATTEMPT,
    MAX_CONTEXT_ITEMS,
    TRACEPARENT,
    TRACESTATE,
    decode_context,
    encode_context,
    read_attempt,
    read_deadline_ms,
)

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

ONE_MESSAGE_HEADERS = [
    "x-death",
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-last-death-reason",
    "x-delivery-count",
    "x-acquired-count",
    "x-stream-offset",
    "x-stream-filter-value",
    "x-opt-partition",
    "x-delay",
    "x-received-from",
    "x-shovelled",
    "x-mycelia-attempt",
    "x-mycelia-anything",
    "CC",
    "BCC",
    "compression",
]

text = st.text("abcxyz_.-é漢")
keys = text.map(lambda key: f"k{key}")
contexts = st.dictionaries(keys, st.one_of(text, st.integers(), st.lists(text)))


@given(contexts)
def test_context_survives_the_way(context: dict[str, Any]) -> None:
    assert decode_context(encode_context(context)) == context


@given(contexts)
def test_context_is_read_and_written_as_stock_nameko_does(context: dict[str, Any]) -> None:
    assert encode_context(context) == stock.encode_headers(context)
    assert stock.decode_headers(encode_context(context)) == context


def test_items_that_are_none_are_left_out() -> None:
    assert encode_context({"language": None, "user_id": 0}) == {"nameko.user_id": 0}


def test_headers_without_the_prefix_are_kept() -> None:
    assert decode_context({"tenant": "a", "nameko.language": "de"}) == {
        "tenant": "a",
        "language": "de",
    }


@pytest.mark.parametrize("headers", [None, {}])
def test_no_headers_give_an_empty_context(headers: dict[str, Any] | None) -> None:
    assert decode_context(headers) == {}


@pytest.mark.parametrize("header", ONE_MESSAGE_HEADERS)
def test_header_of_one_message_is_not_inherited(header: str) -> None:
    assert decode_context({header: 1, "nameko.language": "de"}) == {"language": "de"}


@pytest.mark.parametrize("header", ONE_MESSAGE_HEADERS)
def test_header_of_one_message_is_not_inherited_through_a_stock_hop(header: str) -> None:
    echoed = stock.hop({header: 1})
    assert echoed == {f"nameko.{header}": 1}  # the fault that we must live with

    assert decode_context(echoed) == {}


def test_names_that_only_begin_alike_are_kept() -> None:
    context = {"x-deathly": 1, "x-tenant": 2, "x-delays": 3, "cc": 4}

    assert decode_context(context) == context


def test_trace_context_travels_as_w3c_says() -> None:
    headers = encode_context({TRACEPARENT: PARENT, TRACESTATE: "a=1"})

    assert headers == {"traceparent": PARENT, "tracestate": "a=1"}


def test_trace_context_survives_a_stock_hop() -> None:
    echoed = stock.hop(encode_context({TRACEPARENT: PARENT}))

    assert echoed == {"nameko.traceparent": PARENT}
    assert decode_context(echoed) == {TRACEPARENT: PARENT}


def test_baggage_travels_as_w3c_says_also_over_a_stock_hop() -> None:
    headers = encode_context({BAGGAGE: "tenant=acme"})

    assert headers == {"baggage": "tenant=acme"}
    assert decode_context(stock.hop(headers)) == {BAGGAGE: "tenant=acme"}
    assert decode_context(stock.hop(headers) | {"baggage": "tenant=near"}) == {
        BAGGAGE: "tenant=near"
    }


@pytest.mark.parametrize(
    ("baggage", "told"),
    [
        ("a=" + "x" * 1_000_000, "baggage (1000002 characters)"),
        ("a=1\r\nb", "baggage (6 characters)"),
        (b"a=1", "baggage (no text)"),
        ([1], "baggage (no text)"),
    ],
)
@pytest.mark.parametrize("header", ["baggage", "nameko.baggage"])
def test_what_is_no_baggage_goes_no_further_and_is_told(
    baggage: Any, told: str, header: str
) -> None:
    left_out: list[str] = []

    assert decode_context({header: baggage, "nameko.language": "de"}, left_out) == {
        "language": "de"
    }
    assert left_out == [told]


def test_ten_thousand_headers_are_bounded_those_with_a_meaning_kept_and_it_is_told() -> None:
    headers = {f"k{n}": n for n in range(10_000)} | {
        "traceparent": PARENT,
        "nameko.user_id": 7,
        "nameko.deadline_ms": 5,
    }
    left_out: list[str] = []

    context = decode_context(headers, left_out)

    assert len(context) == MAX_CONTEXT_ITEMS
    assert (context["traceparent"], context["user_id"], context["deadline_ms"]) == (PARENT, 7, 5)
    assert left_out == ["9503 of 10003 headers"]
    assert decode_context(headers) == context


@pytest.mark.parametrize("key", [5, None, b"x", ("a",)])
def test_a_key_that_is_no_text_is_told(key: Any) -> None:
    with pytest.raises(UnserializableValueError, match="keys are text"):
        encode_context({"language": "de", key: 1})


@pytest.mark.parametrize("order", [1, -1])
def test_nearest_sender_wins_where_trace_context_comes_twice(order: int) -> None:
    both = [("traceparent", "near"), ("nameko.traceparent", "far")][::order]

    assert decode_context(dict(both)) == {TRACEPARENT: "near"}


@pytest.mark.parametrize("order", [1, -1])
def test_prefixed_header_wins_over_a_bare_one_of_the_same_name(order: int) -> None:
    both = [("language", "bare"), ("nameko.language", "prefixed")][::order]

    assert decode_context(dict(both)) == {"language": "prefixed"}


def test_deadline_and_call_stack_survive_a_stock_hop() -> None:
    context = {"deadline_ms": 1_767_225_600_123, CALL_ID_STACK: ["a.b.1"]}

    echoed = stock.hop(encode_context(context))

    assert decode_context(echoed) == context
    assert read_deadline_ms(echoed) == 1_767_225_600_123


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, 5),
        (5.9, 5),
        ("17", 17),
        ("1790000000000", 1_790_000_000_000),
        (None, None),
        (True, None),
        ("soon", None),
        ("", None),
        (b"17", None),
        ([1], None),
        ({}, None),
        (float("nan"), None),
        (float("inf"), None),
        (-1, 0),
        (-(2**63), 0),
        (2**63 - 1, 253_402_300_799_999),
        (1e300, 253_402_300_799_999),
        ("9" * 5000, None),
    ],
)
def test_deadline_is_a_number_however_it_was_sent_and_absent_if_it_makes_no_sense(
    value: Any, expected: int | None
) -> None:
    assert read_deadline_ms({DEADLINE_HEADER: value}) == expected


@pytest.mark.parametrize("headers", [None, {}, {"deadline_ms": 5}])
def test_no_deadline_header_is_no_deadline(headers: dict[str, Any] | None) -> None:
    assert read_deadline_ms(headers) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3),
        ("3", 3),
        (3.0, 3),
        (0, 1),
        (-2, 1),
        (-(2**62), 1),
        (2**62, MAX_ATTEMPT),
        (1e300, MAX_ATTEMPT),
        ("x", 1),
        (None, 1),
        (True, 1),
        (float("nan"), 1),
        ([], 1),
    ],
)
def test_attempt_counts_from_one_and_is_bounded(value: Any, expected: int) -> None:
    assert read_attempt({ATTEMPT_HEADER: value}) == expected


@pytest.mark.parametrize("headers", [None, {}, {"nameko.x-mycelia-attempt": 7}])
def test_message_without_a_count_is_the_first_attempt(headers: dict[str, Any] | None) -> None:
    assert read_attempt(headers) == 1


anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()


@given(value=anything | st.lists(anything) | st.dictionaries(text, anything))
def test_whatever_a_header_holds_the_readers_give_a_usable_number(value: Any) -> None:
    deadline_ms = read_deadline_ms({DEADLINE_HEADER: value})

    assert deadline_ms is None or 0 <= deadline_ms < 2**48
    assert 1 <= read_attempt({ATTEMPT_HEADER: value}) <= MAX_ATTEMPT
