"""How long to wait before the next attempt: exponential with full jitter. Pure; the randomness comes in."""

from __future__ import annotations

from random import Random

__all__ = ["Backoff"]


class Backoff:
    """Delays of one series of attempts, in seconds.

    The n-th delay lies between a half and the whole of `first * 2**n`, capped at `cap`: the spread keeps a fleet
    from reconnecting in step when its broker comes back, the lower half keeps anyone from spinning.

    Args:
        first: upper bound of the first delay. 0.2 s lets a restarted listener come up without a visible pause.
        cap: upper bound of every delay. 5 s bounds how long a service stays away after the broker is back.
    """

    __slots__ = ("_attempt", "_cap", "_first", "_random")

    def __init__(self, random: Random, *, first: float = 0.2, cap: float = 5.0) -> None:
        self._random = random
        self._first = first
        self._cap = cap
        self._attempt = 0

    def next_delay(self) -> float:
        """The delay before the next attempt."""
        bound = min(self._cap, self._first * 2.0 ** min(self._attempt, 32))
        self._attempt += 1
        return bound * self._random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """An attempt has worked; the next series starts small again."""
        self._attempt = 0
