"""An instance of a flow tells how it stands: to whoever asks over the broker, and to nobody otherwise."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

import msgspec

from mycelia.amqp import Delivery, Exchange, Link
from mycelia.clients.broker_questions import AnsweringQueue, send_answer
from mycelia.errors import MyceliaError, describe
from mycelia.flow.flow_graph import FlowGraph
from mycelia.flow.standing import FlowStanding, PartitionStanding, StageStanding
from mycelia.log_event import event
from mycelia.logs import LogPosition

__all__ = ["FLOWS_EXCHANGE", "FLOWS_KEY", "FlowWatch", "WatchedCommit", "WatchedStage"]

log = logging.getLogger("mycelia.flow")

FLOWS_EXCHANGE: Final = Exchange("mycelia-flows", "direct")

FLOWS_KEY: Final = "standing"
"""By which every instance of a flow is asked how it stands."""

SAME_ANSWER_S: Final = 0.2
"""Seconds for which an answer is given again: however many ask, they cost a process no more than this. Arbitrary."""


class WatchedCommit(Protocol):
    """What is told of a commit: `PartitionCommit`."""

    @property
    def stage(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def records(self) -> int: ...
    @property
    def published(self) -> int: ...
    @property
    def positions(self) -> Mapping[str, LogPosition]: ...
    @property
    def watermarks_ms(self) -> Mapping[str, int]: ...
    @property
    def counts(self) -> Mapping[str, Mapping[str, int]]: ...
    @property
    def gave(self) -> Mapping[str, list[int]]: ...
    @property
    def seconds(self) -> float: ...


class WatchedStage(Protocol):
    """What is looked at of a stage when somebody asks: `Stage`."""

    @property
    def name(self) -> str: ...
    @property
    def partitions(self) -> list[int]: ...
    @property
    def standing_still(self) -> Mapping[int, str]: ...
    @property
    def waiting(self) -> Mapping[int, str]: ...
    @property
    def delivered(self) -> int: ...
    def ahead_of(self, partition: int) -> int | None: ...
    def sink_bytes_of(self, partition: int) -> int: ...
    def offsets_of(self, partition: int) -> dict[str, int]: ...
    @property
    def faults(self) -> int: ...
    @property
    def dead(self) -> int: ...


class FlowWatch:
    """What an instance of a flow knows of itself.

    Args:
        link: of the process.
        flow: its group.
        called: `service.method`.
        stages: its parts, as they are described.
        running: the same, as they run.
        state_bytes: the size of a partition's state, where it can be said at once.
    """

    def __init__(
        self,
        link: Link,
        flow: str,
        called: str,
        graph: FlowGraph,
        stages: Iterable[StageStanding],
        running: Iterable[WatchedStage],
        state_bytes: Callable[[str, int], int | None] = lambda stage, partition: None,
    ) -> None:
        self._link = link
        self._flow = flow
        self._service, _, self._method = called.partition(".")
        self._graph = graph
        self._described = {one.name: one for one in stages}
        self._running = list(running)
        self._state_bytes = state_bytes
        self._counted: dict[str, Counter[str]] = {}
        self._kept: dict[tuple[str, int], PartitionStanding] = {}
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
        self._queue = AnsweringQueue(link, FLOWS_EXCHANGE, self._on_question)
        self._answer = b""
        self._answered_at = -SAME_ANSWER_S

    async def start(self) -> None:
        """Listen for questions. Without the permission to, that is said, and nothing is answered."""
        try:
            await self._queue.start(FLOWS_KEY)
        except MyceliaError as exc:
            log.warning(
                event(
                    "flow_not_told",
                    flow=self._flow,
                    reason=describe(exc),
                    detail="`mycelia flow` does not show this instance",
                )
            )

    async def aclose(self) -> None:
        """Idempotent."""
        await self._queue.aclose()

    def counted(self) -> dict[str, dict[str, int]]:
        """By step, what has been counted in this process, whichever partitions were its own."""
        return {step: dict(one) for step, one in self._counted.items()}

    def committed(self, commit: WatchedCommit) -> None:
        """Take note of a commit."""
        place = commit.stage, commit.partition
        before = self._kept.get(place)
        for step, counts in commit.counts.items():
            old = {} if before is None else before.counts.get(step, {})
            sums = self._counted.setdefault(step, Counter())
            for what, number in counts.items():
                # An engine that has begun anew counts from 0.
                sums[what] += number - old.get(what, 0) if number >= old.get(what, 0) else number
        records, published, commits = (
            (0, 0, 0) if before is None else (before.records, before.published, before.commits)
        )
        self._kept[place] = PartitionStanding(
            stage=commit.stage,
            partition=commit.partition,
            owner=self._owner,
            offsets={name: one.offset for name, one in commit.positions.items()},
            watermarks_ms=dict(commit.watermarks_ms),
            counts={name: dict(one) for name, one in commit.counts.items()},
            gave={name: list(one) for name, one in commit.gave.items()},
            records=records + commit.records,
            published=published + commit.published,
            commits=commits + 1,
            committed_ms=int(time.time() * 1000),
            commit_s=round(commit.seconds, 6),
        )

    def committed_ms(self, stage: str, partition: int) -> int | None:
        """When the last commit of a partition of ours was; `None` where there was none."""
        kept = self._kept.get((stage, partition))
        return None if kept is None else kept.committed_ms

    def standing(self) -> FlowStanding:
        """How it stands now."""
        partitions: list[PartitionStanding] = []
        for stage in self._running:
            for number in stage.partitions:
                kept = self._kept.get((stage.name, number))
                if kept is None:
                    kept = PartitionStanding(
                        stage=stage.name,
                        partition=number,
                        owner=self._owner,
                        offsets=stage.offsets_of(number),
                    )
                changes: dict[str, Any] = {
                    "state_bytes": self._state_bytes(stage.name, number),
                    "waits_for": stage.waiting.get(number),
                    "ahead_bytes": stage.ahead_of(number),
                    "sink_bytes": stage.sink_bytes_of(number),
                }
                if number in stage.standing_still:
                    changes["standing_still"] = stage.standing_still[number]
                partitions.append(msgspec.structs.replace(kept, **changes))
        owned = {(one.stage, one.partition) for one in partitions}
        # Of those that have gone nothing is kept: they would come back as others.
        self._kept = {place: one for place, one in self._kept.items() if place in owned}
        return FlowStanding(
            id=self._queue.id,
            flow=self._flow,
            service=self._service,
            method=self._method,
            owner=self._owner,
            at=time.monotonic(),
            stages=list(self._described.values()),
            partitions=partitions,
            graph=self._graph,
            faults=sum(one.faults for one in self._running),
            dead=sum(one.dead for one in self._running),
            delivered=sum(one.delivered for one in self._running),
        )

    def _on_question(self, question: Delivery) -> None:
        now = time.monotonic()
        if now - self._answered_at >= SAME_ANSWER_S:
            self._answer = msgspec.json.encode(self.standing())
            self._answered_at = now
        send_answer(self._link, question, self._answer)
