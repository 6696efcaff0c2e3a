"""What becomes of messages whose channel is gone while somebody still works on them. Pure: no I/O, time is an argument.

The broker delivers such a message again, to this process or another. If to this one, then it must not run beside itself,
nor again when it has been done: what is told of the old delivery from now on (`ack()`) is kept, and told of the new one.

    working   the new delivery takes the old one's place: its end settles the new one
    done      the new delivery is settled at once; also what was acknowledged shortly before, as that may have been on its way
    not begun it was waiting here when the channel went: the new delivery is not counted as a return
    not here  it was on its way to us, as far as anybody can tell: the same, for as many as can have been

A message is known by its id (`key_of`) and its body, and only a delivery that the broker marks as redelivered is
compared. Messages without an id are not remembered: they run again. Nothing is done, and nothing costs anything, until a
channel is lost. Bounded: at most `MAX_REMEMBERED` messages, the oldest forgotten first, each for at most `REMEMBER_S`; work
that goes on is remembered for as long as it goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Final

from mycelia.amqp import Delivery
from mycelia.entrypoints.origin import origin_of
from mycelia.wire import read_attempt, read_returns

__all__ = ["MAX_REMEMBERED", "REMEMBER_S", "Remembered", "event_key", "request_key"]

MAX_REMEMBERED: Final = 10_000
"""Arbitrary; some 2 MB. A consumer loses at most its prefetch at once, rarely above a few hundred."""

REMEMBER_S: Final = 600.0
"""Seconds. Arbitrary; the broker delivers again within moments, unless nobody can take it."""

ON_THEIR_WAY_S: Final = 30.0
"""Seconds after a loss in which an unknown redelivery may be one that was on its way to us. Arbitrary; reconnecting to a
broker that is there takes a few."""

MAX_RECENT: Final = 128
MAX_RECENT_BYTES: Final = 16 * 1024
"""How many acknowledged messages are kept in case their channel goes, and how large each may be. Arbitrary; at most 2 MB.
An acknowledgement waits four milliseconds at most and travels some more: 128 are 20 ms of a service that answers 6,000 requests a
second. Each costs its memory a second use: with 512 a call cost 3 % more."""

RECENT_S: Final = 60.0
"""Seconds for which those are remembered: nearly all have been settled for good."""

LOOK_EVERY_S: Final = 1.0

KeyOf = Callable[[Delivery], Hashable | None]


def event_key(delivery: Delivery) -> Hashable | None:
    """What a message of one queue is known by: its `message_id`, and which attempt it is."""
    properties = delivery.properties
    if properties.message_id is None:
        return None
    headers = properties.headers
    return properties.message_id, read_attempt(headers), read_returns(headers)


def request_key(delivery: Delivery) -> Hashable | None:
    """As `event_key()`, for requests: who waits for the reply, under which correlation id."""
    properties = delivery.properties
    if properties.reply_to is None or properties.correlation_id is None:
        return event_key(delivery)
    headers = properties.headers
    caller = (properties.reply_to, properties.correlation_id)
    return caller, read_attempt(headers), read_returns(headers)


class Kept:
    """One lost message, and the settler of its old delivery: remembers what it is told."""

    __slots__ = ("at", "body", "delivery", "is_done", "is_forgotten")

    is_lost: Final = True

    def __init__(self, delivery: Delivery, at: float) -> None:
        self.at = at
        self.body = _digest(delivery)
        self.delivery: Delivery | None = delivery
        """The old delivery, while it is worked on."""
        self.is_done = False
        self.is_forgotten = False

    def ack(self, delivery_tag: int) -> None:
        self.is_done = True
        self.delivery = None

    def nack(self, delivery_tag: int, requeue: bool) -> None:
        # It was to go back, and has: whoever gets it next runs it.
        self.is_forgotten = True
        self.delivery = None

    def go_on_with(self, new: Delivery) -> None:
        """Let the old delivery be settled in the new one's name."""
        old = self.delivery
        assert old is not None
        old.settler = new.settler
        old.delivery_tag = new.delivery_tag
        old.consumer_tag = new.consumer_tag
        old.redelivered = True


