"""A source of one partition: what all have in common that are no logs."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from mycelia.amqp import Link
from mycelia.flow.inflow import SourceReader
from mycelia.logs.position import StartAt
from mycelia.logs.record_shape import RecordShape

__all__ = ["SingleSource"]

T = TypeVar("T")


class SingleSource(Generic[T]):
    """A `FlowSource`. One instance of the flow reads it at a time.

    Attributes:
        name: what the flow's state and leases know it by.
        shape: the type of its records, and where their keys and times are.
        interval_ms: of one whose records are moments of the clock on the wall, how far apart they are.
    """

    interval_ms: int | None = None

    def __init__(self, name: str, shape: RecordShape[T]) -> None:
        self.name = name
        self.shape = shape

    @property
    def partitions(self) -> int:
        return 1

    @property
    def split_by(self) -> Any:
        return None

    def for_flow(self, group: str) -> SingleSource[T]:
        """As one flow reads it."""
        return self

    async def declare(self, link: Link, timeout: float | None = None) -> None:
        """What of it is at the broker, where it is not there."""

    def reader(self, link: Link, partition: int, start: StartAt = "first") -> SourceReader:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"
