"""Windows of a number of records, in order of arrival. Pure."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from mycelia.flow.aggregations import Aggregation
from mycelia.flow.column_batch import ColumnBatch
from mycelia.flow.operators import MAIN, Operator
from mycelia.flow.results import OpenWindow, WindowResult
from mycelia.flow.state import Changes, KeyedState, StoreReader
from mycelia.flow.windows import CountWindows

__all__ = ["FillingWindows", "open_filling"]


class _Filling:
    """The window of a key that is not full yet."""

    __slots__ = ("accumulator", "count", "earliest", "index", "latest")

    def __init__(self, index: int) -> None:
        self.accumulator: Any = None
        self.count = 0
        self.earliest = 0
        self.latest = 0
        self.index = index

    def plain(self) -> list[Any]:
        return [self.accumulator, self.count, self.earliest, self.latest, self.index]


def _restored(plain: list[Any]) -> _Filling:
    filling = _Filling(0)
    (
        filling.accumulator,
        filling.count,
        filling.earliest,
        filling.latest,
        filling.index,
    ) = plain
    return filling


def open_filling(
    aggregation: Aggregation[Any, Any], plain: Any, most: int
) -> tuple[list[OpenWindow], int]:
    """The window of a key that is not full, if it has begun."""
    filling = _restored(plain)
    if not filling.count:
        return [], 0
    value = aggregation.result(filling.accumulator)
    return [OpenWindow(start_ms=filling.earliest, end_ms=filling.latest + 1, value=value)], 0


class FillingWindows(Operator):
    """Gives a `WindowResult` for each `size` records of a key: from the earliest to just after the latest of their times.

    No record is late for it, and no time closes it: what is not full stays open. `index` counts the windows of a key.
    """

    def __init__(
        self,
        name: str,
        kind: CountWindows,
        aggregation: Aggregation[Any, Any],
        store: StoreReader | None = None,
    ) -> None:
        super().__init__(name)
        self._size = kind.size
        self._aggregation = aggregation
        self._state: KeyedState[_Filling] = KeyedState(name, store, _Filling.plain, _restored)

    def process(self, port: int, batch: ColumnBatch) -> None:
        assert batch.keys is not None
        by_key: dict[Any, tuple[list[int], list[Any]]] = defaultdict(lambda: ([], []))
        for key, time, value in zip(batch.keys, batch.times, batch.values, strict=True):
            times, values = by_key[key]
            times.append(time)
            values.append(value)
        live = self._state.load(by_key)
        results: list[WindowResult[Any, Any]] = []
        for key, (times, values) in by_key.items():
            filling = live.get(key)
            if filling is None:
                filling = live[key] = _Filling(0)
            at = 0
            while at < len(values):
                end = at + self._size - filling.count
                part = values[at:end]
                try:
                    self._fill(filling, times[at:end], part)
                except BaseException as exc:  # noqa: BLE001  raised, or told
                    held = [filling.accumulator] if filling.count else []
                    self.fail_group(exc, batch, key, part, self._aggregation, held)
                    break  # with this key
                at = end
                if filling.count == self._size:
                    if (result := self._result(key, filling)) is not None:
                        results.append(result)
                    filling = live[key] = _Filling(filling.index + 1)
        self._state.touch(by_key)
        if results:
            ends = [one.end_ms - 1 for one in results]
            self.out.append((MAIN, ColumnBatch(ends, results, [one.key for one in results])))

    def _fill(self, filling: _Filling, times: list[int], values: list[Any]) -> None:
        part = self._aggregation.of(values)
        earliest, latest = min(times), max(times)
        if filling.count:
            filling.accumulator = self._aggregation.merge(filling.accumulator, part)
            earliest, latest = min(earliest, filling.earliest), max(latest, filling.latest)
        else:
            filling.accumulator = part
        filling.earliest, filling.latest = earliest, latest
        filling.count += len(values)

    def _result(self, key: Any, filling: _Filling) -> WindowResult[Any, Any] | None:
        """What a full window has come to; None where the aggregation raises over it, and the flow goes on."""
        span, index = (filling.earliest, filling.latest + 1), filling.index
        try:
            value = self._aggregation.result(filling.accumulator)
        except BaseException as exc:  # noqa: BLE001  raised, or told
            self.refuse(exc, key, WindowResult(key, *span, filling.accumulator, index=index))
            return None
        return WindowResult(key, *span, value, index=index)

    def take_changes(self, changes: Changes) -> None:
        changes.setdefault(self._state.space, {}).update(self._state.take_changes())