class Remembered:
    """What one consumer has lost. False where there is nothing.

    Args:
        key_of: what a delivery is known by; `None` for nothing.
    """

    def __init__(
        self, key_of: KeyOf, *, limit: int = MAX_REMEMBERED, seconds: float = REMEMBER_S
    ) -> None:
        self._key_of = key_of
        self._limit = limit
        self._seconds = seconds
        self._kept: dict[Hashable, list[Kept]] = {}
        self._waiting: dict[Hashable, list[Kept]] = {}
        self._count = 0
        self._recent: deque[Delivery] = deque(maxlen=MAX_RECENT)
        self._look_at = 0.0
        self._on_their_way = 0
        self._expected_until = 0.0

    def __bool__(self) -> bool:
        return self._count > 0 or self._on_their_way > 0

    def expect(self, on_their_way: int, now: float) -> None:
        """A channel is lost, and up to so many messages with it that have not arrived here."""
        self._on_their_way = max(on_their_way, 0)
        self._expected_until = now + ON_THEIR_WAY_S

    def __len__(self) -> int:
        return self._count

    def acknowledged(self, delivery: Delivery) -> None:
        """`delivery` has just been acknowledged: should its channel go now, the broker may not know."""
        if len(delivery.body) <= MAX_RECENT_BYTES:
            self._recent.append(delivery)

    def keep(self, deliveries: Iterable[Delivery], now: float) -> None:
        """Of `deliveries`, which are worked on, remember those that are lost."""
        for delivery in deliveries:
            if delivery.is_lost and type(delivery.settler) is not Kept:
                kept = self._add(self._kept, delivery, now)
                if kept is not None:
                    delivery.settler = kept
        self._keep_recent(now)

    def _keep_recent(self, now: float) -> None:
        for delivery in self._recent:
            if delivery.is_lost and type(delivery.settler) is not Kept:
                kept = self._add(self._kept, delivery, now - max(self._seconds - RECENT_S, 0.0))
                if kept is not None:
                    kept.ack(delivery.delivery_tag)
        self._recent.clear()

    def drop(self, deliveries: Iterable[Delivery], now: float) -> None:
        """Remember `deliveries`, which are lost, as not begun."""
        for delivery in deliveries:
            kept = self._add(self._waiting, delivery, now)
            if kept is not None:
                kept.delivery = None

    def claim(self, batch: list[Delivery], now: float) -> list[Delivery]:
        """Settle, or lead to their old deliveries, what is known of `batch`. Returns the rest, to be run.

        Of that, what is known as not begun is marked as not redelivered, so that nobody counts it as a return.
        """
        rest: list[Delivery] = []
        for delivery in batch:
            if not delivery.redelivered:
                rest.append(delivery)
                continue
            key = self._key_of(delivery)
            kept = self._take(self._kept, key, delivery)
            if kept is not None:
                if kept.is_done:
                    delivery.ack()
                    self.acknowledged(delivery)
                else:
                    kept.go_on_with(delivery)
                continue
            if self._take(self._waiting, key, delivery) is not None:
                delivery.redelivered = False
            elif self._on_their_way > 0 and now < self._expected_until:
                self._on_their_way -= 1
                delivery.redelivered = False
            rest.append(delivery)
        if now >= self._expected_until:
            self._on_their_way = 0
        if self._count and now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S  # it walks through all of them
            self.forget(now)
        return rest

    def forget(self, now: float) -> None:
        """Let go what is done with for longer than it need be remembered."""
        oldest = now - self._seconds
        for table in (self._kept, self._waiting):
            for key, entries in list(table.items()):
                left = [
                    kept
                    for kept in entries
                    if not kept.is_forgotten and (kept.at >= oldest or kept.delivery is not None)
                ]
                if len(left) < len(entries):
                    self._count -= len(entries) - len(left)
                    if left:
                        table[key] = left
                    else:
                        del table[key]

    def _add(
        self, table: dict[Hashable, list[Kept]], delivery: Delivery, now: float
    ) -> Kept | None:
        key = self._key_of(delivery)
        if key is None:
            return None
        if self._count >= self._limit:
            self.forget(now)
            if self._count >= self._limit:
                self._forget_oldest()
        kept = Kept(delivery, now)
        table.setdefault(key, []).append(kept)
        self._count += 1
        return kept

    def _forget_oldest(self) -> None:
        table = self._waiting or self._kept  # a dict's order is that of arrival
        key = next(iter(table))
        entries = table[key]
        entries.pop(0)
        self._count -= 1
        if not entries:
            del table[key]

    def _take(
        self, table: dict[Hashable, list[Kept]], key: Hashable | None, delivery: Delivery
    ) -> Kept | None:
        """The first entry for the same message, which is then gone: each answers one redelivery."""
        entries = table.get(key) if key is not None else None
        if entries is None:
            return None
        body = _digest(delivery)
        for position, kept in enumerate(entries):
            if kept.body == body and not kept.is_forgotten:
                del entries[position]
                self._count -= 1
                if not entries:
                    del table[key]
                return kept
        return None


def _digest(delivery: Delivery) -> tuple[str, int, int]:
    """What must be the same beside the id. The body itself need not be kept for it."""
    return origin_of(delivery)[1], len(delivery.body), hash(delivery.body)
