"""What was written without a confirm, until the broker has provably taken it. Pure.

A channel's methods are processed in order. So the answer to any synchronous method proves that every publishing written
before it on that channel has been processed: a mark notes how far the ledger reached when the method was written, and
its answer drops everything up to there. What is left when the channel or connection ends is in doubt, and nothing else is.
"""

from __future__ import annotations

from collections import deque

from mycelia.amqp.model import Message

__all__ = ["ResendLedger", "Written"]

Written = tuple[Message, float | None]
"""A message, and the monotonic time until which it may be sent again (`None`: never)."""


class ResendLedger:
    """The unproven publishings of one channel, oldest first.

    Over its bounds the oldest are dropped and counted: they are the likeliest to have been processed.

    Args:
        max_messages, max_bytes: how much is kept. A mark every 50 ms leaves a thousand messages of a service that
            answers twenty thousand requests a second; more piles up only while the broker does not answer.

    Attributes:
        dropped: messages that had to be forgotten unproven.
    """

    __slots__ = ("_bytes", "_items", "_written", "dropped", "max_bytes", "max_messages")

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.dropped = 0
        self._items: deque[Written] = deque()
        self._written = 0
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def size_bytes(self) -> int:
        """Of all bodies kept."""
        return self._bytes

    def add(self, message: Message, resend_until: float | None) -> None:
        """Note that `message` is being written now."""
        self._items.append((message, resend_until))
        self._written += 1
        self._bytes += len(message.body)
        if self._bytes > self.max_bytes or len(self._items) > self.max_messages:
            self._shrink()

    def mark(self) -> int:
        """How far the ledger reaches now: for the answer to a method that is being written now."""
        return self._written

    def prove(self, mark: int) -> None:
        """Forget all that had been written at `mark`."""
        items = self._items
        for _ in range(len(items) - (self._written - mark)):
            self._bytes -= len(items.popleft()[0].body)

    def take(self) -> list[Written]:
        """Everything unproven, oldest first; the ledger is empty then."""
        items = list(self._items)
        self._items.clear()
        self._bytes = 0
        return items

    def _shrink(self) -> None:
        items = self._items
        while len(items) > 1 and (self._bytes > self.max_bytes or len(items) > self.max_messages):
            self._bytes -= len(items.popleft()[0].body)
            self.dropped += 1
