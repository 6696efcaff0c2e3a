"""What a stage is told, and what it asks of the service that it is in. Data, and a protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import msgspec

from mycelia.amqp import Link, Message
from mycelia.flow.flow_call import CallsAround
from mycelia.flow.next_stages import NextStages
from mycelia.flow.sinks.sink import SinkRecord, SinkRefused
from mycelia.logs import FaultyRecord, LogEntry, LogPosition
from mycelia.logs.position import StartAt
from mycelia.policies.retry import Retry

__all__ = ["PartitionCommit", "StageCounts", "StageHost", "StageOptions"]

R = TypeVar("R")


class StageOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How stages are run; see `FlowHandler`."""

    start: StartAt
    commit_every: float
    commit_records: int
    buries: bool
    """Whether a record that fails becomes a dead letter."""
    retry: Retry


@dataclass(slots=True)
class StageCounts:
    """What a stage has done in this process."""

    records: int = 0
    commits: int = 0
    published: int = 0
    """Messages."""
    delivered: int = 0
    """Bodies that sinks have taken, for partitions that have been left."""
    faults: int = 0
    dead: int = 0


class PartitionCommit(msgspec.Struct, frozen=True, kw_only=True):
    """What is told to those who look on, after a commit whose messages have been published."""

    stage: str
    partition: int
    records: int
    """Taken since the one before."""
    published: int
    """Messages."""
    positions: Mapping[str, LogPosition]
    """By source: everything before it has been taken."""
    watermarks_ms: Mapping[str, int]
    """By step."""
    counts: Mapping[str, Mapping[str, int]]
    """Of each step what it counted since the partition was taken over."""
    gave: Mapping[str, list[int]]
    """Of each step how many records have left it since then, by port."""
    seconds: float
    """From the first of its records to what was published."""


class StageHost(Protocol):
    """What a stage needs of the service that it is in."""

    @property
    def called(self) -> str:
        """`service.method`."""

    @property
    def link(self) -> Link: ...

    @property
    def lease_link(self) -> Link: ...

    @property
    def next_stages(self) -> NextStages:
        """What those behind have taken."""

    @property
    def around(self) -> CallsAround:
        """What stands around each commit."""

    async def publish(self, message: Message) -> None:
        """Publish it, and have its confirm; as a call, where somebody looks at appends.

        Raises:
            LinkError: it is not confirmed in time.
        """

    def now_ms(self) -> int:
        """The time on the wall."""

    async def in_thread(self, function: Callable[..., R], *args: Any) -> R:
        """Run it beside the loop. Cancelled, it waits for the end, because what runs holds the partition's state."""

    async def declare(self) -> None:
        """Everything that is read and written, where it is not there."""

    async def bury(
        self,
        source: str,
        entry: LogEntry[Any],
        fault: FaultyRecord,
        error: BaseException | None,
        attempts: int,
    ) -> bool:
        """Publish a dead letter; whether it is there."""

    async def bury_refused(
        self, source: str, output: str, record: SinkRecord[Any], error: SinkRefused
    ) -> bool:
        """Publish a dead letter of a record that a sink has refused; whether it is there."""

    def committed(self, commit: PartitionCommit) -> None:
        """Told after each commit."""
