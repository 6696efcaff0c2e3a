"""The counts that quorum queues keep of a message, by the version of RabbitMQ."""

from __future__ import annotations

from typing import Any

import pytest

from mycelia.amqp import Delivery, Properties
from mycelia.entrypoints.dead_letters import dead_letter_headers
from mycelia.entrypoints.received import returns_of


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
    assert returns_of(delivery_with(headers, redelivered=True)) == returns
    assert returns_of(delivery_with(headers, redelivered=False)) == 0


def test_counts_of_one_queue_are_not_taken_to_another() -> None:
    delivery = delivery_with({"x-acquired-count": 3, "x-delivery-count": 1, "mine": 1})

    headers = dead_letter_headers(
        delivery, queue="q", service="s", method="m", reason="rejected", error=None, now=0.0
    )

    assert headers["mine"] == 1
    assert not {"x-acquired-count", "x-delivery-count"} & headers.keys()
