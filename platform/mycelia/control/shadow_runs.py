"""A flow's new code run beside the old: over the same records, into logs of its own, which are then held against those of the old."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from mycelia.amqp import Link
from mycelia.control.flows import log_ends
from mycelia.entrypoints.dead_letters import dead_letter_queue_name
from mycelia.errors import RuntimeStateError
from mycelia.flow import FlowHandler
from mycelia.flow.shadow import FlowShadow
from mycelia.flow.stage import Stage
from mycelia.flow.stage_host import PartitionCommit
from mycelia.flow.table_sources import table_sources
from mycelia.logs.catching_up import CatchingUp, CatchUpFigures
from mycelia.logs.group_places import offset_at
from mycelia.logs.layout import stream_name
from mycelia.logs.log_diff import (
    DiffRoom,
    LogComparison,
    LogDiffReport,
    PackedRecord,
    is_compared,
)
from mycelia.logs.log_tail import LogTail
from mycelia.logs.partition_lease import group_queue_name, lease_queue
from mycelia.logs.position import StartAt
from mycelia.logs.stream_ends import end_of
from mycelia.runtime import Runner

__all__ = ["ComparedLog", "Comparing", "ShadowRun"]

QUIET_S: Final = 3.0
"""After which a flow of one stage has said what it had to say."""

QUIET_STAGES_S: Final = 12.0
"""The same of several: a stage waits 10 s for a partition of the one before in which nothing has ever come."""

SETTLE_S: Final = 2.0
"""That the old code, which runs beside, has for what the shadow has said already: it commits five times a second."""

_DELETE_S: Final = 10.0


class Comparing(msgspec.Struct, frozen=True, kw_only=True):
    """How results are compared; see `LogComparison`."""

    by: Sequence[str]
    ignore: Sequence[str] = ()
    last_only: bool = False
    shown: int = 10
    until_ms: int | None = None
    """Results from this event time on do not count."""
    warm_up_ms: int = 0
    """Of event time: results of the first so long do not count."""


class ComparedLog(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the comparison of one log with the shadow's."""

    log: str
    shadow: str
    report: LogDiffReport
    from_ms: int | None
    """Results of before this event time did not count: before the first of the shadow's, and its warm-up. None: all did, as it has read its logs from
    their very beginning."""
    until_ms: int | None
    """Results from this event time on did not count, as the shadow has not read all that they are made of."""


