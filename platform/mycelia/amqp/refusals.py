"""What the broker's refusals mean: its reply codes and texts as our errors, and which message was meant. Pure.

A publishing is refused in one of three ways: by `basic.nack` (a queue is full or in trouble), by closing the channel (404 no such
exchange, 403 not allowed, 406 too large, a property it does not like), or by closing the connection (541 and 50x: it could not
read what it got). Closing names a code and a text, never a message. But a channel's publishings are processed in order, and
most texts name what was wrong with it; so the culprit is the first one of which the text can be true.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

from mycelia.amqp.model import Binding, Exchange, ExchangeBinding, Message, Queue
from mycelia.amqp.topology import Part
from mycelia.errors import (
    AccessRefused,
    BrokerUnavailable,
    LinkError,
    MessageTooLarge,
    PublishRejected,
    TopologyError,
)

__all__ = [
    "NOT_FOUND",
    "NOT_POSSIBLE",
    "QueueNodeDown",
    "blames_a_publishing",
    "could_mean",
    "declaration_refused",
    "describe_part",
    "find_culprit",
    "max_message_bytes",
    "publishing_nacked",
    "publishing_refused",
]

NOT_FOUND: Final = 404
"""No such exchange, queue or virtual host; or the node that holds the queue is down."""
NOT_POSSIBLE: Final = (502, 503, 530, 540)
"""Reply codes that cost the whole connection, for what this broker or queue cannot do."""

# Compiled when first needed, by `re` itself: most processes never are refused anything.
_TOO_LARGE: Final = r"message size (\d+) is larger than (?:configured )?max size (\d+)"
_TOPIC: Final = r"access to topic '(.*?)' in exchange '(.*?)' in vhost"
_EXCHANGE: Final = r"exchange '(.*?)' in vhost"
_EXPIRATION: Final = r"invalid expiration '(.*?)'"
_USER_ID: Final = r"user_id property set to '(.*?)'"
_UNREADABLE: Final = frozenset((501, 502, 503, 504, 505, 530, 540, 541))
"""Codes that say something we sent was at fault. 541 (INTERNAL_ERROR) is what RabbitMQ answers to headers that it cannot
read; 320 (CONNECTION_FORCED), 506 (out of resources) and no code at all are the broker's or the network's own affair."""


# --- publishings ---------------------------------------------------------------------------------


def blames_a_publishing(code: int) -> bool:
    """Whether a connection closed with `code` was closed over something that we sent."""
    return code in _UNREADABLE


def could_mean(code: int, text: str) -> Callable[[Message], bool] | None:
    """Whether the refusal of a channel can have been about a given message. `None`: the text does not tell."""
    if (sizes := max_message_bytes(text)) is not None:
        size, _ = sizes
        return lambda message: len(message.body) == size
    if (found := re.search(_TOPIC, text)) is not None:
        routing_key, exchange = found.groups()
        return lambda message: (message.exchange, message.routing_key) == (exchange, routing_key)
    if (found := re.search(_EXCHANGE, text)) is not None:
        exchange = found[1]
        return lambda message: message.exchange == exchange
    if (found := re.search(_EXPIRATION, text)) is not None:
        expiration = found[1]
        return lambda message: message.properties.expiration == expiration
    if (found := re.search(_USER_ID, text)) is not None:
        user = found[1]
        return lambda message: message.properties.user_id == user
    return None


def find_culprit(messages: Iterable[Message], code: int, text: str) -> int | None:
    """Which of `messages`, in the order they were sent, the refusal is about: the first that it can mean."""
    matches = could_mean(code, text)
    if matches is None:
        return None
    return next((index for index, message in enumerate(messages) if matches(message)), None)


def max_message_bytes(text: str) -> tuple[int, int] | None:
    """The refused size and the most that the broker takes, where `text` names them."""
    found = re.search(_TOO_LARGE, text)
    return None if found is None else (int(found[1]), int(found[2]))


def publishing_refused(message: Message, code: int, text: str) -> LinkError:
    """The error for the publisher of `message`, over which the broker closed the channel or the connection."""
    if (sizes := max_message_bytes(text)) is not None:
        return MessageTooLarge(message.target, *sizes)
    what = f"{message.target}: {code} {text}"
    if code == NOT_FOUND:
        return TopologyError(f"{what}. Declare the exchange, or check its name.")
    if code == 403:
        return AccessRefused(
            f"{what}. Give the user the permission to write, or publish to another exchange."
        )
    return PublishRejected(what)


def publishing_nacked(message: Message, attempts: int, waited_s: float) -> PublishRejected:
    """The error for the publisher of `message`, which the broker has nacked `attempts` times over."""
    tried = f"{attempts} times within {waited_s:.1f} s " if attempts > 1 else ""
    return PublishRejected(
        f"{message.target}: the broker did not take it (basic.nack) {tried}".rstrip()
        + ": a queue bound there is full (x-overflow: reject-publish), or has no leader. "
        "Consume faster, or publish later."
    )


# --- declarations --------------------------------------------------------------------------------


class QueueNodeDown(BrokerUnavailable):
    """The broker answers, but the node of its cluster that holds the queue does not."""


_NODE_DOWN = ("down or inaccessible", "is down", "is stopped by supervisor", "due to timeout")
"""What RabbitMQ says (404) of a queue that exists on a node that does not answer; the last two are 4.x's, for one that was stopped and,
after a minute, for one that died."""


def declaration_refused(what: str, code: int, text: str) -> LinkError:
    """The error that the broker's answer about `what` amounts to."""
    said = f"{what}: {code} {text}"
    if code == NOT_FOUND and any(words in text for words in _NODE_DOWN):
        return QueueNodeDown(said)
    if code == 403 and "refused for user" in text:
        return AccessRefused(
            f"{said}. Give the user the permission, or declare it with another user."
        )
    if code == 0:
        return BrokerUnavailable(said)
    return TopologyError(said)


def describe_part(part: Part) -> str:
    """`part` in words, for errors and log lines."""
    if isinstance(part, Exchange):
        return f'exchange "{part.name}" ({part.type})'
    if isinstance(part, Queue):
        return f'queue "{part.name}"'
    if isinstance(part, ExchangeBinding):
        return f'binding of exchange "{part.destination}" to exchange "{part.exchange}"'
    assert isinstance(part, Binding)
    return f'binding of queue "{part.queue}" to exchange "{part.exchange}" by "{part.routing_key}"'
