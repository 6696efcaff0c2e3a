"""The commits of one partition: one at a time, beside the engine. What is taken while one is under way is in the next.

    engine    take · take · prepare ──┐ take · take · prepare ──┐ take …
    beside it                         └ write · publish         └ write · publish

So neither the disk nor the broker's confirm is waited for by records that come meanwhile, and the slower those are, the more records
share a commit. Why nothing is lost by it: docs/decisions/0032.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from mycelia.amqp import Message
from mycelia.flow.delivery import SINK_EXCHANGE, Bury, SinkDelivery
from mycelia.flow.flow_call import PartitionCalls
from mycelia.flow.inflow import Inflow
from mycelia.flow.next_stages import RoomBehind
from mycelia.flow.outgoing import UnfitResults
from mycelia.flow.partition_run import PartitionRun, PreparedCommit
from mycelia.flow.publishing import publish_in_order
from mycelia.flow.rows_beside import RowsRefused
from mycelia.flow.stage_host import PartitionCommit, StageCounts, StageHost

__all__ = ["GroupCommit"]


class GroupCommit:
    """Commits what a run has taken, and publishes what leaves.

    Args:
        stage: its name.
        counts: the stage's; counted on.
        calls: makes calls of the commits.
        bury: where records go that a table beside the state will not have; None: the commit fails.
        room: behind it, for those that are to take what it gives.
        told: called after each commit with its watermarks, before what leaves is published.
    """

    def __init__(
        self,
        host: StageHost,
        stage: str,
        counts: StageCounts,
        run: PartitionRun,
        delivery: SinkDelivery,
        inflow: Inflow,
        calls: PartitionCalls,
        bury: Bury | None,
        room: RoomBehind | None,
        told: Callable[[Mapping[str, int]], None],
    ) -> None:
        self._host = host
        self._stage = stage
        self._counts = counts
        self._run = run
        self._delivery = delivery
        self._inflow = inflow
        self._calls = calls
        self._bury = bury
        self._room = room
        self._told = told
        self._under_way: asyncio.Task[None] | None = None

    # --- commits ---------------------------------------------------------------------------------

    @property
    def is_under_way(self) -> bool:
        """Whether a commit is not done yet."""
        return self._under_way is not None and not self._under_way.done()

    async def begin(self, began_at: float) -> None:
        """Commit what has been taken; returns when the run may take more. The commit before is waited for.

        Args:
            began_at: when the first of its records was taken, by the loop's clock.

        Raises:
            Exception: what the commit before has failed with, or this one until now.
        """
        await self.settled()
        prepared = asyncio.Event()
        work = partial(self._commit, prepared, began_at)
        running = self._calls.run(self._run.uncommitted, work)
        name = f"mycelia:flow:{self._stage}-{self._run.partition}:commit"
        task = self._under_way = asyncio.create_task(running, name=name)
        # Also where it ends before: a middleware may not go on.
        task.add_done_callback(lambda _: prepared.set())
        await prepared.wait()
        if task.done():
            await self.settled()

    async def settled(self, timeout: float | None = None) -> None:
        """Wait for the commit that is under way, if there is one; `timeout` seconds at most.

        Raises:
            Exception: what it has failed with.
        """
        task = self._under_way
        if task is None:
            return
        await asyncio.wait([task], timeout=timeout)
        if task.done():
            self._under_way = None
            task.result()

    async def aclose(self) -> None:
        """Give up what is under way. What it has written is in the outbox, for the next owner."""
        task, self._under_way = self._under_way, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # seen: it is not the first that failed, or the partition is left

    async def _commit(self, prepared: asyncio.Event, began_at: float) -> None:
        host, run, counts = self._host, self._run, self._counts
        run.state.sent(self._delivery.done_up_to())
        commit = await self._prepared()
        prepared.set()
        numbered = await self._written(commit)
        counts.commits += 1
        counts.records += commit.records
        self._told(commit.watermarks_ms)
        self._inflow.committed(commit.writes.positions)
        await self.send(numbered)
        host.committed(
            PartitionCommit(
                stage=self._stage,
                partition=run.partition,
                records=commit.records,
                published=len(numbered),
                positions=commit.writes.positions,
                watermarks_ms=commit.watermarks_ms,
                counts=commit.counts,
                gave=commit.gave,
                seconds=asyncio.get_running_loop().time() - began_at,
            )
        )

    async def _prepared(self) -> PreparedCommit:
        """Make what is committed. Results that cannot leave become dead letters before, if records of the flow do.

        Raises:
            UnfitResults: they do not.
        """
        host, run = self._host, self._run
        while True:
            try:
                return await host.in_thread(run.prepare, self._inflow.positions(), host.now_ms())
            except UnfitResults as exc:
                if self._bury is None:
                    raise
                for output, record, refused in exc.unfit:
                    if not await self._bury([record], output, refused):
                        raise
                run.leave_out(exc)

    async def _written(self, commit: PreparedCommit) -> list[tuple[int, Message]]:
        """Write it down. Records that a table beside the state will not have become dead letters before, if those of the flow do.

        Raises:
            RowsRefused: they do not.
        """
        rows = self._run.rows
        before = rows.written
        while True:
            try:
                numbered = await self._host.in_thread(self._run.write, commit)
            except RowsRefused as exc:
                if self._bury is None:
                    raise
                letters = [self._bury([record], output, why) for output, record, why in exc.rows]
                if not all(await asyncio.gather(*letters)):
                    raise
                rows.leave_out(exc)
            else:
                self._counts.delivered += rows.written - before
                return numbered

    async def send(self, numbered: Sequence[tuple[int, Message]]) -> None:
        """Publish what is published, and have the sinks get theirs beside it.

        Raises:
            LinkError: not all of what is published is confirmed.
        """
        host, delivery = self._host, self._delivery
        published: list[Message] = []
        for number, message in numbered:
            if message.exchange == SINK_EXCHANGE:
                delivery.put(number, message)
            else:
                published.append(message)
        if self._room is not None:
            self._room.wrote(published)
        await publish_in_order(host.publish, published)
        self._counts.published += len(published)
        if numbered:
            delivery.published_up_to = numbered[-1][0]
            self._run.state.sent(delivery.done_up_to())
