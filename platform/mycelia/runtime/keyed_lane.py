"""A lane whose calls are handled in order for each key, and side by side for different keys.

A call whose key is at work waits behind it; calls of other keys pass. A key is at work from the moment its first call is taken
in until the last is settled, so there is one small record for each key that is here, and none for the others. Of each key at
most one call, the key's head, is among what the lane below sees: it waits for a slot, runs, or pauses before another attempt.

A paused head keeps no slot, only its place in the prefetch, and so do those behind it. They are bounded (`most_behind`): a pause
ends early when too many wait, and a head that then fails is not tried again. So a key that fails holds up its own calls only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, Final

import msgspec

from mycelia.call import Call, Outcome
from mycelia.errors import KeyParked
from mycelia.runtime.lane import Lane, LaneStatistics

__all__ = ["KeyOrder", "KeyedLane"]

MAX_PARKED: Final = 100_000
"""Keys that are remembered as parked; then the first ones are let go. Arbitrary; some 10 MB."""

_NONE: Final = object()


class KeyOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What a keyed lane is told of its keys."""

    key_of: Callable[[Call], Hashable]
    """A call's key; called on the event loop when the call comes. What it raises refuses the call."""
    releases: Callable[[Call], bool]
    """Whether this call, when it is its turn, releases its key if that is parked."""
    most_behind: Callable[[], int]
    """Calls that may wait behind one that pauses before another attempt."""


