"""Exchange and routing key that a message was published with, whatever way it came."""

from __future__ import annotations

from typing import Any

import pytest

from mycelia.amqp import Delivery, Properties
from mycelia.amqp.delay_levels import GOAL_HEADER
from mycelia.entrypoints.received import history_of
from mycelia.entrypoints.remembered import Remembered, event_key

ORIGIN = {"x-mycelia-exchange": "airport", "x-mycelia-routing-key": "landed.JFK"}
ATTEMPT = {"x-mycelia-attempt": 2}
DELAYED = {GOAL_HEADER: "queue:landings"}


class Settler:
    is_lost = False

    def __init__(self) -> None:
        self.acked: list[int] = []

    def ack(self, delivery_tag: int) -> None:
        self.acked.append(delivery_tag)

    def nack(self, delivery_tag: int, requeue: bool) -> None: ...


def message(exchange: str, headers: dict[str, Any], tag: int = 1, **more: Any) -> Delivery:
    return Delivery(
        Settler(),
        "consumer",
        tag,
        more.pop("redelivered", False),
        exchange,
        "landings",
        Properties(headers=headers, **more),
        b"{}",
    )


def way_of(delivery: Delivery) -> tuple[str, str]:
    history_of(delivery, True)
    return delivery.exchange, delivery.routing_key


@pytest.mark.parametrize(
    ("exchange", "headers", "expected"),
    [
        ("", {**ORIGIN, **ATTEMPT}, ("airport", "landed.JFK")),
        ("", ORIGIN, ("airport", "landed.JFK")),
        ("mycelia.delay.deliver", {**ORIGIN, **ATTEMPT, **DELAYED}, ("airport", "landed.JFK")),
        # What was published for later comes with its own key; what stands in its headers is of another message.
        ("mycelia.delay.deliver", {**ORIGIN, **DELAYED}, ("airport", "landings")),
        (
            "mycelia.delay.short.below.4s",
            {**ORIGIN, **ATTEMPT, **DELAYED},
            ("airport", "landed.JFK"),
        ),
        # A message of somebody's who copies headers.
        ("cargo", {**ORIGIN, **ATTEMPT}, ("cargo", "landings")),
        ("cargo", {**ORIGIN, **ATTEMPT, **DELAYED}, ("cargo", "landings")),
        ("cargo", {**ORIGIN, **DELAYED}, ("cargo", "landings")),
        ("", {"x-mycelia-exchange": 7, "x-mycelia-routing-key": "k"}, ("", "landings")),
        ("", {"x-mycelia-exchange": "e", "x-mycelia-routing-key": [1]}, ("", "landings")),
        ("", {"x-mycelia-routing-key": "k"}, ("", "landings")),
        ("", {}, ("", "landings")),
    ],
)
def test_headers_are_believed_of_what_came_by_its_queue_s_name(
    exchange: str, headers: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert way_of(message(exchange, headers)) == expected


def test_properties_of_a_message_whose_headers_are_copied_stay_its_own() -> None:
    headers = {**DELAYED, "x-mycelia-priority": 9, "x-mycelia-expiration": "1", "x-death": [1]}
    delivery = message("cargo", dict(headers), priority=2, expiration="60000")

    history_of(delivery, True)

    properties = delivery.properties
    assert (properties.priority, properties.expiration) == (2, "60000")
    assert properties.headers == headers


def test_lost_attempt_is_known_again_though_its_key_was_given_back() -> None:
    """The one that is worked on has its own key, the one that comes again that of the queue."""
    remembered = Remembered(event_key)
    running = message("", {**ORIGIN, **ATTEMPT}, message_id="m")
    history_of(running, True)
    running.settler.is_lost = True  # type: ignore[misc]
    remembered.keep([running], 0.0)
    again = message("", {**ORIGIN, **ATTEMPT}, 2, message_id="m", redelivered=True)

    assert remembered.claim([again], 1.0) == []
    running.ack()
    assert again.settler.acked == [2]  # type: ignore[attr-defined]
