"""Records of the link: what is copied, and what cannot be changed."""

import pytest

from mycelia.amqp import ConsumeOptions, LinkOptions, Message, Properties

EVERY_PROPERTY = {
    "content_type": "application/json",
    "content_encoding": "utf-8",
    "headers": {"attempt": 1},
    "delivery_mode": 2,
    "priority": 7,
    "correlation_id": "c",
    "reply_to": "r",
    "expiration": "60000",
    "message_id": "m",
    "timestamp": 1_700_000_000,
    "type": "t",
    "user_id": "guest",
    "app_id": "a",
    "cluster_id": "x",
}


def test_republished_keeps_every_property_but_the_headers() -> None:
    original = Properties(**EVERY_PROPERTY)  # type: ignore[arg-type]

    copy = original.republished({"attempt": 2})

    assert {name: getattr(copy, name) for name in Properties.__slots__} == {
        **EVERY_PROPERTY,
        "headers": {"attempt": 2},
    }
    assert original.headers == {"attempt": 1}


def test_every_property_is_among_those_that_are_tested() -> None:
    assert set(EVERY_PROPERTY) == set(Properties.__slots__)


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (Message("x", "k", b"", Properties()), "exchange"),
        (ConsumeOptions(), "prefetch"),
        (LinkOptions(), "heartbeat"),
    ],
)
def test_records_cannot_be_changed(record: object, name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(record, name, "other")
