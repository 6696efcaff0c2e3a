"""What a window of one key holds, and how it becomes results. Shared by all kinds of windows. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from mycelia.flow.aggregations import Aggregation
from mycelia.flow.column_batch import ColumnBatch
from mycelia.flow.emission import Emission
from mycelia.flow.operators import Operator
from mycelia.flow.results import LateRecord, OpenWindow, Timing, WindowResult, WindowSpan

__all__ = ["NOTHING", "LateRecords", "Pane", "Results", "told_panes"]

NOTHING: Final = object()
"""The accumulator of a window that has given its records away (`mode="discard"`)."""


class Pane:
    """The state of a window of one key.

    Attributes:
        accumulator: of its records; `NOTHING` after they were given in `mode="discard"`.
        fresh: records since the last result.
        index: of the next result.
        is_closed: the result "on time" was given.
        told: results that are to be taken back before the next (`mode="retract"`): start, end, index and value of each.
    """

    __slots__ = ("accumulator", "fresh", "index", "is_closed", "told")

    def __init__(
        self,
        accumulator: Any,
        fresh: int,
        index: int = 0,
        is_closed: bool = False,
        told: list[tuple[int, int, int, Any]] | None = None,
    ) -> None:
        self.accumulator = accumulator
        self.fresh = fresh
        self.index = index
        self.is_closed = is_closed
        self.told = [] if told is None else told

    def plain(self) -> list[Any]:
        held = self.accumulator
        return [
            [] if held is NOTHING else [held],
            self.fresh,
            self.index,
            self.is_closed,
            self.told,
        ]

    @classmethod
    def restored(cls, plain: list[Any]) -> Pane:
        held, *others = plain
        return cls(held[0] if held else NOTHING, *others)


def told_panes(
    panes: Iterable[tuple[int, int, Pane]], aggregation: Aggregation[Any, Any], most: int
) -> tuple[list[OpenWindow], int]:
    """What windows have come to so far, the latest last; and how many earlier ones are left out.

    Args:
        panes: start, end and pane of each.
    """
    by_end = sorted(panes, key=_by_end)
    told = [
        OpenWindow(
            start_ms=start,
            end_ms=end,
            value=_value_of(aggregation, pane.accumulator),
            is_closed=pane.is_closed,
        )
        for start, end, pane in by_end[-most:]
    ]
    return told, len(by_end) - len(told)


def _by_end(one: tuple[int, int, Pane]) -> tuple[int, int]:
    start, end, _ = one
    return end, start


def _value_of(aggregation: Aggregation[Any, Any], accumulator: Any) -> Any:
    if accumulator is NOTHING:
        return None if aggregation.empty is None else aggregation.result(aggregation.empty())
    return aggregation.result(accumulator)


class Results:
    """Collects the results of one turn, as columns.

    Args:
        operator: whose results they are; it is told of those over which the aggregation raises.
    """

    def __init__(
        self, operator: Operator, aggregation: Aggregation[Any, Any], emission: Emission
    ) -> None:
        self._operator = operator
        self._aggregation = aggregation
        self._mode = emission.mode
        self._keys: list[Any] = []
        self._times: list[int] = []
        self._values: list[WindowResult[Any, Any]] = []

    def tell(
        self, key: Any, start: int, end: int, pane: Pane, timing: Timing, is_final: bool
    ) -> None:
        """Give the pane's result. One that holds nothing says so only if its aggregation has a word for nothing."""
        accumulator = pane.accumulator
        empty = self._aggregation.empty
        if accumulator is NOTHING and empty is None:
            pane.fresh = 0
            return
        try:
            if accumulator is NOTHING and empty is not None:
                accumulator = empty()
            value = self._aggregation.result(accumulator)
        except BaseException as exc:  # noqa: BLE001  raised, or told
            self.refuse(exc, key, start, end, pane, timing, is_final, accumulator)
            return
        if pane.told:
            self._take_back(key, pane, timing)
        self._give(WindowResult(key, start, end, value, timing, pane.index, is_final))
        if self._mode == "retract":
            pane.told.append((start, end, pane.index, value))
        self._is_told(pane)

    def refuse(
        self,
        cause: BaseException,
        key: Any,
        start: int,
        end: int,
        pane: Pane,
        timing: Timing,
        is_final: bool,
        held: Any,
    ) -> None:
        """Go on without a result over which the aggregation raised: what is told of is `held`, what it was to be made of. Or raise: `Operator.refuse()`."""
        result = WindowResult(key, start, end, held, timing, pane.index, is_final)
        self._operator.refuse(cause, key, result)
        self._is_told(pane)

    def _is_told(self, pane: Pane) -> None:
        if self._mode == "discard":
            pane.accumulator = NOTHING
        pane.index += 1
        pane.fresh = 0

    def _take_back(self, key: Any, pane: Pane, timing: Timing) -> None:
        for start, end, index, value in pane.told:
            self._give(WindowResult(key, start, end, value, timing, index, False, True))
        pane.told.clear()

    def _give(self, result: WindowResult[Any, Any]) -> None:
        self._keys.append(result.key)
        self._times.append(result.end_ms - 1)
        self._values.append(result)

    def take(self) -> ColumnBatch | None:
        """What was collected, if anything."""
        if not self._values:
            return None
        taken = ColumnBatch(self._times, self._values, self._keys)
        self._keys, self._times, self._values = [], [], []
        return taken


class LateRecords:
    """Collects the records that came too late, and counts them."""

    def __init__(self) -> None:
        self.count = 0
        self._keys: list[Any] = []
        self._times: list[int] = []
        self._values: list[LateRecord[Any, Any]] = []

    def add(
        self, key: Any, value: Any, time: int, watermark: int, missed: tuple[WindowSpan, ...] = ()
    ) -> None:
        self.count += 1
        self._keys.append(key)
        self._times.append(time)
        self._values.append(LateRecord(key, value, time, watermark, missed))

    def take(self) -> ColumnBatch | None:
        if not self._values:
            return None
        taken = ColumnBatch(self._times, self._values, self._keys)
        self._keys, self._times, self._values = [], [], []
        return taken
