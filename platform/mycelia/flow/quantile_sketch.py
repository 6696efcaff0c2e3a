"""A distribution in few numbers, for quantiles with a bounded relative error. Pure.

Counts in buckets whose bounds grow by a constant factor, as in DDSketch (Masson, Rim, Lee, VLDB 2019). Chosen before sketches that are
smaller (t-digest, KLL) because merging is adding: the result depends neither on the order of the values nor on how they
were split into batches, windows or partitions, and two runs give the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from math import ceil, inf, isnan, log, nan

__all__ = ["Sketch", "merge_sketches", "quantile_of", "sketch_of"]

Sketch = dict[str, dict[int, int]]
"""Plain data: `"+"` and `"-"` are buckets of positive values and of negated negative ones, `"0"` counts what is nearly nothing."""

SMALLEST = 1e-9
"""What is nearer to zero counts as zero; arbitrary, and it bounds the number of buckets."""


@lru_cache(maxsize=64)
def _growth(error: float) -> float:
    return (1 + error) / (1 - error)


def sketch_of(values: Iterable[float], error: float) -> Sketch:
    """The sketch of some values.

    Args:
        error: how far from the exact value a quantile may be, as a share of it: 0.01 for a hundredth.

    Raises:
        ValueError: one of the values is not a number, or infinite.
    """
    per_bucket = 1 / log(_growth(error))
    above: list[int] = []
    below: list[int] = []
    zeros = 0
    for value in values:
        if value > SMALLEST:
            _refuse_infinite(value)
            above.append(ceil(log(value) * per_bucket))
        elif value < -SMALLEST:
            _refuse_infinite(value)
            below.append(ceil(log(-value) * per_bucket))
        else:
            if isnan(value):
                raise ValueError("nan has no place among numbers. Filter it out.")
            zeros += 1
    return {"+": dict(Counter(above)), "-": dict(Counter(below)), "0": {0: zeros} if zeros else {}}


def _refuse_infinite(value: float) -> None:
    if value in (inf, -inf):
        raise ValueError(f"{value} has no place in a distribution. Filter it out.")


def merge_sketches(into: Sketch, other: Sketch) -> Sketch:
    """Both together. `into` is changed and returned."""
    for sign, buckets in other.items():
        held = into[sign]
        for bucket, count in buckets.items():
            held[bucket] = held.get(bucket, 0) + count
    return into


def quantile_of(sketch: Sketch, q: float, error: float) -> float:
    """The value below which a share `q` of all lies, within `error` of the exact one (the lower of two neighbours); nan of nothing."""
    total = sum(sum(buckets.values()) for buckets in sketch.values())
    if total == 0:
        return nan
    rank = int(q * (total - 1))  # of the sorted values, from 0
    growth = _growth(error)
    seen = 0
    for bucket, count in sorted(sketch["-"].items(), reverse=True):
        seen += count
        if seen > rank:
            return -_middle(growth, bucket)
    seen += sketch["0"].get(0, 0)
    if seen > rank:
        return 0.0
    for bucket, count in sorted(sketch["+"].items()):
        seen += count
        if seen > rank:
            return _middle(growth, bucket)
    raise AssertionError("a rank beyond the number of values")


def _middle(growth: float, bucket: int) -> float:
    """The value of (growth^(bucket-1), growth^bucket] that is relatively as far from both ends."""
    return float(2 * growth**bucket / (growth + 1))