class ShadowRun:
    """Runs a shadow. What it makes at the broker and on the disk is gone after `aclose()`.

    Args:
        link: an open link, for looking and for clearing away.
        config: of the flow's service.
        start: where it begins.
        how: its results are compared.
        against: the log that its results are held against, where that is not the one that its code names; it has one then.
    """

    def __init__(
        self,
        link: Link,
        shadow: FlowShadow,
        config: Mapping[str, Any],
        start: StartAt,
        how: Comparing,
        *,
        against: str | None = None,
    ) -> None:
        self.shadow = shadow
        self._link = link
        self._start = start
        self._state = Path(tempfile.mkdtemp(prefix="mycelia-shadow-"))
        # Not its ports, its presence, its processes: it is not that service.
        section = config.get("mycelia") or {}
        kept = {name: section[name] for name in ("publish_timeout",) if name in section}
        own = {**kept, "flows": {"state": str(self._state)}}
        self._runner = Runner({**config, "mycelia": own}, [shadow.service])
        self._handler: FlowHandler | None = None
        self._begin: dict[tuple[str, int], int] = {}
        self._ends: dict[tuple[str, int], int] = {}
        """By source and partition: what is read, as of the beginning."""
        self._is_whole = False
        """Whether it reads its logs from their very beginning."""
        self._at: dict[tuple[str, str, int], int] = {}
        """By stage, source and partition: what has been committed."""
        self._marks: dict[tuple[str, int], Mapping[str, int]] = {}
        """By stage and partition, then step: how far event time has come whose results have all left. A stage tells it of itself before they have."""
        self._way: CatchingUp | None = None
        self._news_at = 0.0
        self._reached_at: float | None = None
        self._how = how
        self._from_ms: int | None = None
        """From where its results count, once it has some."""
        made, room = _comparison(how), DiffRoom()
        pairs = [(against or log.name, own.name) for log, own in shadow.logs]
        self._tails = [
            (LogTail(link, old, made, room), LogTail(link, new, made, room)) for old, new in pairs
        ]
        for tail in (tail for pair in self._tails for tail in pair):
            tail.until_ms = how.until_ms

    # --- life ------------------------------------------------------------------------------------

    async def start(self, timeout: float) -> None:
        """See where its logs begin and end, and have it run.

        Raises:
            TopologyError: a log is not there.
            RuntimeStateError: there is nothing to read.
        """
        tables = table_sources(self.shadow.plan)
        partitions = {one.name: range(one.partitions) for one in self.shadow.sources}
        places = [(name, number) for name, numbers in partitions.items() for number in numbers]
        await asyncio.gather(
            *(
                self._look(name, number, "first" if name in tables else self._start)
                for name, number in places
            )
        )
        if all(self._begin[place] >= self._ends[place] for place in places) and (
            self._start != "next"
        ):
            raise RuntimeStateError(
                f"{', '.join(partitions)}: there is nothing to read from {self._start}, so nothing to compare."
            )
        self._is_whole = not any(self._begin.values())
        for tail, _ in self._tails:
            await tail.find()  # a log that is not there is said at once
        await self._runner.start(timeout)
        (container,) = self._runner.containers
        (handler,) = [one for one in container.entrypoints if isinstance(one, FlowHandler)]
        handler.observers.append(self._committed)
        self._handler = handler
        numbered = dict(enumerate(self._read_keys()))
        self._way = CatchingUp(
            {number: self._begin[name, p] for number, (_, name, p) in numbered.items()},
            {number: self._ends[name, p] for number, (_, name, p) in numbered.items()},
        )
        self._news_at = time.monotonic()

    async def _look(self, log: str, partition: int, start: StartAt) -> None:
        partitions = next(one.partitions for one in self.shadow.sources if one.name == log)
        self._ends[log, partition] = await end_of(self._link, log, partition)
        self._begin[log, partition] = await offset_at(self._link, log, partitions, partition, start)

    async def aclose(self) -> None:
        """Stop it, and delete all that it has made. Idempotent."""
        await self._runner.stop(grace=0.0)
        for pair in self._tails:
            for tail in pair:
                await tail.aclose()
        await asyncio.to_thread(shutil.rmtree, self._state, ignore_errors=True)
        queues: list[str] = []
        exchanges = [own.name for _, own in self.shadow.logs]
        for _, own in self.shadow.logs:
            queues += [stream_name(own.name, number) for number in range(own.partitions)]
        for stage in self._stages():
            description = stage.description
            leased_as, group = description.leased_as, description.group
            queues += [
                lease_queue(leased_as, group, one).name for one in range(description.partitions)
            ]
            prefix = group_queue_name(leased_as, group)
            queues += [f"{prefix}.members", f"{prefix}.waiting"]
            queues += [
                dead_letter_queue_name(group_queue_name(source.name, group))
                for source in description.reads.values()
            ]
            for relay in description.relays.values():
                exchanges.append(relay.log.name)
                queues += [stream_name(relay.log.name, one) for one in range(relay.log.partitions)]
        for queue in queues:
            await self._link.delete_queue(queue, timeout=_DELETE_S)
        for exchange in exchanges:
            await self._link.delete_exchange(exchange, timeout=_DELETE_S)

    def _stages(self) -> list[Stage]:
        handler = self._handler
        if handler is None:  # it may have got stages, and failed then
            (container,) = self._runner.containers
            (handler,) = [one for one in container.entrypoints if isinstance(one, FlowHandler)]
        return handler.stages

    # --- how it comes along ----------------------------------------------------------------------

    def _read_keys(self) -> list[tuple[str, str, int]]:
        """Stage, source and partition of all that is read of the flow's own logs."""
        return [
            (stage.name, name, partition)
            for stage in self._stages()
            for name, source in stage.description.sources.items()
            for partition in range(source.partitions)
        ]

    def _committed(self, commit: PartitionCommit) -> None:
        for name, position in commit.positions.items():
            self._at[commit.stage, name, commit.partition] = position.offset
        self._marks[commit.stage, commit.partition] = commit.watermarks_ms
        if commit.records or commit.published:
            self._news_at = time.monotonic()

    def figures(self) -> CatchUpFigures:
        """How far it is on its way to where the logs ended at the beginning."""
        assert self._way is not None
        keys = self._read_keys()
        places = {number: self._at[key] for number, key in enumerate(keys) if key in self._at}
        return self._way.heard(places, time.monotonic())

    @property
    def dead_letters(self) -> int:
        """Records that it has gone on without."""
        return sum(stage.dead + stage.faults for stage in self._stages())

    def check(self) -> None:
        """
        Raises:
            RuntimeStateError: a partition stands still, so that no end can be waited for.
        """
        for stage in self._stages():
            for partition, why in stage.standing_still.items():
                raise RuntimeStateError(
                    f"the shadow of {self.shadow.of} stands still at {stage.name}, partition {partition}: {why}"
                )

    async def is_through(self, until_ms: int | None) -> bool:
        """Whether it has said all that it has to say of what it has read: up to the end, or of an event time.

        Raises:
            RuntimeStateError: it stands still.
        """
        self.check()
        if until_ms is not None and self._is_past(until_ms):
            return True
        if self.figures().left:
            self._reached_at = None
            return False
        now = time.monotonic()
        if self._reached_at is None:
            self._reached_at = now
        quiet = QUIET_S if len(self._stages()) == 1 else QUIET_STAGES_S
        if now - self._reached_at >= 2 * quiet:
            return True  # more comes all the time: event time says how far it is
        return now - self._news_at >= quiet and not await self._has_between(dict(self._at))

    async def _has_between(self, at: Mapping[tuple[str, str, int], int]) -> bool:
        """Whether something is in the logs between its stages that has not been taken."""
        between = {
            (stage.name, name, relay.log.name, partition)
            for stage in self._stages()
            for name, relay in stage.description.relays.items()
            for partition in range(relay.log.partitions)
        }
        ends = await log_ends(self._link, {(log, number) for _, _, log, number in between})
        return any(
            ends.get((log, number), 1) > at.get((stage, name, number), 0)
            for stage, name, log, number in between
        )

    def _is_past(self, time_ms: int) -> bool:
        marks = self._watermarks(set(self._ends), has_between=True)
        return bool(marks) and all(mark is not None and mark >= time_ms for mark in marks)

    def _watermarks(
        self, newer: Collection[tuple[str, int]], has_between: bool
    ) -> list[int | None]:
        """How far event time has come, of all from which results leave, and to which more has come than was read.

        Args:
            newer: sources and partitions to which more has come.
            has_between: whether more is between stages.
        """
        found: list[int | None] = []
        for stage in self._stages():
            description = stage.description
            for partition in range(description.partitions) if description.outputs else ():
                if (description.relays and (newer or has_between)) or any(
                    (name, partition) in newer for name in description.sources
                ):
                    marks = self._marks.get((stage.name, partition), {})
                    found.append(min(marks.values(), default=None))
        return found

    async def _newer(self, at: Mapping[tuple[str, str, int], int]) -> list[tuple[str, int]]:
        """Sources and partitions to which more has come than had been taken."""
        ends = await log_ends(self._link, self._ends)
        taken = {
            place: max(
                self._begin[place],
                min((at.get(key, 0) for key in self._read_keys() if key[1:] == place), default=0),
            )
            for place in self._ends
        }
        return [place for place, end in ends.items() if end > taken[place]]

    # --- what came of it -------------------------------------------------------------------------

    async def compare(self, *, goes_on: bool = False) -> list[ComparedLog]:
        """Hold its results against those of the flow, as far as both have what they are made of.

        Args:
            goes_on: it is asked again later: where it has no results yet, those of the flow are left alone.

        Raises:
            ConfigError: there are more than may be kept.
        """
        # As of now: it goes on, and what is read below is then no less than this.
        at = dict(self._at)
        marks = {place: self._watermarks([place], has_between=False) for place in self._ends}
        last = self._watermarks([], has_between=True)
        for _, new in self._tails:
            await new.read()
        from_ms = self._begin_of_results()
        if await self._newer(at):
            await asyncio.sleep(SETTLE_S)
        if from_ms is not None or self._is_whole or not goes_on:
            for old, _ in self._tails:
                old.from_ms = from_ms
                await old.read()
        newer = await self._newer(at)
        bounding = [mark for place in newer for mark in marks[place]]
        if newer or await self._has_between(at):
            bounding += last
        known = [one for one in bounding if one is not None]
        bounds = [*known, *([] if self._how.until_ms is None else [self._how.until_ms])]
        until_ms = min(bounds) if bounds else None
        return [
            await asyncio.to_thread(_compared, old, new, self._how, from_ms, until_ms)
            for old, new in self._tails
        ]

    def _begin_of_results(self) -> int | None:
        """From which event time on results count: that of the first of the shadow's, as of when it had some, and its warm-up. None: all do.

        Event time is what the flow takes for it, so that only results tell of it.
        """
        if self._is_whole and not self._how.warm_up_ms:
            return None
        if self._from_ms is None:
            times = [one.time for _, new in self._tails for one in new.records if one.time]
            if times:
                self._from_ms = min(times) + self._how.warm_up_ms
        return self._from_ms


def _comparison(how: Comparing) -> LogComparison:
    return LogComparison(how.by, how.ignore, last_only=how.last_only)


def _compared(
    old: LogTail, new: LogTail, how: Comparing, from_ms: int | None, until_ms: int | None
) -> ComparedLog:
    comparison, room = _comparison(how), DiffRoom()

    def counts(record: PackedRecord) -> bool:
        return is_compared(record.time, from_ms, until_ms)

    comparison.add(False, filter(counts, list(old.records)), room)
    comparison.add(True, filter(counts, list(new.records)), room)
    return ComparedLog(
        log=old.log,
        shadow=new.log,
        report=comparison.report(how.shown),
        from_ms=from_ms,
        until_ms=until_ms,
    )
