"""A message comes out of its row as it went in."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.call import CallKind, PublishOptions
from mycelia.errors import ProtocolError
from mycelia.providers.transactions.outbox_message import OutboxMessage

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)
headers = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20), values, max_size=4
)


PLAIN = PublishOptions()


def stored(
    table: dict[str, Any], options: PublishOptions = PLAIN, body: bytes = b"1"
) -> OutboxMessage:
    return OutboxMessage.made(
        CallKind.EVENT,
        "bank",
        "paid",
        ("application/json", "utf-8", body),
        table,
        options,
        message_id="m-1",
        now=1_750_000_000.5,
    )


@given(headers, st.binary())
def test_headers_and_body_come_out_as_they_went_in(table: dict[str, Any], body: bytes) -> None:
    row = stored(table, body=body)

    assert row.all_headers() == table
    assert row.body == body


def test_header_types_that_only_amqp_has_are_kept() -> None:
    table = {"when": datetime(2026, 11, 26, tzinfo=UTC), "raw": b"\x00\xff"}

    assert stored(table).all_headers() == table


def test_options_come_out_with_id_time_and_the_written_type() -> None:
    given_options = PublishOptions(
        priority=3, expiration=2.5, after="5m", serializer="json", use_confirms=False, timeout=1
    )

    options = stored({}, given_options).publish_options()

    assert options == PublishOptions(
        priority=3,
        expiration=2.5,
        after="5m",
        message_id="m-1",
        timestamp=1_750_000_000.5,
        content_type="application/json",
        content_encoding="utf-8",
    )


def test_id_and_time_of_the_options_go_before() -> None:
    row = stored({}, PublishOptions(message_id="mine", timestamp=5.0))

    assert row.message_id == "mine"
    assert row.publish_options().message_id == "mine"
    assert row.publish_options().timestamp == 5.0


def test_header_that_amqp_cannot_carry_is_refused_when_it_is_written() -> None:
    with pytest.raises(ProtocolError, match="'odd'"):
        stored({"odd": object()})
