"""Publishings on the wire that the broker has not confirmed yet. Pure.

A channel in confirm mode numbers its publishings 1, 2, 3 …; the broker answers each number with an ack or a nack, singly
or (`multiple`) together with all before it, in any order. A mandatory publishing that no queue is bound for comes back
first (`basic.return`, which carries no number: it is known by its `message_id`) and is then acked like any other.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

__all__ = ["ConfirmWindow"]

T = TypeVar("T")


class ConfirmWindow(Generic[T]):
    """The unconfirmed publishings of one channel, oldest first.

    Args:
        max_messages: how many may be unconfirmed at once.
        max_bytes: how many bytes they may hold together. One message always goes, however large.
    """

    __slots__ = ("_by_message_id", "_bytes", "_items", "_last", "max_bytes", "max_messages")

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self._last = 0
        self._bytes = 0
        self._items: dict[int, tuple[T, int, str | None]] = {}  # in the order of their numbers
        self._by_message_id: dict[str, deque[T]] = {}

    def __len__(self) -> int:
        return len(self._items)

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def has_room(self) -> bool:
        """Whether one more may be sent."""
        return len(self._items) < self.max_messages and self._bytes < self.max_bytes

    @property
    def oldest(self) -> T | None:
        """The one that has been unconfirmed for longest."""
        for item, _, _ in self._items.values():
            return item
        return None

    def find(self, number: int) -> T | None:
        """The one of that number, if it is unconfirmed."""
        entry = self._items.get(number)
        return None if entry is None else entry[0]

    def is_oldest(self, number: int) -> bool:
        """Whether this number is the lowest that is unconfirmed."""
        return next(iter(self._items), 0) == number

    def add(self, item: T, size_bytes: int, returnable_as: str | None = None) -> int:
        """Note that `item` is being sent now. Return its number.

        Args:
            returnable_as: the `message_id` under which a mandatory publishing would come back.
        """
        self._last += 1
        self._items[self._last] = (item, size_bytes, returnable_as)
        self._bytes += size_bytes
        if returnable_as is not None:
            self._by_message_id.setdefault(returnable_as, deque()).append(item)
        return self._last

    def confirm(self, delivery_tag: int, multiple: bool) -> list[T]:
        """Take out what this ack or nack answers, oldest first. What is not waiting (any more) is left out."""
        if not multiple:
            entry = self._items.pop(delivery_tag, None)
            return [] if entry is None else [self._drop(entry)]
        numbers = []
        for number in self._items:
            if number > delivery_tag:
                break
            numbers.append(number)
        return [self._drop(self._items.pop(number)) for number in numbers]

    def find_returned(self, message_id: str | None) -> T | None:
        """The oldest unconfirmed mandatory publishing with this `message_id`. It stays until it is confirmed."""
        waiting = self._by_message_id.get(message_id) if message_id is not None else None
        return waiting[0] if waiting else None

    def reset(self) -> list[T]:
        """Start anew on a new channel. Return everything unconfirmed, oldest first: it has to be sent again."""
        items = [entry[0] for entry in self._items.values()]
        self._items.clear()
        self._by_message_id.clear()
        self._bytes = 0
        self._last = 0
        return items

    def _drop(self, entry: tuple[T, int, str | None]) -> T:
        item, size, message_id = entry
        self._bytes -= size
        if message_id is not None:
            waiting = self._by_message_id[message_id]
            waiting.remove(item)
            if not waiting:
                del self._by_message_id[message_id]
        return item
