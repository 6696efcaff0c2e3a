"""How a group comes along on its way to where the log ended when somebody began to look. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

import msgspec

__all__ = ["CatchUpFigures", "CatchingUp"]

OVER_S: Final = 15.0
"""Seconds over which a rate is taken. Owners tell their places once a second, so that a shorter time jumps."""


class CatchUpFigures(msgspec.Struct, frozen=True, kw_only=True):
    """How far it is. In entries: how many records one has is not known before it is read."""

    done: int
    total: int
    per_s: float | None
    """`None`: it has not moved for a while, or nobody can say yet."""
    eta_s: float | None
    """Seconds until it is there, at that rate."""

    @property
    def left(self) -> int:
        return self.total - self.done

    @property
    def share(self) -> float:
        return self.done / self.total if self.total else 1.0


class CatchingUp:
    """
    Args:
        begin: by partition, the offset from which it goes on.
        ends: by partition, the offset at which it has caught up.
    """

    def __init__(self, begin: Mapping[int, int], ends: Mapping[int, int]) -> None:
        self._begin = {one: min(begin.get(one, 0), end) for one, end in ends.items()}
        self._ends = dict(ends)
        self.at = dict(self._begin)
        """By partition, how far it has come; no further than the end."""
        self._heard: deque[tuple[float, int]] = deque()

    def heard(self, places: Mapping[int, int], now: float) -> CatchUpFigures:
        """Take what is known of the partitions, and tell how far it is. `now` is in seconds, of any clock that goes forward."""
        for partition, offset in places.items():
            if partition in self.at:
                self.at[partition] = min(max(offset, self._begin[partition]), self._ends[partition])
        done = sum(self.at[one] - self._begin[one] for one in self.at)
        total = sum(self._ends[one] - self._begin[one] for one in self.at)
        heard = self._heard
        heard.append((now, done))
        while len(heard) > 2 and now - heard[1][0] >= OVER_S:
            heard.popleft()
        before, was = heard[0]
        rate = (done - was) / (now - before) if now > before and done > was else None
        return CatchUpFigures(
            done=done, total=total, per_s=rate, eta_s=(total - done) / rate if rate else None
        )
