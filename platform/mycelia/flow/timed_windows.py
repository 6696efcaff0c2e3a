"""What the kinds of windows that time closes have in common: state by key, timers on both clocks, results and late records. Pure."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from mycelia.flow.aggregations import Aggregation
from mycelia.flow.emission import AfterRecords, Emission, EveryPeriod
from mycelia.flow.operators import MAIN, SIDE, Operator
from mycelia.flow.panes import LateRecords, Results
from mycelia.flow.state import Changes, KeyedState, StoreReader
from mycelia.flow.timer_queue import TimerQueue

__all__ = ["TimedWindows"]

V = TypeVar("V")


class TimedWindows(Operator, Generic[V]):
    """Gives `WindowResult`s; by the other port, `LateRecord`s. What comes of a batch or of a time is given at once.

    Args:
        name: unique in its flow.
        lateness_ms: how long a window takes records after its end has come by.
        store: where it was kept; `None` for one that begins.
        plain: what is kept of a key, as `KeyedState` has it; and `restored` of that.
    """

    def __init__(
        self,
        name: str,
        aggregation: Aggregation[Any, Any],
        emission: Emission,
        lateness_ms: int,
        store: StoreReader | None,
        plain: Callable[[V], Any],
        restored: Callable[[Any], V],
    ) -> None:
        super().__init__(name)
        self._aggregation = aggregation
        self._lateness_ms = lateness_ms
        early = emission.early
        self._early_count = early.count if isinstance(early, AfterRecords) else None
        self._period = early if isinstance(early, EveryPeriod) else None
        self._late_count = emission.late.count
        self._state: KeyedState[V] = KeyedState(name, store, plain, restored)
        self._timers = TimerQueue(f"{name}~timers", store)
        self._wall = TimerQueue(f"{name}~wall", store)
        self._now_ms = 0
        self._results = Results(self, aggregation, emission)
        self._late = LateRecords()

    def advance(self, watermark: int) -> None:
        self.watermark = watermark
        while due := self._timers.take_next(watermark):
            self._fire(due)
        self._flush()

    def tick(self, now_ms: int) -> None:
        self._now_ms = now_ms
        while due := self._wall.take_next(now_ms):
            self._fire(due)
        self._flush()

    @abstractmethod
    def _fire(self, due: list[tuple[int, Any]]) -> None:
        """Do what is due: times with what was set for them."""

    def _flush(self) -> None:
        for port, columns in ((MAIN, self._results.take()), (SIDE, self._late.take())):
            if columns is not None:
                self.out.append((port, columns))

    def take_changes(self, changes: Changes) -> None:
        for part in (self._state, self._timers, self._wall):
            changes.setdefault(part.space, {}).update(part.take_changes())

    def counts(self) -> dict[str, int]:
        return {"late": self._late.count}
