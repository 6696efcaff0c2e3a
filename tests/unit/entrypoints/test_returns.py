"""The counts that quorum queues keep of a message, by the version of RabbitMQ."""

from __future__ import annotations

from typing import Any

import pytest

from mycelia.amqp import Delivery, Properties
from mycelia.entrypoints.received import is_counted, returns_of
from mycelia.entrypoints.republished import dead_letter, for_another_attempt


class _Unsettled:
    def ack(self, delivery_tag: int) -> None:
        raise AssertionError

    def nack(self, delivery_tag: int, requeue: bool) -> None:
        raise AssertionError


def delivery_with(headers: dict[str, Any] | None, *, redelivered: bool = True) -> Delivery:
    return Delivery(_Unsettled(), "c", 1, redelivered, "", "q", Properties(headers=headers), b"")


@pytest.mark.parametrize(
    ("headers", "returns"),
    [
        pytest.param(None, 1, id="classic queue: it has come back, nobody counts"),
        pytest.param({"x-delivery-count": 3}, 3, id="up to 4.2"),
        pytest.param({"x-acquired-count": 3}, 3, id="4.3, returned by nack"),
        pytest.param({"x-acquired-count": 3, "x-delivery-count": 1}, 3, id="4.3, failed once"),
        pytest.param({"x-acquired-count": "3"}, 1, id="not a count"),
    ],
)
def test_returns_are_read_from_the_header_that_counts_them_all(
    headers: dict[str, Any] | None, returns: int
) -> None:
    assert returns_of(delivery_with(headers, redelivered=True), True) == returns
    assert returns_of(delivery_with(headers, redelivered=False), True) == 0


def test_returns_that_we_have_counted_are_added() -> None:
    ours = {"x-mycelia-returns": 3}

    assert returns_of(delivery_with(ours, redelivered=False), True) == 3
    assert returns_of(delivery_with(ours, redelivered=True), True) == 4
    assert returns_of(delivery_with(ours | {"x-delivery-count": 2}, redelivered=True), True) == 5


def test_return_is_counted_by_its_queue_or_has_yet_to_be() -> None:
    assert is_counted(delivery_with({"x-delivery-count": 1}), True)
    assert is_counted(delivery_with(None, redelivered=False), True)
    assert not is_counted(delivery_with(None), True)
    assert not is_counted(delivery_with({"x-delivery-count": "1"}), True)


def test_a_count_is_the_publisher_s_word_where_the_queue_counts_nothing() -> None:
    """A message that a shovel has brought from a quorum queue, or that somebody made so, could never reach its limit."""
    brought = delivery_with({"x-delivery-count": 1})

    assert not is_counted(brought, False)
    assert returns_of(brought, False) == 1
    assert returns_of(delivery_with({"x-delivery-count": 19}), False) == 1


def test_counts_of_one_queue_are_not_taken_to_another() -> None:
    delivery = delivery_with({"x-acquired-count": 3, "x-delivery-count": 1, "mine": 1})

    letter = dead_letter(delivery, {}, user=None, limit=1000)
    again = for_another_attempt(
        delivery, attempt=2, returns=0, expires_at_ms=None, now_ms=0, user=None
    )

    assert letter.headers == {"mine": 1}
    assert again.headers == {
        "mine": 1,
        "x-mycelia-attempt": 2,
        "x-mycelia-exchange": "",
        "x-mycelia-routing-key": "q",
    }
