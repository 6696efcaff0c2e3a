"""Operators with timers on both clocks: that of the events, and that on the wall."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from mycelia.flow.operators import Operator
from mycelia.flow.state import StoreReader
from mycelia.flow.timer_queue import TimerQueue

__all__ = ["TimedOperator"]


class TimedOperator(Operator):
    """An operator that acts when a time has come, and gives what comes of it at once.

    Args:
        name: unique in its flow.
        store: where its timers were kept; `None` for an operator that begins.
    """

    def __init__(self, name: str, store: StoreReader | None) -> None:
        super().__init__(name)
        self._timers = TimerQueue(f"{name}~timers", store)
        self._wall = TimerQueue(f"{name}~wall", store)
        self._now_ms = 0

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

    @abstractmethod
    def _flush(self) -> None:
        """Give what has been made since."""
