"""What Mycelia sets out to reach, each as data, judged against the samples of one run.

A ratio is taken inside each round and the median of those is judged: a slow spell of the machine
falls on both sides of a round's ratio, and so drops out of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.samples import Sample, Spread, by_round


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`ours` over `theirs` (or `ours` itself where `theirs` is empty) is to reach a bound.

    Of several in `theirs` the best of each round counts. Exactly one of `at_least` and `at_most`
    is set; it also says which way "best" lies.
    """

    case: str
    metric: str
    ours: str
    theirs: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bound(self) -> str:
        """The bound as printed."""
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target with what was reached: `met` is None where a side was not run."""

    target: Target
    reached: Spread | None
    met: bool | None


TARGETS: tuple[Target, ...] = (
    *(
        Target(
            case="rpc, 64 in flight",
            metric="rate_per_s",
            ours=ours,
            theirs=(theirs,),
            at_least=at_least,
        )
        for ours, theirs, at_least in (
            ("mycelia-async", "nameko", 15.0),
            ("mycelia-async", "faststream", 20.0),
            ("mycelia-async", "aio-pika", 5.0),
            ("mycelia-async", "go", 1.3),
            ("mycelia-def", "go", 1.1),
        )
    ),
    Target(
        case="rpc, 1 in flight", metric="p50_ms", ours="mycelia-async", theirs=("go",), at_most=1.25
    ),
    Target(
        case="rpc, 64 in flight",
        metric="server_cpu_us",
        ours="mycelia-async",
        theirs=("go",),
        at_most=0.6,
    ),
    Target(
        case="events",
        metric="rate_per_s",
        ours="mycelia-async",
        theirs=("go", "go-quorum"),
        at_least=1.2,
    ),
    *(
        Target(case="start-up", metric="loaded_rss_mb", ours=ours, at_most=80.0)
        for ours in ("mycelia-async", "mycelia-def")
    ),
)


def judge(target: Target, samples: Sequence[Sample]) -> Verdict:
    """Hold one target against the samples of a run."""
    ours = by_round(samples, target.ours, target.case, target.metric)
    if not target.theirs:
        reached = Spread.of(ours.values())
    else:
        best = _best_by_round(target, samples)
        reached = Spread.of(
            value / best[number] for number, value in ours.items() if best.get(number)
        )
    if reached is None:
        return Verdict(target, None, None)
    if target.at_least is not None:
        return Verdict(target, reached, reached.median >= target.at_least)
    assert target.at_most is not None
    return Verdict(target, reached, reached.median <= target.at_most)


def judge_all(samples: Sequence[Sample], cases: Iterable[str]) -> list[Verdict]:
    """The verdicts on every target that one of `cases` can answer."""
    asked = set(cases)
    return [judge(target, samples) for target in TARGETS if target.case in asked]


def _best_by_round(target: Target, samples: Sequence[Sample]) -> dict[int, float]:
    better = max if target.at_least is not None else min
    best: dict[int, float] = {}
    for peer in target.theirs:
        for number, value in by_round(samples, peer, target.case, target.metric).items():
            best[number] = better(best[number], value) if number in best else value
    return best
