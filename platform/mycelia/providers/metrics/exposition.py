"""What `/metrics` answers: the cells of one process or of several as one, and what `prometheus_client` has beside them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mycelia.errors import describe
from mycelia.log_event import event
from mycelia.providers.metrics.cells import Reading
from mycelia.providers.metrics.told import DESCRIPTIONS

__all__ = ["Merged", "exposition", "merge"]

log = logging.getLogger("mycelia.metrics")

Key = tuple[str, tuple[tuple[str, str], ...]]


class Merged:
    """One series of several processes."""

    __slots__ = ("bounds", "kind", "labels", "name", "values")

    def __init__(self, reading: Reading) -> None:
        series = reading.series
        self.name = series.name
        self.labels = series.labels
        self.kind = series.kind
        self.bounds = series.bounds
        self.values = list(reading.values)

    def add(self, reading: Reading) -> None:
        if reading.series.bounds != self.bounds or len(reading.values) != len(self.values):
            return  # of a process with other buckets, before a restart with a new configuration
        if self.kind == "max":
            self.values = [max(pair) for pair in zip(self.values, reading.values, strict=True)]
        else:
            self.values = [sum(pair) for pair in zip(self.values, reading.values, strict=True)]


def merge(processes: Iterable[tuple[bool, list[Reading]]]) -> list[Merged]:
    """The series of several processes as one: counters and histograms of all, gauges of those that live.

    Args:
        processes: for each, whether it lives, and what its cells hold.
    """
    merged: dict[Key, Merged] = {}
    for is_alive, readings in processes:
        for reading in readings:
            series = reading.series
            if not is_alive and series.kind in ("sum", "max"):
                continue
            key = (series.name, tuple(sorted(series.labels.items())))
            known = merged.get(key)
            if known is None:
                merged[key] = Merged(reading)
            else:
                known.add(reading)
    return list(merged.values())


class _Families:
    """The merged series as a collector of `prometheus_client`."""

    def __init__(self, series: Iterable[Merged]) -> None:
        self._series = series

    def collect(self) -> Iterable[Any]:
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        families: dict[str, Any] = {}
        for each in self._series:
            values = [each.labels[name] for name in sorted(each.labels)]
            family = families.get(each.name)
            if family is None:
                make = {"counter": CounterMetricFamily, "histogram": HistogramMetricFamily}.get(
                    each.kind, GaugeMetricFamily
                )
                family = families[each.name] = make(
                    each.name, DESCRIPTIONS.get(each.name, each.name), labels=sorted(each.labels)
                )
            if each.kind == "histogram":
                family.add_metric(values, _cumulated(each), sum_value=each.values[-1])
            else:
                family.add_metric(values, each.values[0])
        return families.values()


def _cumulated(each: Merged) -> list[tuple[str, float]]:
    buckets, total = [], 0.0
    for bound, count in zip((*each.bounds, float("inf")), each.values, strict=False):
        total += count
        buckets.append((_bound(bound), total))
    return buckets


def _bound(bound: float) -> str:
    """As Prometheus writes the label `le`."""
    return "+Inf" if bound == float("inf") else repr(float(bound))


def exposition(
    series: Iterable[Merged], accept: str, users: Path | None = None
) -> tuple[str, bytes]:
    """Content type and text of a scrape: ours, then the users' own. May take tens of milliseconds: for a thread.

    Args:
        series: of all processes.
        accept: what the scraper takes, as its header says: Prometheus' text format, or OpenMetrics.
        users: the folder with the metrics that the processes have by `prometheus_client`; `None` takes this one's.
    """
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.multiprocess import MultiProcessCollector

    encode, content_type = choose_encoder(accept)
    ours = CollectorRegistry(auto_describe=False)
    ours.register(_Families(series))
    text = encode(ours)
    theirs: Any = REGISTRY
    if users is not None:
        theirs = CollectorRegistry(auto_describe=False)
        MultiProcessCollector(theirs, path=str(users))  # type: ignore[no-untyped-call]
    try:
        return content_type, text.removesuffix(_EOF) + encode(theirs)
    except Exception as exc:  # noqa: BLE001  a collector of the application: it must not cost the others
        log.warning(
            event("collector_raised", error=describe(exc), detail="its metrics are left out")
        )
        return content_type, text


_EOF = b"# EOF\n"
"""How OpenMetrics ends."""
