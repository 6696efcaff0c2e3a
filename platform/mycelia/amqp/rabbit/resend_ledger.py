"""What was written without a confirm, until the broker has provably taken it. Pure.

A channel's methods are processed in order. So the answer to any synchronous method proves that every publishing written
before it on that channel has been processed: a mark notes how far the ledger reached when the method was written, and
its answer drops everything up to there. What is left when the channel or connection ends is in doubt, and nothing else is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from mycelia.amqp.model import Message

__all__ = ["ResendLedger", "Written"]

Written = tuple[Message, float | None]
"""A message, and the monotonic time until which it may be sent again (`None`: never)."""


class ResendLedger:
    """The unproven publishings of one channel, oldest first.

    Over its bounds `trim()` drops the oldest and counts them: they are the likeliest to have been processed.

    Args:
        max_messages, max_bytes: how much is kept. A mark every 50 ms leaves a thousand messages of a service that
            answers twenty thousand requests a second; more piles up only while the broker does not answer.

    Attributes:
        add: note that a message is being written now: the append of a deque, because that is once for each publishing.
        dropped: messages that had to be forgotten unproven.
    """

    __slots__ = ("_gone", "_items", "add", "dropped", "max_bytes", "max_messages")

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.dropped = 0
        self._items: deque[Written] = deque()
        self._gone = 0
        """How many were here before those that are."""
        self.add: Callable[[Written], None] = self._items.append

    def __len__(self) -> int:
        return len(self._items)

    @property
    def size_bytes(self) -> int:
        """Of all bodies kept; walks them all."""
        return sum(len(message.body) for message, _ in self._items)

    def mark(self) -> int:
        """How far the ledger reaches now: for the answer to a method that is being written now."""
        return self._gone + len(self._items)

    def prove(self, mark: int) -> None:
        """Forget all that had been written at `mark`."""
        forget = self._items.popleft
        for _ in range(mark - self._gone):
            forget()
        self._gone = max(self._gone, mark)

    def take(self) -> list[Written]:
        """Everything unproven, oldest first; the ledger is empty then."""
        items = list(self._items)
        self._gone += len(items)
        self._items.clear()
        return items

    def trim(self) -> None:
        """Keep to the bounds."""
        items = self._items
        size = self.size_bytes
        while len(items) > 1 and (size > self.max_bytes or len(items) > self.max_messages):
            size -= len(items.popleft()[0].body)
            self._gone += 1
            self.dropped += 1
