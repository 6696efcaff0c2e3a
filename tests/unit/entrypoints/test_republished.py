"""What a message becomes when it is published again: whatever has arrived can leave, with all that fits."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.entrypoints.hostile_errors import HOSTILE_ERRORS

from mycelia.amqp import Delivery, Properties
from mycelia.amqp.fields import decode_properties, encode_properties
from mycelia.entrypoints.dead_letters import dead_letter_queue_name
from mycelia.entrypoints.republished import (
    HEADER_LIMITS,
    dead_letter,
    dead_letter_headers,
    expires_at_ms,
    for_another_attempt,
    own_user,
)
from mycelia.wire import serialize_exception


class _Unsettled:
    is_lost = False

    def ack(self, delivery_tag: int) -> None:
        raise AssertionError

    def nack(self, delivery_tag: int, requeue: bool) -> None:
        raise AssertionError


def delivery_with(properties: Properties) -> Delivery:
    return Delivery(_Unsettled(), "c", 1, False, "x", "key", properties, b"body")


ORIGIN = {"x-mycelia-exchange": "x", "x-mycelia-routing-key": "key"}
"""What `delivery_with()` was published to, as it goes along."""


def story(delivery: Delivery, error: BaseException | None = None) -> dict[str, Any]:
    return dead_letter_headers(
        delivery,
        queue="q" * 255,
        service="s" * 3000,
        method="m",
        reason="handler_error",
        attempts=1,
        error=error,
        now=1.5,
    )


# --- header tables as a peer might write them ---------------------------------------------------------

names = st.binary(min_size=0, max_size=255).map(lambda raw: bytes((len(raw),)) + raw)
values = st.recursive(
    st.one_of(
        st.integers(0, 2**64 - 1).map(lambda n: b"T" + struct.pack(">Q", n)),
        st.integers(0, 2**64 - 1).map(lambda n: b"l" + struct.pack(">Q", n)),
        st.floats().map(lambda f: b"d" + struct.pack(">d", f)),
        st.floats(width=32).map(lambda f: b"f" + struct.pack(">f", f)),
        st.tuples(st.integers(0, 255), st.integers(-(2**31), 2**31 - 1)).map(
            lambda d: b"D" + struct.pack(">Bi", *d)
        ),
        st.binary(max_size=400).map(lambda raw: b"S" + struct.pack(">I", len(raw)) + raw),
        st.binary(max_size=400).map(lambda raw: b"x" + struct.pack(">I", len(raw)) + raw),
        st.just(b"V"),
        st.sampled_from([b"t\x00", b"t\x07", b"b\xff", b"B\xff", b"s\xff\xff", b"u\xff\xff"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4)
        .map(b"".join)
        .map(lambda raw: b"A" + struct.pack(">I", len(raw)) + raw),
        st.lists(st.tuples(names, inner).map(b"".join), max_size=4)
        .map(b"".join)
        .map(lambda raw: b"F" + struct.pack(">I", len(raw)) + raw),
    ),
    max_leaves=10,
)
tables = st.lists(st.tuples(names, values).map(b"".join), max_size=12).map(b"".join)
texts = st.binary(max_size=255).map(lambda raw: bytes((len(raw),)) + raw)


@settings(max_examples=300)
@given(table=tables, text=texts, error=st.sampled_from(sorted(HOSTILE_ERRORS)))
def test_whatever_decodes_is_buried_and_put_back_within_the_room_there_is(
    table: bytes, text: bytes, error: str
) -> None:
    # content type, headers, correlation id, reply to, message id, type, user id
    flags = 0x8000 | 0x2000 | 0x0400 | 0x0200 | 0x0080 | 0x0020 | 0x0010
    raw = struct.pack(">H", flags) + text + struct.pack(">I", len(table)) + table + text * 5
    delivery = delivery_with(decode_properties(raw, 0, len(raw)))

    headers = story(delivery, HOSTILE_ERRORS[error]())
    for limit in HEADER_LIMITS:
        letter = dead_letter(delivery, headers, user="guest", limit=limit)
        again = for_another_attempt(
            delivery,
            attempt=2,
            returns=1,
            expires_at_ms=10,
            now_ms=5,
            user="guest",
            limit=limit,
        )
        for properties in (letter, again):
            assert len(encode_properties(properties)) <= limit
            assert properties.correlation_id == delivery.properties.correlation_id
        assert (letter.headers or {})["x-mycelia-reason"] == "handler_error"
        assert (again.headers or {})["x-mycelia-attempt"] == 2


@pytest.mark.parametrize("name", HOSTILE_ERRORS)
def test_no_error_resists_being_told(name: str) -> None:
    error: BaseException | None = None
    try:
        raise HOSTILE_ERRORS[name]()
    except BaseException as exc:  # noqa: BLE001  some are no Exception
        error = exc
    delivery = delivery_with(Properties())

    headers = story(delivery, error)
    reply = serialize_exception(error, traceback=True)

    assert set(headers) >= {"x-mycelia-error", "x-mycelia-error-type", "x-mycelia-traceback"}
    assert len(headers["x-mycelia-error"].encode()) <= 4096
    assert len(headers["x-mycelia-traceback"].encode()) <= 16 * 1024
    assert headers["x-mycelia-error-type"]
    encode_properties(Properties(headers=headers))
    assert reply["exc_type"]
    for part in (reply["exc_type"], reply["exc_path"], reply["value"], reply["traceback"]):
        part.encode()


def test_headers_that_leave_no_room_are_left_out_by_name_the_largest_first() -> None:
    theirs = {"small": "s", "large": "x" * 100_000, "larger": "y" * 110_000}
    delivery = delivery_with(Properties(headers=theirs))

    letter = dead_letter(
        delivery, story(delivery, ValueError("v")), user=None, limit=HEADER_LIMITS[0]
    )

    headers = letter.headers or {}
    assert headers["small"] == "s"
    assert headers["large"] == theirs["large"]
    assert "larger" not in headers
    assert headers["x-mycelia-left-out"].startswith("larger (110012 bytes)")
    assert headers["x-mycelia-reason"] == "handler_error"


def test_what_a_handler_has_made_of_the_properties_cannot_keep_them_from_leaving() -> None:
    odd: Any = object()
    properties = Properties("t", headers={"odd": odd, 7: "n", "good": 1}, priority=odd, type=odd)  # type: ignore[dict-item]
    delivery = delivery_with(properties)

    letter = dead_letter(delivery, story(delivery), user=None, limit=HEADER_LIMITS[0])

    headers = letter.headers or {}
    encode_properties(letter)
    assert letter.content_type == "t"
    assert headers["good"] == 1
    assert set(headers["x-mycelia-left-out"].split(", ")) == {"odd", "7", "priority", "type"}


# --- what is kept -------------------------------------------------------------------------------------

FULL = {
    "content_type": "application/json",
    "content_encoding": "utf-8",
    "delivery_mode": 1,
    "priority": 7,
    "correlation_id": "c",
    "reply_to": "r",
    "expiration": "60000",
    "message_id": "m",
    "timestamp": 1_500_000_000,
    "type": "t",
    "user_id": "somebody",
    "app_id": "a",
    "cluster_id": "k",
}
"""Every property but the headers."""


def full(**headers: Any) -> Delivery:
    return delivery_with(Properties(headers=headers, **FULL))  # type: ignore[arg-type]


def told(properties: Properties) -> dict[str, Any]:
    return {name: getattr(properties, name) for name in FULL}


def test_dead_letter_keeps_every_property_but_does_not_expire() -> None:
    delivery = full(when=datetime(2013, 1, 1, tzinfo=UTC))

    letter = dead_letter(delivery, {}, user="guest", limit=HEADER_LIMITS[0])

    assert told(letter) == FULL | {"expiration": None, "user_id": None, "delivery_mode": 2}
    assert letter.headers == {
        "when": datetime(2013, 1, 1, tzinfo=UTC),
        "x-mycelia-expiration": "60000",
        "x-mycelia-user-id": "somebody",
    }


def test_another_attempt_keeps_every_property_and_the_rest_of_its_life() -> None:
    delivery = full(own=1)
    end = expires_at_ms(delivery, 1_000_000)

    again = for_another_attempt(
        delivery, attempt=3, returns=2, expires_at_ms=end, now_ms=1_020_000, user="guest"
    )

    assert end == 1_060_000
    assert told(again) == FULL | {"expiration": "40000", "user_id": None}
    assert again.headers == {
        "own": 1,
        "x-mycelia-attempt": 3,
        "x-mycelia-returns": 2,
        "x-mycelia-expires-at-ms": 1_060_000,
        "x-mycelia-expiration": "60000",
        "x-mycelia-user-id": "somebody",
        **ORIGIN,
    }
    assert expires_at_ms(delivery_with(again), 1_050_000) == 1_060_000


@pytest.mark.parametrize("left_ms", [2**32 - 1, 2**32, 2**62])
def test_time_to_live_that_the_broker_would_close_the_channel_over_is_not_said(
    left_ms: int,
) -> None:
    """The header can hold any number; RabbitMQ takes no more than 2^32 - 1 milliseconds."""
    delivery = delivery_with(Properties(headers={"x-mycelia-expires-at-ms": 1000 + left_ms}))

    again = for_another_attempt(
        delivery,
        attempt=2,
        returns=0,
        expires_at_ms=expires_at_ms(delivery, 0),
        now_ms=1000,
        user=None,
    )

    assert again.expiration == (str(left_ms) if left_ms < 2**32 else None)
    assert (again.headers or {})["x-mycelia-expires-at-ms"] == 1000 + left_ms


def test_user_that_publishes_keeps_its_name() -> None:
    delivery = full()

    letter = dead_letter(delivery, {}, user="somebody", limit=HEADER_LIMITS[0])

    assert letter.user_id == "somebody"
    assert "x-mycelia-user-id" not in (letter.headers or {})


def test_dead_letter_that_is_put_back_as_it_is_begins_anew() -> None:
    first = full(own=1)
    again = for_another_attempt(
        first, attempt=20, returns=19, expires_at_ms=1_060_000, now_ms=1_059_000, user="guest"
    )
    letter = dead_letter(
        delivery_with(again), story(first, ValueError()), user="guest", limit=HEADER_LIMITS[0]
    )
    put_back = delivery_with(letter)  # a shovel changes nothing

    retried = for_another_attempt(
        put_back,
        attempt=2,
        returns=0,
        expires_at_ms=expires_at_ms(put_back, 9_000_000),
        now_ms=9_000_000,
        user="guest",
    )

    assert not {"x-mycelia-attempt", "x-mycelia-returns", "x-mycelia-expires-at-ms"} & set(
        letter.headers or {}
    )
    assert retried.expiration == "60000"
    assert retried.headers == {
        "own": 1,
        "x-mycelia-attempt": 2,
        "x-mycelia-expires-at-ms": 9_060_000,
        "x-mycelia-expiration": "60000",
        "x-mycelia-user-id": "somebody",
        **ORIGIN,
    }


def test_copies_are_not_sent_again() -> None:
    """RabbitMQ routes a message to every key in `CC` too, also when it is a dead letter."""
    delivery = delivery_with(Properties(headers={"CC": ["other"], "BCC": ["secret"]}))

    letter = dead_letter(delivery, {}, user=None, limit=1000)

    assert letter.headers == {"x-mycelia-cc": ["other"], "x-mycelia-bcc": ["secret"]}


@pytest.mark.parametrize("expiration", ["", "x", "-1", "1.5", "٣", "9" * 200])
def test_time_to_live_that_is_no_number_is_none(expiration: str) -> None:
    assert expires_at_ms(delivery_with(Properties(expiration=expiration)), 0) is None


@pytest.mark.parametrize(
    "queue", ["q", "q" * 250, "q" * 251, "q" * 255, "é" * 127, "a" + "é" * 127, "\udcff" * 255]
)
def test_every_queue_has_a_dead_letter_queue(queue: str) -> None:
    name = dead_letter_queue_name(queue)

    assert len(name.encode("utf-8", "surrogateescape")) <= 255
    assert name.endswith(".dead")
    assert (name == queue + ".dead") == (len(queue.encode("utf-8", "surrogateescape")) <= 250)


def test_long_queues_with_a_common_beginning_have_dead_letter_queues_of_their_own() -> None:
    assert dead_letter_queue_name("q" * 254 + "a") != dead_letter_queue_name("q" * 254 + "b")


@pytest.mark.parametrize(
    ("uri", "user"),
    [
        ("amqp://app:secret@h/v", "app"),
        ("amqp://app:a@h/v;i", "app"),
        ("amqp://app:a@h/v;amqp://other:b@i/v", None),
        ("memory://x", None),
    ],
)
def test_user_that_publishes_is_read_from_the_uri(uri: str, user: str | None) -> None:
    assert own_user(uri) == user


# --- what a dead letter tells ---------------------------------------------------------------------------


def test_origin_is_told_however_often_the_message_was_published_again() -> None:
    """A delay queue, or the queue's own name, is where it came from last: of no use to who looks for its publisher."""
    first = delivery_with(Properties())
    for_the_queue = for_another_attempt(
        first, attempt=2, returns=0, expires_at_ms=None, now_ms=0, user=None
    )
    second = Delivery(_Unsettled(), "c", 1, False, "", "queue", for_the_queue, b"body")
    third = Delivery(
        _Unsettled(),
        "c",
        1,
        False,
        "delays",
        "5s",
        for_another_attempt(second, attempt=3, returns=0, expires_at_ms=None, now_ms=0, user=None),
        b"body",
    )

    told_of = story(third, ValueError())

    assert {name: told_of[name] for name in ORIGIN} == ORIGIN


