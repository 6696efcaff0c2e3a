"""Which deliveries are settled, and what the broker has yet to be told. Pure.

Deliveries carry tags 1, 2, 3 … on their channel and are settled in any order. The broker can be told in two ways: one
tag, or (`multiple`) a tag and all before it. The ledger joins everything finished up to the first unfinished tag into one
`multiple`, and names those beyond it one by one, so a slow handler holds back nobody's acknowledgement.

Rules:
- `_low` is the lowest unfinished tag; everything below it is finished.
- `_beyond` holds the finished tags above `_low`.
- A tag is told at most once. `multiple` therefore always names a tag that is itself untold: RabbitMQ closes the channel
  for a tag it does not have outstanding (`PRECONDITION_FAILED - unknown delivery tag`).
- Rejections are told before acknowledgements, so that a `multiple` never covers a tag whose rejection is still to come.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["AckLedger", "Settlements"]


class Settlements(NamedTuple):
    """What to tell the broker, in this order."""

    rejected: list[tuple[int, bool]]
    """(tag, requeue), each with a `basic.nack` of its own."""
    acked_through: int
    """`basic.ack` of this tag and all before it; 0: none."""
    acked_singly: list[int]
    """A `basic.ack` for each."""


class AckLedger:
    """The deliveries of one consumer on one channel."""

    __slots__ = ("_beyond", "_last", "_low", "_rejected", "_through", "_untold")

    def __init__(self) -> None:
        self._last = 0
        self._low = 1
        self._beyond: set[int] = set()
        self._untold: dict[int, None] = {}  # acknowledged above _low, in the order settled
        self._through = 0  # the highest acknowledged and untold tag below _low
        self._rejected: list[tuple[int, bool]] = []

    @property
    def unsettled(self) -> int:
        """Deliveries handed out and not settled."""
        return self._last + 1 - self._low - len(self._beyond)

    @property
    def has_been_used(self) -> bool:
        """Whether anything was ever handed out."""
        return self._last != 0

    @property
    def last(self) -> int:
        """The highest delivery tag so far; 0 before the first."""
        return self._last

    @property
    def lowest_unsettled(self) -> int:
        """The lowest tag that is handed out (or next to be) and not settled."""
        return self._low

    def delivered_through(self, delivery_tag: int) -> None:
        """Every tag up to this one has been handed out."""
        if delivery_tag > self._last:
            self._last = delivery_tag

    def ack(self, delivery_tag: int) -> bool:
        """Settle as handled. Return whether it was unsettled until now (if not, nothing happens)."""
        if delivery_tag == self._low <= self._last:
            self._low = delivery_tag + 1
            self._through = delivery_tag
            if self._beyond:
                self._close_up()
            return True
        if delivery_tag in self._beyond or not self._low < delivery_tag <= self._last:
            return False
        self._beyond.add(delivery_tag)
        self._untold[delivery_tag] = None
        return True

    def nack(self, delivery_tag: int, requeue: bool) -> bool:
        """Settle as not handled. Return whether it was unsettled until now (if not, nothing happens)."""
        if delivery_tag in self._beyond or not self._low <= delivery_tag <= self._last:
            return False
        self._rejected.append((delivery_tag, requeue))
        if delivery_tag == self._low:
            self._low = delivery_tag + 1
            if self._beyond:
                self._close_up()
        else:
            self._beyond.add(delivery_tag)
        return True

    def _close_up(self) -> None:
        low = self._low
        beyond = self._beyond
        untold = self._untold
        while low in beyond:
            beyond.remove(low)
            if low in untold:
                del untold[low]
                self._through = low
            low += 1
        self._low = low

    def take(self) -> Settlements:
        """What has been settled since the last call."""
        news = Settlements(self._rejected, self._through, list(self._untold))
        if self._rejected:
            self._rejected = []
        self._through = 0
        self._untold.clear()
        return news
