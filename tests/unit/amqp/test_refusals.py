"""What the broker says when it refuses, and which message it means. The texts are RabbitMQ 3.10's and 4's."""

from __future__ import annotations

import pytest

from mycelia.amqp import Message, Properties
from mycelia.amqp.refusals import (
    QueueNodeDown,
    blames_a_publishing,
    declaration_refused,
    find_culprit,
    max_message_bytes,
    publishing_nacked,
    publishing_refused,
)
from mycelia.errors import AccessRefused, MessageTooLarge, PublishRejected, TopologyError

MESSAGES = [
    Message("", "q", b"", Properties()),
    Message("orders", "a", b"12345", Properties()),
    Message("orders", "b", b"12345", Properties(expiration="soon")),
    Message("bills", "a", b"123456", Properties(user_id="ann")),
]


@pytest.mark.parametrize(
    ("code", "text", "culprit", "error"),
    [
        (404, "NOT_FOUND - no exchange 'orders' in vhost '/'", 1, TopologyError),
        (
            403,
            "ACCESS_REFUSED - access to exchange 'bills' in vhost '/' refused for user 'guest'",
            3,
            AccessRefused,
        ),
        (
            403,
            "ACCESS_REFUSED - access to topic 'b' in exchange 'orders' in vhost '/' refused for user 'guest'",
            2,
            AccessRefused,
        ),
        (
            403,
            "ACCESS_REFUSED - cannot publish to internal exchange 'orders' in vhost '/'",
            1,
            AccessRefused,
        ),
        (406, "PRECONDITION_FAILED - message size 6 is larger than max size 5", 3, MessageTooLarge),
        (
            406,
            "PRECONDITION_FAILED - message size 5 is larger than configured max size 4",
            1,
            MessageTooLarge,
        ),
        (
            406,
            "PRECONDITION_FAILED - invalid expiration 'soon': {leftover_string}",
            2,
            PublishRejected,
        ),
        (
            406,
            "PRECONDITION_FAILED - user_id property set to 'ann' but authenticated user was 'guest'",
            3,
            PublishRejected,
        ),
        (541, "INTERNAL_ERROR", None, PublishRejected),
        (404, "NOT_FOUND - no exchange 'gone' in vhost '/'", None, TopologyError),
    ],
)
def test_text_tells_the_first_message_it_can_mean(
    code: int, text: str, culprit: int | None, error: type[Exception]
) -> None:
    assert find_culprit(MESSAGES, code, text) == culprit
    assert type(publishing_refused(MESSAGES[1], code, text)) is error


def test_sizes_are_read_from_the_text_and_nothing_else() -> None:
    text = "PRECONDITION_FAILED - message size 70000 is larger than configured max size 65536"

    assert max_message_bytes(text) == (70000, 65536)
    assert max_message_bytes("PRECONDITION_FAILED - invalid expiration '9'") is None


@pytest.mark.parametrize(
    ("code", "blames"),
    [(541, True), (501, True), (502, True), (320, False), (506, False), (0, False)],
)
def test_only_what_we_sent_can_be_blamed(code: int, blames: bool) -> None:
    assert blames_a_publishing(code) is blames


def test_nack_says_how_often_it_was_tried() -> None:
    assert "5 times within 9.8 s" in str(publishing_nacked(MESSAGES[0], 5, 9.8))
    assert "times" not in str(publishing_nacked(MESSAGES[0], 1, 0.0))


@pytest.mark.parametrize(
    "text",
    [
        "NOT_FOUND - home node 'rabbit@two' of durable queue 'q' in vhost '/' is down or inaccessible",
        "NOT_FOUND - queue 'q' in vhost '/' process is stopped by supervisor",
        "NOT_FOUND - failed to perform operation on queue 'q' in vhost '/' due to timeout",
    ],
)
def test_queue_whose_node_is_down_is_none_that_does_not_exist(text: str) -> None:
    assert type(declaration_refused('queue "q"', 404, text)) is QueueNodeDown
    gone = "NOT_FOUND - no queue 'q' in vhost '/'"
    assert type(declaration_refused('queue "q"', 404, gone)) is TopologyError