@pytest.mark.parametrize(
    ("attempts", "header", "first"),
    [
        (1, None, 1500),
        (1, 700, 1500),  # of a former life
        (3, 700, 700),
        (3, None, 1500),
        (3, 1501, 1500),  # a clock that is ahead
        (3, "700", 1500),
        (3, True, 1500),
        (3, -1, 1500),
    ],
)
def test_dead_letter_tells_when_it_failed_first_and_last(
    attempts: int, header: object, first: int
) -> None:
    headers = {} if header is None else {"x-mycelia-first-failed-at-ms": header}
    told_of = dead_letter_headers(
        delivery_with(Properties(headers=headers)),
        queue="q",
        service="s",
        method="m",
        reason="handler_error",
        attempts=attempts,
        error=None,
        now=1.5,
    )

    assert told_of["x-mycelia-first-failed-at-ms"] == first
    assert told_of["x-mycelia-failed-at-ms"] == 1500


@pytest.mark.parametrize(
    ("traceparent", "trace_id"),
    [
        (f"00-{'4bf9' * 8}-{'00f0' * 4}-01", "4bf9" * 8),
        (None, None),
        ("", None),
        ("00-short-00-01", None),
        (7, None),
    ],
)
def test_dead_letter_tells_its_trace(traceparent: object, trace_id: str | None) -> None:
    headers = {} if traceparent is None else {"traceparent": traceparent}

    told_of = story(delivery_with(Properties(headers=headers)))

    assert told_of.get("x-mycelia-trace-id") == trace_id
