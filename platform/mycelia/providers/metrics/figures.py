"""What `mycelia top` shows: rates and times of the methods of all services, from two answers of each process. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from mycelia.providers.metrics.answers import ProcessAnswer
from mycelia.providers.metrics.cells import Reading

__all__ = [
    "FleetFigures",
    "InstanceFigures",
    "MethodFigures",
    "QueueFigures",
    "figures_of",
    "histogram_quantile",
]


class MethodFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One method, over all processes. Rates are `None` before there are two answers of any of them."""

    service: str
    method: str
    kind: str
    calls_per_s: float | None
    errors_per_s: float | None
    retries_per_s: float | None
    p50_s: float | None
    """Half of the calls took no longer; `None` where none ended meanwhile."""
    p99_s: float | None
    in_flight: int
    waiting: int
    calls: int
    """Since its processes began."""
    errors: int


class QueueFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One queue that is consumed."""

    queue: str
    service: str
    ready: int | None
    """Messages that wait there; `None` where the broker did not tell."""
    unsettled: int
    consumers: int
    paused: int


class InstanceFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One process."""

    host: str
    pid: int
    services: list[str]
    up_s: float
    ready: bool
    not_ready: list[str]
    is_new: bool
    """Whether this is its first answer."""


class FleetFigures(msgspec.Struct, frozen=True, kw_only=True):
    """All that answers at one broker."""

    instances: list[InstanceFigures]
    methods: list[MethodFigures]
    queues: list[QueueFigures]
    dead_letters: dict[str, int]
    """By service, since its processes began."""


class _Method:
    """Sums of one method over processes."""

    def __init__(self) -> None:
        self.ended = 0.0
        self.failed = 0.0
        self.retried = 0.0
        self.bounds: tuple[float, ...] = ()
        self.counts: list[float] = []
        self.is_measured = False
        self.in_flight = 0.0
        self.waiting = 0.0
        self.calls = 0.0
        self.errors = 0.0
        self.kind = ""


def figures_of(
    now: Iterable[ProcessAnswer],
    before: Mapping[str, ProcessAnswer],
    ready: Mapping[str, int | None],
) -> FleetFigures:
    """The figures between two rounds of answers.

    Args:
        now: an answer of each process that gave one.
        before: its answer before, by process.
        ready: messages that wait, by queue.
    """
    methods: dict[tuple[str, str], _Method] = {}
    queues: dict[tuple[str, str], dict[str, float]] = {}
    dead: dict[str, int] = {}
    instances = []
    for answer in sorted(now, key=lambda answer: (answer.host, answer.pid)):
        earlier = before.get(answer.id)
        instances.append(_instance(answer, earlier is None))
        _add(methods, answer, earlier)
        for reading in answer.readings:
            labels, value = reading.series.labels, reading.values[0]
            if reading.series.name == "mycelia_dead_letters":
                service = labels["service"]
                dead[service] = dead.get(service, 0) + int(value)
            elif "queue" in labels:
                sums = queues.setdefault((labels["queue"], labels["service"]), {})
                sums[reading.series.name] = sums.get(reading.series.name, 0.0) + value
    return FleetFigures(
        instances=instances,
        methods=[_figures(*key, methods[key]) for key in sorted(methods)],
        queues=[
            QueueFigures(
                queue=queue,
                service=service,
                ready=ready.get(queue),
                unsettled=int(sums.get("mycelia_consumer_unsettled", 0)),
                consumers=int(sums.get("mycelia_consumers", 0)),
                paused=int(sums.get("mycelia_consumers_paused", 0)),
            )
            for (queue, service), sums in sorted(queues.items())
        ],
        dead_letters=dead,
    )


def _instance(answer: ProcessAnswer, is_new: bool) -> InstanceFigures:
    return InstanceFigures(
        host=answer.host,
        pid=answer.pid,
        services=answer.health.services,
        up_s=answer.up_s,
        ready=answer.health.ready,
        not_ready=answer.health.not_ready,
        is_new=is_new,
    )


def _add(
    methods: dict[tuple[str, str], _Method], answer: ProcessAnswer, earlier: ProcessAnswer | None
) -> None:
    old = {} if earlier is None else {_key(reading): reading.values for reading in earlier.readings}
    lasted = 0.0 if earlier is None else answer.at - earlier.at
    for reading in answer.readings:
        series = reading.series
        labels = series.labels
        if "method" not in labels:
            continue
        method = methods.setdefault((labels["service"], labels["method"]), _Method())
        method.kind = labels.get("kind", method.kind)
        grown = _growth(reading.values, old.get(_key(reading)))
        per_s = grown[0] / lasted if lasted > 0 else 0.0
        method.is_measured |= lasted > 0
        match series.name:
            case "mycelia_calls":
                method.ended += per_s
                method.calls += reading.values[0]
                if labels["outcome"] != "ok":
                    method.failed += per_s
                    method.errors += reading.values[0]
            case "mycelia_retried_calls":
                method.retried += per_s
            case "mycelia_workers":
                method.in_flight += reading.values[0]
            case "mycelia_calls_waiting":
                method.waiting += reading.values[0]
            case "mycelia_call_duration_seconds" if lasted > 0:
                counts = grown[:-1]
                if (
                    method.bounds != series.bounds
                ):  # of the first, or of a process with other buckets
                    method.bounds, method.counts = series.bounds, counts
                else:
                    method.counts = [sum(pair) for pair in zip(method.counts, counts, strict=True)]


def _key(reading: Reading) -> tuple[str, tuple[tuple[str, str], ...]]:
    return reading.series.name, tuple(sorted(reading.series.labels.items()))


def _growth(values: tuple[float, ...], earlier: tuple[float, ...] | None) -> list[float]:
    if earlier is None or len(earlier) != len(values):
        return list(values)  # what had counted nothing was left out
    return [max(0.0, value - old) for value, old in zip(values, earlier, strict=True)]


def _figures(service: str, name: str, method: _Method) -> MethodFigures:
    is_measured = method.is_measured
    return MethodFigures(
        service=service,
        method=name,
        kind=method.kind,
        calls_per_s=round(method.ended, 2) if is_measured else None,
        errors_per_s=round(method.failed, 2) if is_measured else None,
        retries_per_s=round(method.retried, 2) if is_measured else None,
        p50_s=histogram_quantile(0.5, method.bounds, method.counts),
        p99_s=histogram_quantile(0.99, method.bounds, method.counts),
        in_flight=int(method.in_flight),
        waiting=int(method.waiting),
        calls=int(method.calls),
        errors=int(method.errors),
    )


def histogram_quantile(
    share: float, bounds: tuple[float, ...], counts: list[float]
) -> float | None:
    """The time that `share` of the observations do not pass: as Prometheus' `histogram_quantile` has it, even within a bucket.

    Args:
        counts: of each bucket, and of what lies above them all: that counts as the last bound.

    Returns:
        Seconds; `None` without observations.
    """
    total = sum(counts)
    if total <= 0:
        return None
    rank, passed, lower = share * total, 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count and passed + count >= rank:
            return min(bound, lower + (bound - lower) * (rank - passed) / count)
        passed += count
        lower = bound
    return bounds[-1]
