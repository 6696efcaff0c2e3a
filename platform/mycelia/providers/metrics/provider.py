"""`Metrics()`: the service's own metrics beside those that every call has."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from mycelia.errors import ConfigError
from mycelia.extras import require_extra
from mycelia.runtime import Container, SharedDependency
from mycelia.runtime.settings import BUCKETS

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge, Histogram

__all__ = ["MetricFactory", "Metrics"]

Across = Literal["sum", "max", "min", "mostrecent"]

_made: dict[str, tuple[tuple[Any, ...], Any]] = {}
"""By name: what each was made as. Of the whole process, as `prometheus_client`'s registry is."""
_making = threading.Lock()


class MetricFactory:
    """What is injected: makes metrics, or gives those that it has made. Safe in threads.

    The metrics are `prometheus_client`'s own. Keep labels to values of which there are few: each combination is a series.
    """

    __slots__ = ("_where",)

    def __init__(self, where: str) -> None:
        self._where = where

    def counter(self, name: str, help: str, labels: Sequence[str] = ()) -> Counter:
        """A counter: `self.metrics.counter("flights_total", "Flights.", ["carrier"]).labels("AA").inc()`.

        Raises:
            ConfigError: there is a metric of this name that is another.
        """
        from prometheus_client import Counter

        counter: Counter = self._make(Counter, name, help, labels, {})
        return counter

    def gauge(
        self, name: str, help: str, labels: Sequence[str] = (), *, across: Across = "sum"
    ) -> Gauge:
        """A gauge.

        Args:
            across: how those of several processes make one; dead processes' do not count.

        Raises:
            ConfigError: there is a metric of this name that is another.
        """
        from prometheus_client import Gauge

        gauge: Gauge = self._make(Gauge, name, help, labels, {"multiprocess_mode": f"live{across}"})
        return gauge

    def histogram(
        self,
        name: str,
        help: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float] = BUCKETS,
    ) -> Histogram:
        """A histogram.

        Args:
            buckets: upper bounds, lowest first; by default those of durations in seconds.

        Raises:
            ConfigError: there is a metric of this name that is another.
        """
        from prometheus_client import Histogram

        histogram: Histogram = self._make(
            Histogram, name, help, labels, {"buckets": tuple(buckets)}
        )
        return histogram

    def _make(
        self, kind: Any, name: str, help: str, labels: Sequence[str], more: dict[str, Any]
    ) -> Any:
        asked = (kind, tuple(labels), *more.values())
        known = _made.get(name)
        if known is None:
            with _making:
                known = _made.get(name)
                if known is None:
                    try:
                        known = _made[name] = (asked, kind(name, help, tuple(labels), **more))
                    except ValueError as exc:
                        raise ConfigError(f'{self._where}: metric "{name}": {exc}') from exc
        if known[0] != asked:
            raise ConfigError(
                f'{self._where}: there is a metric "{name}" that is another: '
                f"{_shown(known[0])}, not {_shown(asked)}."
            )
        return known[1]


def _shown(asked: tuple[Any, ...]) -> str:
    kind, labels, *_ = asked
    return f"a {kind.__name__.lower()} with labels ({', '.join(labels)})"


class Metrics(SharedDependency):
    """Injects a `MetricFactory`, for metrics that the service counts itself.

        metrics = Metrics()
        ...
        self.metrics.counter("bags_lost_total", "Bags lost.", ["airport"]).labels("JFK").inc()

    They are scraped with the others where `mycelia: metrics:` is configured, and counted in any case. Metrics made with
    `prometheus_client` itself are scraped as well.
    """

    container: Container

    def __init__(self) -> None:
        self._factory: MetricFactory | None = None

    if TYPE_CHECKING:
        # In a worker the attribute holds what is injected.
        def __get__(self, instance: object, owner: type | None = None) -> MetricFactory: ...

    def setup(self) -> None:
        where = f"{self.container.service_cls.__qualname__}.{self.attr_name}"
        require_extra("metrics", f"{where}: Metrics()")
        self._factory = MetricFactory(where)

    def shared_dependency(self, is_async: bool) -> Any:
        """One for all workers; it is safe in threads."""
        return self._factory
