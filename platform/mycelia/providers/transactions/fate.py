"""What becomes of a row whose message could not be published: pure, over errors.

| the error | the row |
|---|---|
| `BrokerUnavailable`, `BrokerBlocked` | given back as it is: it is not about this message, and no attempt of it |
| one that is the same tomorrow: too large, no such exchange, not allowed, no such serializer | parked |
| anything else (`basic.nack`, no queue for a mandatory message, a middleware's own) | put off, as its `Retry` says; then parked |
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from mycelia.errors import (
    AccessRefused,
    BrokerBlocked,
    BrokerUnavailable,
    ConfigError,
    ContractError,
    MessageTooLarge,
    ProtocolError,
    TopologyError,
    describe,
)
from mycelia.policies.retry import Retry

__all__ = ["Fate", "LeftFree", "Park", "PutOff", "fate_of", "lines_of"]

_AWAY = (BrokerUnavailable, BrokerBlocked)
_FOR_GOOD = (
    AccessRefused,
    ConfigError,
    ContractError,
    MessageTooLarge,
    ProtocolError,
    TopologyError,
)
_MAX_REASON = 2000


@dataclass(frozen=True, slots=True)
class LeftFree:
    """Any instance may take it again at once."""


@dataclass(frozen=True, slots=True)
class PutOff:
    """It and what follows it under its key wait."""

    pause: float
    """Seconds."""
    reason: str


@dataclass(frozen=True, slots=True)
class Park:
    """It stays where it is until somebody has seen to it; what follows it goes on."""

    reason: str


Fate = LeftFree | PutOff | Park


def fate_of(error: BaseException, attempt: int, retry: Retry, random: Random) -> Fate:
    """What becomes of a row.

    Args:
        attempt: which attempt this was, from 1; those that found no broker do not count.
    """
    if isinstance(error, _AWAY):
        return LeftFree()
    # What PostgreSQL's text cannot hold would keep the row from being parked.
    reason = describe(error).replace("\0", "\\0")[:_MAX_REASON]
    if isinstance(error, _FOR_GOOD):
        return Park(reason)
    pause = retry.delay_after(error, attempt, random)
    return Park(reason) if pause is None else PutOff(pause, reason)


def lines_of(rows: list[Any]) -> list[list[Any]]:
    """Rows (with `id` and `key`) as lines, each to be published one after the other, beside the others: one for each key.

    A row without a key is a line of its own.
    """
    lines: list[list[Any]] = []
    by_key: dict[str, list[Any]] = {}
    for row in sorted(rows, key=lambda row: row.id):
        line = None if row.key is None else by_key.get(row.key)
        if line is None:
            line = []
            lines.append(line)
            if row.key is not None:
                by_key[row.key] = line
        line.append(row)
    return lines
