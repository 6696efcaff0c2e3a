"""How a delay is spelled in queues, and what a message carries through them. Pure; the whole picture is in `delays`.

A message on its way has these headers more; `restored()` takes them away:

| header | meaning |
|---|---|
| `x-mycelia-delay-4s`, … | it passes this level |
| `x-mycelia-delay-first` | the level it begins with |
| `x-mycelia-delay-to` | `queue:NAME` or `exchange:NAME`, where it is going |
| `x-mycelia-delay-may-vanish` | nobody need be there for it |
| `x-mycelia-exchange` | the exchange that it was published to |
| `x-mycelia-priority` | its priority, which would let it wait before others, or others before it |
| `x-mycelia-expiration` | its time to live, which would end the wait |
| `x-mycelia-expires-at-ms` | the end of it, counted from the end of the wait |
| `x-mycelia-deaths` | what `x-death` and its kin said before; a level that it seems to have died in before would drop it |
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

from mycelia.amqp.model import Binding, Delivery, Exchange, Message, Properties, Queue
from mycelia.amqp.topology import Part

__all__ = [
    "DELIVER",
    "EXPIRATION_HEADER",
    "EXPIRES_AT_HEADER",
    "GOAL_HEADER",
    "LEAST_DELAY_S",
    "MAX_DELAY_S",
    "REFRESH_S",
    "VANISH_HEADER",
    "Family",
    "expiration_of",
    "family_of",
    "is_from_levels",
    "is_on_its_way",
    "on_its_way",
    "restored",
    "time_of",
    "units_of",
    "when",
]

UNIT_S: Final = 0.25
LEAST_DELAY_S: Final = UNIT_S
"""The shortest delay; a shorter one is as long as this."""
MAX_DELAY_S: Final = 45 * 86400.0
"""The longest delay. A queue may expire after 49.7 days at most (2^32 ms), and must outlive every message on its way to it."""
REFRESH_S: Final = 3600.0
"""How old the last declaration of a level may be when it is published to."""

DELIVER: Final = "mycelia.delay.deliver"
"""The exchange behind the last level."""

PREFIX: Final = "x-mycelia-delay-"
ENTER_HEADER: Final = "x-mycelia-delay-first"
GOAL_HEADER: Final = "x-mycelia-delay-to"
VANISH_HEADER: Final = "x-mycelia-delay-may-vanish"
ORIGIN_HEADER: Final = "x-mycelia-exchange"
PRIORITY_HEADER: Final = "x-mycelia-priority"
DEATHS_HEADER: Final = "x-mycelia-deaths"
EXPIRES_AT_HEADER: Final = "x-mycelia-expires-at-ms"
EXPIRATION_HEADER: Final = "x-mycelia-expiration"

_DEATHS: Final = (
    "x-death",
    *(
        f"x-{which}-death-{what}"
        for which in ("first", "last")
        for what in ("exchange", "queue", "reason")
    ),
)
"""What the broker writes when it dead-letters; 3.10 knows no `x-last-death-…`."""
_MAX_EXPIRATION_DIGITS: Final = 15


class Family:
    """Levels that serve delays up to the same length, and live equally long."""

    def __init__(self, name: str, levels: int, expires_s: float) -> None:
        self.name = name
        """Of the exchange that lets a message in, too."""
        self.levels = levels
        self.expires_ms = int(expires_s * 1000)

    def label(self, level: int) -> str:
        """How long a message stays in `level`, as its name says."""
        ms = int(UNIT_S * 1000) << level
        return f"{ms}ms" if ms < 1000 else f"{ms // 1000}s"

    def queue(self, level: int) -> str:
        return f"{self.name}.{self.label(level)}"

    def onward(self, level: int) -> str:
        """The exchange behind `level`: on to the next lower one whose digit is set, and then to the goal."""
        return DELIVER if level == 0 else f"{self.name}.below.{self.label(level)}"

    def path(self, units: int) -> list[int]:
        """The levels of a delay, in the order of passing."""
        return [level for level in reversed(range(self.levels)) if units >> level & 1]

    def queues(self, units: int) -> list[str]:
        """The queues of a delay, in the order of passing."""
        return [self.queue(level) for level in self.path(units)]

    def parts(self, level: int) -> Iterator[Part]:
        """One level: its queue, the ways in, and the exchange behind."""
        name = self.queue(level)
        yield Exchange(self.name, "headers")
        for lower in range(1, level + 1):  # a chain of alternates has to be whole
            yield self._below(lower)
        yield Queue(
            name,
            arguments={
                "x-queue-type": "quorum",
                "x-message-ttl": int(UNIT_S * 1000) << level,
                "x-expires": self.expires_ms,
                "x-overflow": "reject-publish",
                "x-dead-letter-strategy": "at-least-once",
                "x-dead-letter-exchange": self.onward(level),
            },
        )
        yield Binding(name, self.name, "", when(ENTER_HEADER, self.label(level)))
        if level + 1 < self.levels:
            yield self._below(level + 1)
            yield Binding(name, self.onward(level + 1), "", when(PREFIX + self.label(level), "1"))

    def _below(self, level: int) -> Exchange:
        return Exchange(
            self.onward(level),
            "headers",
            arguments={"alternate-exchange": self.onward(level - 1)},
        )


_SHORT: Final = Family("mycelia.delay.short", 14, 24 * 3600)
"""Up to 2^14 quarter seconds (68 minutes): what retries take. Gone a day after its last use."""
_LONG: Final = Family("mycelia.delay.long", 24, 49.7 * 86400)
"""Up to 2^24 quarter seconds, of which `MAX_DELAY_S` may be used."""


_BELOW: Final = tuple(f"{family.name}.below." for family in (_SHORT, _LONG))
"""What the names of the exchanges behind the levels begin with, but for the last."""


def units_of(delay: float) -> int:
    """A delay in quarter seconds, rounded up, and at least one."""
    return max(math.ceil(round(delay / UNIT_S, 6)), 1)


def time_of(delay: float) -> float:
    """How long a delay of so many seconds takes; one of 0 is none."""
    return units_of(min(delay, MAX_DELAY_S)) * UNIT_S if delay > 0 else 0.0


def family_of(units: int) -> Family:
    """Whose levels serve such a delay."""
    return _SHORT if units < 1 << _SHORT.levels else _LONG


def when(header: str, value: str) -> dict[str, Any]:
    """Arguments of a binding to a `headers` exchange: messages that have this header."""
    return {"x-match": "all-with-x", header: value}


def on_its_way(
    message: Message, units: int, goal: str, *, may_vanish: bool, wall: float
) -> Message:
    """`message` as it goes through the levels.

    Args:
        goal: what the header `x-mycelia-delay-to` says.
        wall: now, in seconds since the epoch.
    """
    family = family_of(units)
    path = family.path(units)
    ours: dict[str, Any] = {PREFIX + family.label(level): "1" for level in path}
    ours[ENTER_HEADER] = family.label(path[0])
    ours[GOAL_HEADER] = goal
    if may_vanish:
        ours[VANISH_HEADER] = "1"
    properties = message.properties
    headers = properties.headers or {}
    theirs = {
        name: value
        for name, value in headers.items()
        if name not in _DEATHS and not str(name).startswith(PREFIX)
    }
    if message.exchange:
        theirs.setdefault(ORIGIN_HEADER, message.exchange)
    deaths = {name: headers[name] for name in _DEATHS if name in headers}
    if deaths:
        ours[DEATHS_HEADER] = deaths
    if properties.priority is not None:
        ours[PRIORITY_HEADER] = properties.priority
    expiration = expiration_of(properties)
    if expiration is not None:
        theirs.setdefault(EXPIRATION_HEADER, expiration)
        left_ms = int(expiration) + int(units * UNIT_S * 1000)
        theirs.setdefault(EXPIRES_AT_HEADER, int(wall * 1000) + left_ms)
    again = properties.republished({**theirs, **ours})
    again.priority = again.expiration = None
    again.delivery_mode = 2 if again.delivery_mode is None else again.delivery_mode
    return Message(family.name, message.routing_key, message.body, again, mandatory=True)


def is_from_levels(exchange: str) -> bool:
    """Whether a message that was delivered from this exchange has come through the levels; headers alone may be copied."""
    return exchange == DELIVER or exchange.startswith(_BELOW)


def is_on_its_way(headers: dict[str, Any]) -> bool:
    """Whether a message with these headers has come through the levels, and is not restored yet."""
    return GOAL_HEADER in headers


def restored(delivery: Delivery) -> None:
    """Give a delayed message, as it was delivered, the exchange and the properties back that it was published with.

    Whatever the headers hold is passed over where it is not what this module writes.
    """
    properties = delivery.properties
    headers = properties.headers or {}
    kept = {
        name: value
        for name, value in headers.items()
        if name not in _DEATHS and not str(name).startswith(PREFIX)
    }
    origin = kept.get(ORIGIN_HEADER)
    delivery.exchange = origin if isinstance(origin, str) else ""
    deaths = kept.pop(DEATHS_HEADER, None)
    if isinstance(deaths, dict):
        kept.update((name, deaths[name]) for name in _DEATHS if name in deaths)
    priority = kept.pop(PRIORITY_HEADER, None)
    if type(priority) is int and 0 <= priority <= 255:
        properties.priority = priority
    properties.expiration = expiration_of(properties)
    properties.headers = kept


def expiration_of(properties: Properties) -> str | None:
    """The time to live that its publisher gave the message, in milliseconds: as it is kept, or as it is."""
    kept = (properties.headers or {}).get(EXPIRATION_HEADER)
    for text in (kept, properties.expiration):
        if (
            isinstance(text, str)
            and text.isascii()
            and text.isdigit()
            and len(text) <= _MAX_EXPIRATION_DIGITS
        ):
            return text
    return None
