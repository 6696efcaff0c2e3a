"""What a partition of a flow cannot take: dead letters of it, and how long before it is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from random import Random
from typing import Any
from uuid import uuid4

from mycelia.errors import FlowFunctionError, MyceliaError
from mycelia.flow.inflow import Taken
from mycelia.flow.partition_run import (
    PartitionRun,
    RecordFailed,
    RecordsFailed,
    StageDescription,
    TimerFailed,
)
from mycelia.flow.sinks.sink import SinkRecord, SinkRefused
from mycelia.flow.stage_host import StageCounts, StageHost, StageOptions
from mycelia.logs import FaultyRecord

__all__ = ["FailedRecords"]


class FailedRecords:
    """Of one partition, as long as it is this instance's own.

    Args:
        counts: the stage's; counted on.
    """

    def __init__(
        self,
        host: StageHost,
        description: StageDescription,
        options: StageOptions,
        counts: StageCounts,
    ) -> None:
        self._host = host
        self._description = description
        self._options = options
        self._counts = counts
        self._random = Random()
        self._attempts: dict[Hashable, int] = {}

    async def bury_faults(self, run: PartitionRun, taken: Taken) -> None:
        """Make dead letters of what could not be read.

        Raises:
            MyceliaError: one could not be published.
        """
        for source, entries in taken.items():
            for entry in entries:
                strange = run.strange(source, entry)
                for fault in [*entry.faults, *([] if strange is None else [strange])]:
                    name = self._description.reads[source].name
                    if not await self._host.bury(name, entry, fault, None, 1):
                        raise MyceliaError(
                            f'log "{name}", offset {entry.offset}: what cannot be read could not be made a dead letter.'
                        )
                    self._counts.faults += 1

    async def give_up(self, run: PartitionRun, failed: RecordsFailed | TimerFailed) -> float:
        """Make dead letters of those that have been tried often enough; returns how long to wait before the others are tried again.

        Raises:
            RecordsFailed, TimerFailed: what fails in the flow is not given up.
        """
        if not self._options.buries:
            raise failed
        if isinstance(failed, TimerFailed):
            return await self._give_up_timer(run, failed)
        attempts = self._attempts
        pauses: list[float] = []
        given_up: list[RecordFailed] = []
        for record in failed.failed:
            pause = self._pause_after(record.place, _cause_of(record))
            if pause is None:
                given_up.append(record)
            else:
                pauses.append(pause)
        if given_up:
            letters = (self._bury(one, attempts.pop(one.place)) for one in given_up)
            for record, is_there in zip(given_up, await asyncio.gather(*letters), strict=True):
                if not is_there:
                    raise failed
                run.skipped.add(record.place)
        return min(pauses, default=0.0)

    async def _give_up_timer(self, run: PartitionRun, failed: TimerFailed) -> float:
        """A timer has no record that it comes from: its letter has its key, name and time."""
        timer = failed.timer
        pause = self._pause_after(timer, failed.__cause__)
        if pause is not None:
            return pause
        del self._attempts[timer]
        name, clock, time_ms, _ = timer.timer
        told = {"key": timer.key, "timer": name, "clock": clock, "time_ms": time_ms}
        letter = SinkRecord(f"{run.flow}/{timer.operator}/{uuid4().hex}", timer.key, time_ms, told)
        if not await self.bury_refused([letter], timer.operator, SinkRefused(str(failed))):
            raise failed
        run.passed_over.add(timer)
        return 0.0

    def _pause_after(self, failed: Hashable, cause: BaseException | None) -> float | None:
        """How long to wait before what has failed once more is tried again; None: it is given up."""
        attempt = self._attempts[failed] = self._attempts.get(failed, 0) + 1
        if not isinstance(cause, Exception):
            return None
        return self._options.retry.delay_after(cause, attempt, self._random)

    async def bury_rejected(self, run: PartitionRun) -> None:
        """Make dead letters of what the flow went on without.

        Raises:
            RecordFailed, SinkRefused: of this one none could be published.
        """
        for operator, result, refused in run.take_keyless():
            if not await self.bury_refused([result], operator, refused):
                raise refused
        rejected = run.take_rejected()
        if not rejected:
            return
        letters = await asyncio.gather(*(self._bury(one, 1) for one in rejected))
        for record, is_there in zip(rejected, letters, strict=True):
            if not is_there:
                raise record

    async def bury_refused(
        self, records: list[SinkRecord[Any]], output: str, refused: SinkRefused
    ) -> bool:
        """Make dead letters of what a sink has refused; whether they are there."""
        source = self._description.reads[self._description.first].name
        for record in records:
            if not await self._host.bury_refused(source, output, record, refused):
                return False
            self._counts.dead += 1
        return True

    async def _bury(self, failed: RecordFailed, attempts: int) -> bool:
        """Make it a dead letter, so that the flow may go on without it; whether it is one."""
        entry, at = failed.entry, failed.at
        source = self._description.reads[failed.source]
        body = self._description.body_of(failed.source, entry, at)
        letter = FaultyRecord(
            failed.index,
            str(failed),
            entry.keys[at],
            entry.times[at],
            body,
            headers=entry.headers[at],
            is_read=True,
        )
        error = failed if failed.__cause__ is not None else None  # no function raised: rejected
        if not await self._host.bury(source.name, entry, letter, error, attempts):
            return False
        self._counts.dead += 1
        return True


def _cause_of(record: RecordFailed) -> BaseException | None:
    error = record.__cause__
    return error.__cause__ if isinstance(error, FlowFunctionError) else error
