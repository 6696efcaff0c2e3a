"""How an exchange chooses queues: direct, fanout, topic and headers (AMQP 0-9-1 §3.1.3). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["EXCHANGE_TYPES", "matches"]

EXCHANGE_TYPES = frozenset({"direct", "fanout", "topic", "headers"})


def matches(
    exchange_type: str,
    binding_key: str,
    arguments: Mapping[str, Any],
    routing_key: str,
    headers: Mapping[str, Any],
) -> bool:
    """Whether a message goes through a binding of an exchange of this type."""
    if exchange_type == "direct":
        return binding_key == routing_key
    if exchange_type == "fanout":
        return True
    if exchange_type == "topic":
        return _topic_matches(_words(binding_key), _words(routing_key))
    return _headers_match(arguments, headers)


def _words(key: str) -> list[str]:
    """The words between the dots; an empty key has none, as RabbitMQ reads it."""
    return key.split(".") if key else []


def _topic_matches(pattern: list[str], words: list[str]) -> bool:
    """`*` stands for exactly one word, `#` for none or more."""
    # One row of reachable pattern positions at a time, so that many `#` cannot make it exponential.
    reachable = _skip_hashes(pattern, {0})
    for word in words:
        after = set()
        for at in reachable:
            if at == len(pattern):
                continue
            if pattern[at] == "#":
                after.add(at)
            elif pattern[at] in ("*", word):
                after.add(at + 1)
        reachable = _skip_hashes(pattern, after)
    return len(pattern) in reachable


def _skip_hashes(pattern: list[str], positions: set[int]) -> set[int]:
    reachable = set(positions)
    for at in positions:
        while at < len(pattern) and pattern[at] == "#":
            at += 1
            reachable.add(at)
    return reachable


def _headers_match(arguments: Mapping[str, Any], headers: Mapping[str, Any]) -> bool:
    """`x-match` is `all` (the default), `any`, or their `-with-x` forms that look at `x-` headers too."""
    mode = arguments.get("x-match", "all")
    with_x = mode.endswith("-with-x")
    wanted = {
        key: value
        for key, value in arguments.items()
        if key != "x-match" and (with_x or not key.startswith("x-"))
    }
    hits = (
        key in headers and (value is None or headers[key] == value) for key, value in wanted.items()
    )
    return any(hits) if mode.startswith("any") else all(hits)
