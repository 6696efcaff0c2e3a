"""A histogram of durations with a bounded relative error."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

__all__ = ["Histogram"]

GROWTH = 1.02
"""Each bucket's upper bound over the one below: a percentile is exact to 2 %."""
SMALLEST_S = 1e-6


class Histogram:
    """Counts durations in buckets that grow by 2 %, from a microsecond up. The order of adding does not matter."""

    def __init__(self) -> None:
        self.count = 0
        self.max_s = 0.0
        self._buckets: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Counts one duration; one below a microsecond, or negative (clocks set back), counts as a microsecond."""
        seconds = max(seconds, SMALLEST_S)
        self.count += 1
        self.max_s = max(self.max_s, seconds)
        self._buckets[math.ceil(math.log(seconds / SMALLEST_S, GROWTH) - 1e-9)] += 1

    def percentiles(self, shares: Sequence[float]) -> list[float | None]:
        """For each share (0.95: the 95th percentile) the seconds within which that share lies; `None` when empty.

        At most 2 % above the exact value (nearest rank), never below it, and never above the maximum.
        """
        return [self._percentile(share) for share in shares]

    def _percentile(self, share: float) -> float | None:
        rank = max(1, math.ceil(share * self.count))
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                return float(min(SMALLEST_S * GROWTH**bucket, self.max_s))
        return None

    def as_ms(self) -> dict[str, float | int | None]:
        """Count, p50, p95, p99 and maximum, in milliseconds."""
        p50, p95, p99 = (
            None if value is None else round(value * 1000, 3)
            for value in self.percentiles((0.5, 0.95, 0.99))
        )
        top = round(self.max_s * 1000, 3) if self.count else None
        return {"count": self.count, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "max_ms": top}
