"""How long a method usually takes, or how much else there usually is of something. Pure."""

from __future__ import annotations

__all__ = ["ServiceTime"]

WEIGHT_OF_MEAN = 1 / 8
WEIGHT_OF_DEVIATION = 1 / 4
"""Those of TCP's round-trip estimate (RFC 6298, 2): quick enough to follow a change, slow enough to pass over one."""


class ServiceTime:
    """A moving average of durations and of their spread, in seconds.

    `usual` is what a duration seldom exceeds: the mean and one mean deviation. 0.0 before the first.
    """

    __slots__ = ("deviation", "mean", "usual")

    def __init__(self) -> None:
        self.mean = 0.0
        self.deviation = 0.0
        self.usual = 0.0

    def add(self, took: float) -> None:
        """Take another duration into account."""
        if self.usual == 0.0:
            self.mean = took
            self.deviation = took / 2
        else:
            off = took - self.mean
            self.deviation += WEIGHT_OF_DEVIATION * (abs(off) - self.deviation)
            self.mean += WEIGHT_OF_MEAN * off
        self.usual = self.mean + self.deviation
