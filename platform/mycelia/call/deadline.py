"""Deadlines: absolute on the monotonic clock inside a process, milliseconds since the epoch on the wire.

The wire carries an absolute wall-clock time because a message's wait in a queue counts, and only an absolute
time sees it. It assumes clocks in step (NTP): a callee whose clock is ahead by more than the time left would drop
live requests. The broker's own expiry (`expiration`) is set beside it and needs no clock in step.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["DEFAULT_TIMEOUT", "DeadlineWheel", "deadline_to_wire", "monotonic_from_wall", "tighter"]

K = TypeVar("K", bound=Hashable)

DEFAULT_TIMEOUT = 30.0
"""Seconds a call may take where nobody said otherwise; go-micro and MassTransit use the same."""


def deadline_to_wire(deadline: float, *, monotonic: float, wall: float) -> int:
    """Milliseconds since the epoch for `deadline`, given both clocks' readings of now, in seconds."""
    return int((wall + (deadline - monotonic)) * 1000)


def monotonic_from_wall(*, monotonic: float, wall: float) -> float:
    """What is added to seconds since the epoch for seconds on the monotonic clock, given both clocks' readings of now.

    For a batch of deadlines (`wire.read_deadline_ms()`): `deadline_ms / 1000 + monotonic_from_wall(…)`.
    """
    return monotonic - wall


def tighter(first: float | None, second: float | None) -> float | None:
    """The earlier of two deadlines; `None` counts as never."""
    if first is None:
        return second
    if second is None:
        return first
    return first if first < second else second


class DeadlineWheel(Generic[K]):
    """Many deadlines behind one timer: a key costs two dictionary steps to add and one to remove.

    An event-loop timer for each call would cost about as much as the rest of the call's bookkeeping. Keys fall
    into slots of `resolution_s`; a key is reported at most that much late, never early. Pure: time comes in as an
    argument. Bounded by what the caller keeps in it.
    """

    __slots__ = ("_resolution", "_slots")

    def __init__(self, resolution_s: float = 0.01) -> None:
        self._resolution = resolution_s
        self._slots: dict[int, set[K]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def add(self, key: K, deadline: float) -> int:
        """Watch `key`. Returns its slot, to be given back to `discard()`."""
        slot = int(deadline / self._resolution) + 1
        keys = self._slots.get(slot)
        if keys is None:
            self._slots[slot] = {key}
        else:
            keys.add(key)
        return slot

    def discard(self, key: K, slot: int) -> None:
        """Stop watching `key`, put into `slot` by `add()`."""
        keys = self._slots.get(slot)
        if keys is not None:
            keys.discard(key)
            if not keys:
                del self._slots[slot]

    def expire(self, now: float) -> list[K]:
        """Take out and return every key whose deadline is not after `now`, in no particular order."""
        horizon = int(now / self._resolution)
        due = [slot for slot in self._slots if slot <= horizon]
        return [key for slot in due for key in self._slots.pop(slot)]

    def next_expiry(self) -> float | None:
        """When `expire()` is worth calling again; `None` when nothing is watched."""
        if not self._slots:
            return None
        return min(self._slots) * self._resolution
