"""What is to happen at a time, durable: the earliest first, and of one time in the order in which it was asked for. Pure."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Any

from mycelia.flow.equal_keys import plain_key
from mycelia.flow.state import StoreReader
from mycelia.flow.state_codec import decode_state, encode_state

__all__ = ["TimerQueue"]


class TimerQueue:
    """Timers by time; each is a hashable payload, and the same payload at the same time is one timer.

    Its rows in the store are `[time, payload] → sequence number`: who starts again has them in the order of before.
    All are read when it is made, since the next one to fire must be known.
    """

    def __init__(self, space: str, store: StoreReader | None = None) -> None:
        self.space = space
        self._at: dict[int, dict[Any, int]] = {}
        self._times: list[int] = []
        """A heap of the times in `_at`; one whose timers were all cancelled may still stand in it."""
        self._next = 0
        self._changed: dict[tuple[int, Any], None] = {}
        if store is not None:
            self._restore(store)

    def _restore(self, store: StoreReader) -> None:
        rows = [_timer_of(key, value) for key, value in store.scan(self.space)]
        for sequence, time, payload in sorted(rows, key=lambda row: row[0]):
            self._at.setdefault(time, {})[payload] = sequence
            self._next = sequence + 1
        self._times = list(self._at)
        heapify(self._times)

    def __len__(self) -> int:
        return sum(map(len, self._at.values()))

    def set(self, time: int, payload: Any) -> None:
        timers = self._at.get(time)
        if timers is None:
            timers = self._at[time] = {}
            heappush(self._times, time)
        if payload not in timers:
            timers[payload] = self._next
            self._next += 1
            self._changed[time, payload] = None

    def cancel(self, time: int, payload: Any) -> None:
        """Forget a timer; nothing if there is none."""
        timers = self._at.get(time)
        if timers is not None and timers.pop(payload, None) is not None:
            self._changed[time, payload] = None

    def next_time(self) -> int | None:
        """When the earliest is due."""
        while self._times and not self._at[self._times[0]]:
            del self._at[heappop(self._times)]
        return self._times[0] if self._times else None

    def take_next(self, now: int) -> list[tuple[int, Any]]:
        """Remove and return the timers of the earliest time, if that is `now` or before; with that time.

        One time after the other: what is done at one may ask for the next.
        """
        time = self.next_time()
        if time is None or time > now:
            return []
        heappop(self._times)
        due = [(time, payload) for payload in self._at.pop(time)]
        self._changed.update(dict.fromkeys(due))
        return due

    def take_changes(self) -> dict[bytes, bytes | None]:
        """What changed since the last time, as rows of the store; one that came and went is told as gone."""
        changed: dict[bytes, bytes | None] = {}
        for time, payload in self._changed:
            sequence = self._at.get(time, {}).get(payload)
            plain = plain_key(payload)
            changed[encode_state([time, plain])] = (
                None
                if sequence is None
                else encode_state(sequence if plain is payload else [sequence, payload])
            )
        self._changed.clear()
        return changed


def _timer_of(key: bytes, value: bytes) -> tuple[int, int, Any]:
    """Its sequence, time and payload. A payload that could be written more plainly, and then is the same timer, is kept as it was."""
    time, payload = decode_state(key)
    kept = decode_state(value)
    if isinstance(kept, list):
        sequence, payload = kept
        return sequence, time, payload
    return kept, time, payload
