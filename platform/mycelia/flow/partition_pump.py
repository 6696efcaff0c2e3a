"""Runs one partition of a stage while it is this instance's own: takes, has the engine compute, and commits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from mycelia.flow.async_steps import StepsCancelled
from mycelia.flow.delivery import SinkDelivery
from mycelia.flow.failed_records import FailedRecords
from mycelia.flow.flow_call import PartitionCalls
from mycelia.flow.group_commit import GroupCommit
from mycelia.flow.inflow import Inflow, Taken
from mycelia.flow.next_stages import RoomBehind
from mycelia.flow.partition_run import PartitionRun, RecordsFailed, TimerFailed
from mycelia.flow.stage_host import StageHost, StageOptions
from mycelia.logs import LogPosition
from mycelia.logs.membership import waited_for
from mycelia.logs.partition_lease import PartitionLease

__all__ = ["PartitionPump"]

TICK_EVERY: Final = 0.25
"""Seconds of silence after which time on the wall is let by, and it is looked whether the partition is to be left."""

COLLECTS_FOR: Final = 0.02
"""Seconds at most for which records are collected while the next commit waits for the one under way."""

TELL_EVERY: Final = 1.0
"""Seconds between two words to the broker of how far the group has come. What counts is the state."""

COMMIT_BYTES: Final = 32 * 2**20
"""Bytes of a commit's records, as they came, at which it is made whatever else is said: until then they are kept."""

LEAVING_WAITS: Final = 2.0
"""Seconds that a partition that is left gives its commit and its sinks; what has not left by then is the next owner's."""


class _Left(Exception):
    """The partition is to be left in the middle of a batch, which the next owner takes again."""


class PartitionPump:
    """See `run()`.

    Args:
        room: behind it: while there is none nothing is taken. What has been taken is committed all the same.
        leaving: set when the partition is to be left.
        goes_on: called when the engine has taken something, or time has come by.
    """

    def __init__(
        self,
        host: StageHost,
        options: StageOptions,
        run: PartitionRun,
        inflow: Inflow,
        delivery: SinkDelivery,
        commits: GroupCommit,
        room: RoomBehind | None,
        calls: PartitionCalls,
        failed: FailedRecords,
        lease: PartitionLease,
        leaving: asyncio.Event,
        goes_on: Callable[[], None],
    ) -> None:
        self._host = host
        self._options = options
        self._run = run
        self._inflow = inflow
        self._delivery = delivery
        self._commits = commits
        self._room = room
        self._calls = calls
        self._failed = failed
        self._lease = lease
        self._leaving = leaving
        self._goes_on = goes_on
        self._loop = asyncio.get_running_loop()
        self._news_since: float | None = None
        """By the loop's clock, since when something waits for the next commit."""

    async def run(self) -> None:
        """Take, compute and commit, until the partition is to be left; then commit what there is.

        Raises:
            Exception: what a function, the state or the broker raised. All goes on from the last commit, with another run.
        """
        commits = self._commits
        try:
            with suppress(_Left):
                await self._pump()
                if self._lease.is_held:
                    await self._finish()
        except Exception:
            with suppress(Exception):  # the first one is told
                await commits.settled(LEAVING_WAITS)
            raise
        finally:
            await commits.aclose()

    async def _pump(self) -> None:
        run, inflow, commits = self._run, self._inflow, self._commits
        if not run.positions and inflow.positions():
            # so that "next" means the same to the next one
            await commits.begin(self._loop.time())
        tell_at = self._loop.time() + TELL_EVERY
        while self._lease.is_held and not self._leaving.is_set():
            if not commits.is_under_way:
                await commits.settled()  # raises what it has failed with
            if not self._delivery.has_room or self._delivery.waits_for(run.rows.outputs):
                await self._delivery.wait(TICK_EVERY)
                continue
            if self._news_since is None and not await self._has_room_behind():
                continue
            taken = await self._gather()
            if taken or not self._is_due:
                self._calls.took(taken)
                await self._failed.bury_faults(run, taken)
                await self._compute(taken)
                self._goes_on()
            if self._news_since is None and (taken or run.has_news(self._host.now_ms())):
                self._news_since = self._loop.time()
            if self._is_full or (self._is_due and not commits.is_under_way):
                await self._begin_commit()
            if self._news_since is None and self._loop.time() >= tell_at:
                tell_at = self._loop.time() + TELL_EVERY
                await self._tell_group()

    async def _has_room_behind(self) -> bool:
        """Whether the stages behind have taken enough of what was written for them; if not, some time has gone."""
        return self._room is None or await self._room.has_room(TICK_EVERY)

    async def _gather(self) -> Taken:
        """What comes before the next commit is due, or, when it is, before the one under way is done."""
        inflow = self._inflow
        if self._commits.is_under_way and not inflow.is_behind:
            # Nothing that is computed now leaves before the commit under way is done: as one batch it costs less.
            await self._commits.settled(COLLECTS_FOR)
        if not self._is_due:
            return await inflow.gather(min(self._due_in, TICK_EVERY))
        taken = await inflow.gather(0)
        if not taken:
            await self._commits.settled(TICK_EVERY)
        return taken

    async def _finish(self) -> None:
        run, delivery = self._run, self._delivery
        if self._news_since is not None:
            await self._begin_commit()
        await self._commits.settled()
        await delivery.aclose(LEAVING_WAITS)
        run.state.sent(delivery.done_up_to())
        await self._host.in_thread(run.state.forget_sent)
        await self._tell_group()

    # --- commits ---------------------------------------------------------------------------------

    @property
    def _due_in(self) -> float:
        """Seconds until a commit is to begin."""
        if self._news_since is None:
            return TICK_EVERY
        return max(self._news_since + self._options.commit_every - self._loop.time(), 0.0)

    @property
    def _is_due(self) -> bool:
        return self._due_in == 0.0

    @property
    def _is_full(self) -> bool:
        run = self._run
        return (
            run.uncommitted >= self._options.commit_records or run.uncommitted_bytes >= COMMIT_BYTES
        )

    async def _begin_commit(self) -> None:
        began_at = self._loop.time() if self._news_since is None else self._news_since
        await self._commits.begin(began_at)
        self._news_since = None

    async def _tell_group(self) -> None:
        """Say at the broker how far the partition has come, if that is news."""
        told, offset = self._lease.position, self._run.offset
        if offset is not None and (told is None or told.offset != offset):
            await self._lease.commit(LogPosition(offset=offset))

    # --- the engine ------------------------------------------------------------------------------

    async def _compute(self, taken: Taken) -> None:
        """Let the engine take it; records and timers over which it fails are tried again, and given up, as the flow's options say.

        Raises:
            RecordsFailed, TimerFailed, FlowFunctionError: the partition is to stand still.
        """
        host, run, failed = self._host, self._run, self._failed
        before, began = run.uncommitted, self._loop.time()
        try:
            await host.in_thread(run.feed, taken, host.now_ms())
        except StepsCancelled:
            raise _Left from None
        except (RecordsFailed, TimerFailed) as exc:
            failure: RecordsFailed | TimerFailed = exc
        else:
            self._inflow.paced(run.uncommitted - before, self._loop.time() - began)
            await failed.bury_rejected(run)
            return
        await self._commits.settled()  # `again()` begins from it
        while True:
            pause = await failed.give_up(run, failure)
            if pause and await waited_for(self._leaving, pause):
                raise _Left
            try:
                await host.in_thread(run.again)
            except StepsCancelled:
                raise _Left from None
            except (RecordsFailed, TimerFailed) as exc:
                failure = exc
            else:
                await failed.bury_rejected(run)
                return
