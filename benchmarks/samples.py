"""What is measured: a flat record for each peer, case and round, and what is drawn from them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """What one peer did in one case of one round.

    `metrics` are named with their unit (`p50_ms`, `server_cpu_us`); one that could not be read on
    this system is absent.
    """

    peer: str
    case: str
    round: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the rounds: its median, and how far it strayed."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """The spread of `values`, or None where there are none."""
        known = sorted(values)
        if not known:
            return None
        return cls(statistics.median(known), known[0], known[-1])


def spread(samples: Iterable[Sample], peer: str, case: str, metric: str) -> Spread | None:
    """One metric of one peer in one case, over the rounds; None where it was not measured."""
    return Spread.of(
        sample.metrics[metric]
        for sample in samples
        if sample.peer == peer and sample.case == case and metric in sample.metrics
    )


def by_round(samples: Iterable[Sample], peer: str, case: str, metric: str) -> dict[int, float]:
    """One metric of one peer in one case: round → value."""
    return {
        sample.round: sample.metrics[metric]
        for sample in samples
        if sample.peer == peer and sample.case == case and metric in sample.metrics
    }


def ratios(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Ours to theirs inside each round that has both."""
    return [ours[number] / theirs[number] for number in ours if theirs.get(number)]


def in_words(values: Iterable[float], digits: int | None = None) -> str:
    """`median (min-max)`, or `-` where there is none."""
    found = Spread.of(values)
    if found is None:
        return "-"
    if digits is None:
        digits = 0 if found.median >= 100 else 2
    return f"{found.median:.{digits}f} ({found.low:.{digits}f}-{found.high:.{digits}f})"