class KeyedLane(Lane):
    """A lane in order by key. A call whose `refusal` is set when it comes is refused when it is its turn.

    Args:
        order: what it is told of the keys.
        options: those of `Lane`.
    """

    def __init__(self, *arguments: Any, order: KeyOrder, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._order = order
        self._behind: dict[Hashable, deque[Call] | None] = {}
        """The keys at work, and what waits behind each one's head."""
        self._behind_count = 0
        self._keys: dict[Call, Hashable] = {}
        """The heads."""
        self._paused: dict[Hashable, tuple[Call, asyncio.TimerHandle]] = {}
        """Heads that have failed, and what ends their pauses."""
        self._parked: dict[Hashable, None] = {}
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """Whether it takes nothing more: what does not end well now goes back."""
        return self._is_over

    @property
    def waiting(self) -> int:
        """Calls that are here and do not run: for a slot, behind their key, in a pause."""
        return len(self._backlog) + self._behind_count + len(self._paused)

    @property
    def waiting_bytes(self) -> int:
        calls = [call for behind in self._behind.values() if behind for call in behind]
        bodies = sum(len(call.message.body) for call in calls if call.message is not None)
        return super().waiting_bytes + bodies

    @property
    def parked(self) -> int:
        """Keys that are parked."""
        return len(self._parked)

    def statistics(self) -> LaneStatistics:
        return msgspec.structs.replace(super().statistics(), waiting=self.waiting)

    # --- a call comes in ----------------------------------------------------------------------

    def submit(self, call: Call) -> None:
        """Start a worker for `call` when those of its key that came before are settled, and a slot is free. Never waits."""
        try:
            key = self._order.key_of(call)
            behind: Any = self._behind.get(key, _NONE)
        except BaseException as exc:  # noqa: BLE001  the payload's, the user's function's, or the key cannot be one
            self.refuse(call, exc if call.refusal is None else call.refusal)
            return
        if behind is _NONE:
            self._behind[key] = None
            self._keys[call] = key
            super().submit(call)
            return
        if behind is None:
            behind = self._behind[key] = deque()
        behind.append(call)
        self._behind_count += 1
        if key in self._paused and len(behind) >= self._order.most_behind():
            self._resume(key)

    def _start(self, call: Call, waited: bool = False) -> None:
        key = self._keys[call]
        if waited and call.message is not None and call.message.is_lost:
            self._counts.lost += 1  # it comes again
            self._free(call)
        elif call.refusal is not None:
            self.refuse(call, call.refusal)
        elif key in self._parked and not self._releases(call, key):
            self.refuse(call, KeyParked(self.target.name, key))
        else:
            super()._start(call, waited)

    def _releases(self, call: Call, key: Hashable) -> bool:
        is_release = self._order.releases(call)
        if is_release:
            del self._parked[key]
        return is_release

    # --- an outcome goes out ------------------------------------------------------------------

    def _settle(self, call: Call, outcome: Outcome) -> None:
        super()._settle(call, outcome)
        self._free(call)

    def _free(self, call: Call) -> None:
        """`call` is no more: whoever waits behind it is its key's head now."""
        key = self._keys.pop(call, _NONE)
        if key is _NONE:
            return
        behind = self._behind[key]
        if not behind:
            del self._behind[key]
            return
        following = behind.popleft()
        self._behind_count -= 1
        self._keys[following] = key
        self._wait(following)

    def _wait(self, head: Call) -> None:
        self._backlog.append(head)
        self._slots.wait(self)
        self._slots.pump()

    # --- a key that fails ---------------------------------------------------------------------

    def try_again(self, call: Call, again: Call, after: float) -> bool:
        """Run `again` in `call`'s place, in `after` seconds; for while `call` is being settled.

        Returns whether that is possible: not when it is over, nor with too many behind it.
        """
        key = self._keys.get(call, _NONE)
        if key is _NONE or self._is_over:
            return False
        behind = self._behind[key]
        if behind is not None and len(behind) >= self._order.most_behind():
            return False
        del self._keys[call]
        self._keys[again] = key
        self._paused[key] = again, self._loop.call_later(after, self._resume, key)
        return True

    def _resume(self, key: Hashable) -> None:
        again, timer = self._paused.pop(key)
        timer.cancel()
        self._wait(again)

    def park(self, call: Call) -> bool:
        """Refuse all that follows `call` of its key, with `KeyParked`. Returns whether that is new."""
        key = self._keys.get(call, _NONE)
        if key is _NONE or key in self._parked:
            return False
        if len(self._parked) >= MAX_PARKED:
            del self._parked[next(iter(self._parked))]
        self._parked[key] = None
        return True

    # --- the end ------------------------------------------------------------------------------

    def take_backlog(self) -> list[Call]:
        """Give up the calls that have not started, each key's in order; without those that pause."""
        heads = super().take_backlog()
        waiting = [*heads]
        for key, behind in self._behind.items():
            if behind:
                waiting += behind
                self._behind[key] = None
        self._behind_count = 0
        for head in heads:
            del self._behind[self._keys.pop(head)]
        return waiting

    def give_back_backlog(self) -> None:
        """Settle the calls that do not run with `GiveBack`, those that pause included. Nothing is tried again from now on."""
        self._is_over = True
        self._end_pauses(list(self._paused))
        super().give_back_backlog()

    def _end_pauses(self, keys: list[Hashable]) -> None:
        for key in keys:
            again, timer = self._paused.pop(key)
            timer.cancel()
            self._backlog.appendleft(again)

    def drop_lost(self) -> list[Call]:
        """As `Lane.drop_lost()`. Lost calls that pause are dropped as well, and not returned: they had begun."""
        dropped: list[Call] = []
        for key, behind in self._behind.items():
            if behind:
                kept = deque(call for call in behind if not _is_lost(call))
                dropped += [call for call in behind if _is_lost(call)]
                self._behind_count -= len(behind) - len(kept)
                self._behind[key] = kept
        self._counts.lost += len(dropped)
        paused = [key for key, (again, _) in self._paused.items() if _is_lost(again)]
        begun = {self._paused[key][0] for key in paused}
        self._end_pauses(paused)
        heads = super().drop_lost()
        for head in heads:
            self._free(head)
        return [head for head in heads if head not in begun] + dropped

    async def cancel(self, timeout: float = 1.0) -> None:
        self.give_back_backlog()
        await super().cancel(timeout)


def _is_lost(call: Call) -> bool:
    return call.message is not None and call.message.is_lost
