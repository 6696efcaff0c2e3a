"""A stage of a flow in a service: its partitions are shared with the other instances, and each that is ours is run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any, Final, Protocol, TypeVar

import msgspec

from mycelia.amqp import Link, Message
from mycelia.errors import (
    FlowFunctionError,
    LeaseLost,
    LinkError,
    MyceliaError,
    StateUnavailable,
    describe,
)
from mycelia.flow.async_steps import OnLoop, RunsCoroutines, StepsCancelled
from mycelia.flow.delivery import SINK_EXCHANGE, SinkDelivery
from mycelia.flow.flow_call import CallsAround, FlowCall, TakenSince, Work
from mycelia.flow.inflow import Inflow, Taken
from mycelia.flow.partition_run import (
    PartitionRun,
    RecordFailed,
    RecordsFailed,
    StageDescription,
)
from mycelia.flow.partition_state import OpensState, StatePlace
from mycelia.flow.rows_beside import RowRefused
from mycelia.flow.sinks.sink import SinkRecord, SinkRefused
from mycelia.flow.table_sources import table_sources
from mycelia.log_event import event
from mycelia.logs import FaultyRecord, Log, LogEntry, LogPosition
from mycelia.logs.lag_watch import LagWatch
from mycelia.logs.membership import Membership
from mycelia.logs.partition_lease import PartitionLease
from mycelia.logs.position import StartAt
from mycelia.policies.retry import Retry

__all__ = ["PartitionCommit", "Stage", "StageHost", "StageOptions"]

log = logging.getLogger("mycelia.flow")

R = TypeVar("R")

PUBLISHED_AT_ONCE: Final = 200
"""Events on their way to the broker."""

TICK_EVERY: Final = 0.25
"""Seconds of silence after which time on the wall is let by, and it is looked whether the partition is to be left."""

TELL_EVERY: Final = 1.0
"""Seconds between two words to the broker of how far the group has come. What counts is the state."""

LEAVING_WAITS: Final = 2.0
"""Seconds that a partition that is left gives its sinks; what they have not had by then is the next owner's."""

PAUSES: Final = (1.0, 5.0, 15.0, 60.0)
"""Seconds that a partition stands still before it tries again what failed; the last again and again."""


STATE_PAUSES: Final = (1.0, 2.0, 5.0)
"""The same where its state could not be read or written, which is not asked of much to look after."""


class StageOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How stages are run; see `FlowHandler`."""

    start: StartAt
    commit_every: float
    commit_records: int
    buries: bool
    """Whether a record that fails becomes a dead letter."""
    retry: Retry


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
    def publish_timeout(self) -> float: ...

    @property
    def around(self) -> CallsAround:
        """What stands around each commit."""

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


class _Left(Exception):
    """The partition is to be left in the middle of a batch, which the next owner takes again."""


class Stage:
    """Runs the partitions of a stage that are this instance's own.

    Args:
        opens_state: opens the state of a partition.
    """

    def __init__(
        self,
        host: StageHost,
        description: StageDescription,
        options: StageOptions,
        opens_state: OpensState,
    ) -> None:
        self.description = description
        self.name = description.name
        self.standing_still: dict[int, str] = {}
        """Of the partitions that do not go on, why."""
        self.watermarks: dict[int, dict[str, int]] = {}
        """By partition and step, as of the last commit."""
        self.records = self.commits = self.published = self.faults = self.dead = 0
        self._host = host
        self._options = options
        self._opens_state = opens_state
        self._membership: Membership | None = None
        self._tasks: list[asyncio.Task[None]] = []
        reads = description.reads
        self._first = next(
            (name for name, one in reads.items() if one.name == description.leased_as),
            next(iter(reads)),
        )
        self.reads_first = reads[self._first]
        self._offsets: dict[int, int] = {}
        self._lag: LagWatch | None = None
        self._leave: dict[int, asyncio.Event] = {}
        self._skipped: dict[int, set[tuple[str, int, int]]] = {}
        self._attempts: dict[int, dict[tuple[str, int, int], int]] = {}
        self._since: dict[int, TakenSince] = {}
        """Of each partition, what it has taken since its last commit; empty where nobody looks at calls."""
        self._random = Random()
        self._sinks = {one.name: one.sink for one in description.outputs if one.sink is not None}
        self._awaiting: dict[int, OnLoop] = {}
        self._deliveries: dict[int, SinkDelivery] = {}
        self._delivered = 0

    @property
    def delivered(self) -> int:
        """Bodies that sinks have taken."""
        return self._delivered + sum(one.delivered for one in self._deliveries.values())

    @property
    def waiting_bytes(self) -> int:
        """Of what sinks have not taken yet."""
        return sum(one.waiting_bytes for one in self._deliveries.values())

    @property
    def partitions(self) -> list[int]:
        """Those that are this instance's own now."""
        return [] if self._membership is None else self._membership.owned

    def lag(self) -> dict[int, int]:
        """Entries of `reads_first` that have not been committed, by partition; as far as it is known."""
        return {} if self._lag is None else self._lag.lag()

    # --- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Share the partitions with the group's other instances from now on."""
        description = self.description
        self._membership = Membership(
            self._host.lease_link,
            description.leased_as,
            description.group,
            description.partitions,
            self._own,
            self._leave_partition,
        )
        if isinstance(self.reads_first, Log):
            first = self.reads_first.name
            self._lag = LagWatch(self._host.link, first, lambda: dict(self._offsets))
        name = f"mycelia:flow:{description.leased_as}--{description.group}"
        self._tasks = [
            asyncio.create_task(self._membership.run(), name=name),
        ]
        if self._lag is not None:
            self._tasks.append(asyncio.create_task(self._lag.run(), name=f"{name}:lag"))

    async def aclose(self, timeout: float) -> None:
        """Commit what has been taken, and leave the partitions to others. Idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        membership, self._membership = self._membership, None
        if membership is not None:
            await membership.aclose(timeout)

    def _leave_partition(self, partition: int) -> None:
        leaving = self._leave.get(partition)
        if leaving is not None:
            leaving.set()
        awaiting = self._awaiting.get(partition)
        if awaiting is not None:
            awaiting.cancel()

    # --- a partition -----------------------------------------------------------------------------

    async def _own(self, partition: int, lease: PartitionLease) -> None:
        """Run a partition until it is to be left, or the lease is lost; what fails is told, and tried again from the last commit."""
        leaving = self._leave[partition] = asyncio.Event()
        failures = 0
        try:
            while lease.is_held and not leaving.is_set():
                committed = self.commits
                try:
                    await self._run_partition(partition, lease, leaving)
                    continue
                except LeaseLost:
                    raise  # whoever shares the partitions out says it
                except LinkError as exc:
                    log.info(event("flow_waiting", **self._place(partition), reason=exc))
                    pause = 1.0
                except Exception as exc:  # noqa: BLE001  a user's function, or the state: told, and tried again
                    pause = self._stands_still(partition, exc, failures)
                    failures += 1
                    await self._tell_failed(partition, exc)
                if self.commits > committed and failures > 1:
                    failures = 1
                await _wait(leaving, pause)
        finally:
            for kept in (
                self._leave,
                self._awaiting,
                self.standing_still,
                self._skipped,
                self._attempts,
                self._since,
                self._offsets,
                self.watermarks,
            ):
                kept.pop(partition, None)

    def _place(self, partition: int) -> dict[str, object]:
        return {"call": self._host.called, "stage": self.name, "partition": partition}

    def _stands_still(self, partition: int, error: Exception, failures: int) -> float:
        """Say it; returns for how long."""
        pauses = STATE_PAUSES if isinstance(error, StateUnavailable) else PAUSES
        pause = pauses[min(failures, len(pauses) - 1)]
        failed = error.failed[0] if isinstance(error, RecordsFailed) else error
        record = failed if isinstance(failed, RecordFailed) else None
        of_function = failed.__cause__ if record is not None else failed
        cause = getattr(of_function, "__cause__", None) or error
        reads = self.description.reads
        source = next(iter(reads)) if record is None else record.source
        key = getattr(of_function, "key", None)
        self.standing_still[partition] = describe(failed)
        log.error(
            event(
                "flow_stands_still",
                **self._place(partition),
                log=reads[source].name,
                offset=None if record is None else record.entry.offset,
                record=None if record is None else record.index,
                operator=getattr(of_function, "operator", None),
                key=None if key is None else repr(key)[:80],
                error=describe(failed),
                retry_in_s=pause,
            ),
            exc_info=None if isinstance(error, StateUnavailable | LinkError) else cause,
        )
        return pause

    async def _run_partition(
        self, partition: int, lease: PartitionLease, leaving: asyncio.Event
    ) -> None:
        host, description = self._host, self.description
        told = None if lease.position is None else lease.position.offset
        place = StatePlace(description.leased_as, description.group, self.name, partition, told)
        skipped = self._skipped.setdefault(partition, set())
        awaiting = self._awaiting[partition] = OnLoop(asyncio.get_running_loop())
        if leaving.is_set():
            awaiting.cancel()
        run = await host.in_thread(self._opened, place, lease.epoch or 1, skipped, awaiting)
        delivery = self._deliveries[partition] = SinkDelivery(
            self._sinks, run.flow, host.called, self._bury_refused if self._options.buries else None
        )
        try:
            self._check_state(run, lease, place)
            self._note_offset(run)
            await host.declare()
            await self._send(run, delivery, run.left_over)
            inflow = self._inflow(run)
            try:
                await inflow.open()
                with suppress(_Left):
                    await self._pump(run, delivery, inflow, lease, leaving)
            finally:
                await inflow.aclose()
        finally:
            await self._end_delivery(run, delivery)
            await host.in_thread(run.close)

    async def _end_delivery(self, run: PartitionRun, delivery: SinkDelivery) -> None:
        await delivery.aclose()
        if delivery.delivered:
            run.state.sent(delivery.done_up_to())
            with suppress(StateUnavailable):  # then the next owner delivers it again
                await self._host.in_thread(run.state.forget_sent)
        self._delivered += delivery.delivered
        self._deliveries.pop(run.partition, None)

    def _opened(
        self,
        place: StatePlace,
        epoch: int,
        skipped: set[tuple[str, int, int]],
        run: RunsCoroutines,
    ) -> PartitionRun:
        return PartitionRun(
            self.description,
            place.partition,
            self._opens_state(place),
            epoch,
            skipped,
            collects=self._options.buries,
            run=run,
        )

    def _inflow(self, run: PartitionRun) -> Inflow:
        link, partition, positions = self._host.link, run.partition, run.positions
        tables = table_sources(self.description.plan)
        starts: dict[str, StartAt] = {
            # Of a log between stages nothing is passed over, whatever the flow begins with; nor of a table.
            **dict.fromkeys(self.description.sources, self._options.start),
            **dict.fromkeys((*self.description.relays, *tables), "first"),
            **positions,
        }
        return Inflow(
            {
                name: source.reader(link, partition, starts[name])
                for name, source in self.description.reads.items()
                if partition < source.partitions
            },
            tables,
        )

    def _check_state(self, run: PartitionRun, lease: PartitionLease, place: StatePlace) -> None:
        """
        Raises:
            StateUnavailable: the group has come further than this state says: its state is elsewhere.
        """
        told, kept = lease.position, run.offset
        if told is not None and (kept is None or kept < told.offset):
            has = "no state" if kept is None else f"the state of offset {kept}"
            raise StateUnavailable(
                str(place),
                run.state.where,
                f"the group has come to offset {told.offset}, and here is {has}. It has run on another machine, or in another "
                "directory, or the file was removed. Give all instances the same directory (mycelia.flows.state), bring the file back, go on from a "
                "savepoint, reset the flow, or let the flow begin anew with another group=",
            )

    async def _pump(
        self,
        run: PartitionRun,
        delivery: SinkDelivery,
        inflow: Inflow,
        lease: PartitionLease,
        leaving: asyncio.Event,
    ) -> None:
        """Take, compute, commit, publish; until the partition is to be left."""
        loop = asyncio.get_running_loop()
        options = self._options
        begun_at = loop.time()
        if not run.positions and inflow.positions():
            # so that "next" means the same to the next one
            await self._commit(run, delivery, inflow, begun_at)
        commit_at: float | None = None
        tell_at = loop.time() + TELL_EVERY
        has_news = False
        while lease.is_held and not leaving.is_set():
            for output, why in delivery.standing_still.items():
                self.standing_still[run.partition] = f'output "{output}": {why}'
            if not delivery.has_room or delivery.waits_for(run.rows.outputs):
                await delivery.wait(TICK_EVERY)
                continue
            until = TICK_EVERY if commit_at is None else max(commit_at - loop.time(), 0.0)
            taken = await inflow.gather(min(until, TICK_EVERY))
            if self._host.around.listens:
                self._since.setdefault(run.partition, TakenSince(self._host.around.target)).add(
                    taken
                )
            await self._bury_faults(run, taken)
            await self._compute(run, taken, leaving)
            has_news = has_news or bool(taken)
            if not has_news:
                has_news = run.has_news(self._host.now_ms())
            if not delivery.standing_still:
                self.standing_still.pop(run.partition, None)
            if has_news and commit_at is None:
                begun_at = loop.time()
                commit_at = begun_at + options.commit_every
            is_due = commit_at is not None and loop.time() >= commit_at
            if is_due or run.uncommitted >= options.commit_records:
                await self._commit(run, delivery, inflow, begun_at)
                commit_at, has_news = None, False
            if commit_at is None and loop.time() >= tell_at:
                tell_at = loop.time() + TELL_EVERY
                await _tell_group(run, lease)
        if lease.is_held:
            if has_news:
                await self._commit(run, delivery, inflow, begun_at)
            await delivery.aclose(LEAVING_WAITS)
            run.state.sent(delivery.done_up_to())
            await self._host.in_thread(run.state.forget_sent)
            await _tell_group(run, lease)

    async def _compute(self, run: PartitionRun, taken: Taken, leaving: asyncio.Event) -> None:
        """Let the engine take it; records over which it fails are tried again, and given up, as the flow's options say.

        Raises:
            RecordsFailed, FlowFunctionError: the partition is to stand still.
        """
        host = self._host
        try:
            await host.in_thread(run.feed, taken, host.now_ms())
        except StepsCancelled:
            raise _Left from None
        except RecordsFailed as exc:
            failed = exc
        else:
            await self._bury_rejected(run)
            return
        while True:
            pause = await self._give_up(run, failed)
            if pause and await _wait(leaving, pause):
                raise _Left
            try:
                await host.in_thread(run.again)
            except StepsCancelled:
                raise _Left from None
            except RecordsFailed as exc:
                failed = exc
            else:
                await self._bury_rejected(run)
                return

    async def _give_up(self, run: PartitionRun, failed: RecordsFailed) -> float:
        """Make dead letters of those that have been tried often enough; returns how long to wait before the others are tried again.

        Raises:
            RecordsFailed: the flow's records are not given up.
        """
        if not self._options.buries:
            raise failed
        attempts = self._attempts.setdefault(run.partition, {})
        pauses: list[float] = []
        given_up: list[RecordFailed] = []
        for record in failed.failed:
            attempt = attempts[record.place] = attempts.get(record.place, 0) + 1
            cause = _cause_of(record)
            pause = (
                self._options.retry.delay_after(cause, attempt, self._random)
                if isinstance(cause, Exception)
                else None
            )
            if pause is None:
                given_up.append(record)
            else:
                pauses.append(pause)
        if given_up:
            letters = (self._bury(run, one, attempts.pop(one.place)) for one in given_up)
            for record, is_there in zip(given_up, await asyncio.gather(*letters), strict=True):
                if not is_there:
                    raise failed
                run.skipped.add(record.place)
        return min(pauses, default=0.0)

    def _note_offset(self, run: PartitionRun) -> None:
        position = run.positions.get(self._first)
        if position is not None:
            self._offsets[run.partition] = position.offset

    def _call(self, partition: int, records: int, work: Work) -> FlowCall:
        around = self._host.around
        since = self._since.pop(partition, None) or TakenSince(around.target)
        return FlowCall(
            around.target,
            arrived_at=since.began_at,
            started_at=since.began_at,
            work=work,
            stage=self.name,
            partition=partition,
            records=records,
            offsets=since.offsets,
            traces=tuple(since.traces.values()),
        )

    async def _tell_failed(self, partition: int, error: Exception) -> None:
        """A turn that failed before there was anything to commit is a call that failed."""
        around = self._host.around
        if not around.listens or error is around.failed_with:
            return

        async def fail() -> None:
            raise error

        with suppress(Exception):
            await around.run(self._call(partition, 0, fail))

    async def _commit(
        self, run: PartitionRun, delivery: SinkDelivery, inflow: Inflow, begun_at: float
    ) -> None:
        """Commit, and publish; as a call, where somebody looks at calls."""
        work = partial(self._commit_now, run, delivery, inflow, begun_at)
        if self._host.around.listens:
            await self._host.around.run(self._call(run.partition, run.uncommitted, work))
        else:
            await work()

    async def _commit_now(
        self, run: PartitionRun, delivery: SinkDelivery, inflow: Inflow, begun_at: float
    ) -> None:
        run.state.sent(delivery.done_up_to())
        host, records = self._host, run.uncommitted
        numbered = await self._written_down(run, inflow)
        self.commits += 1
        self.records += records
        self.watermarks[run.partition] = run.watermarks()
        self._note_offset(run)
        inflow.committed()
        await self._send(run, delivery, numbered)
        host.committed(
            PartitionCommit(
                stage=self.name,
                partition=run.partition,
                records=records,
                published=len(numbered),
                positions=run.positions,
                watermarks_ms=self.watermarks[run.partition],
                counts=run.counts(),
                gave=run.gave(),
                seconds=asyncio.get_running_loop().time() - begun_at,
            )
        )

    async def _written_down(self, run: PartitionRun, inflow: Inflow) -> list[tuple[int, Message]]:
        """Commit. Records that a table beside the state will not have become dead letters before, if those of the flow do.

        Raises:
            RowRefused: they do not.
        """
        host, positions = self._host, inflow.positions()
        before = run.rows.written
        while True:
            try:
                numbered = await host.in_thread(run.commit, positions, host.now_ms())
            except RowRefused as exc:
                if not self._options.buries or not await self._bury_refused(
                    [exc.record], exc.output, exc
                ):
                    raise
                run.rows.leave_out(exc)
            else:
                self._delivered += run.rows.written - before
                return numbered

    # --- what leaves -----------------------------------------------------------------------------

    async def _send(
        self, run: PartitionRun, delivery: SinkDelivery, numbered: list[tuple[int, Message]]
    ) -> None:
        """Publish what is published, and have the sinks get theirs beside it.

        Raises:
            LinkError: not all of what is published is confirmed.
        """
        published: list[tuple[int, Message]] = []
        for number, message in numbered:
            if message.exchange == SINK_EXCHANGE:
                delivery.put(number, message)
            else:
                published.append((number, message))
        await self._publish(published)
        if numbered:
            delivery.published_up_to = numbered[-1][0]
            run.state.sent(delivery.done_up_to())

    async def _publish(self, numbered: list[tuple[int, Message]]) -> None:
        """Publish all of it, with confirms. Batches of one partition of a log one after the other: the order of a key holds.

        Raises:
            LinkError: not all of it is confirmed.
        """
        lanes: dict[tuple[str, str], list[Message]] = {}
        for _, message in numbered:
            lanes.setdefault((message.exchange, message.routing_key), []).append(message)
        done = await asyncio.gather(
            *map(self._publish_lane, lanes.values()), return_exceptions=True
        )
        for failed in done:
            if failed is not None:
                raise failed
        self.published += len(numbered)

    async def _publish_lane(self, messages: list[Message]) -> None:
        link, timeout = self._host.link, self._host.publish_timeout
        at_once = 1 if messages[0].mandatory else PUBLISHED_AT_ONCE
        for begin in range(0, len(messages), at_once):
            some = messages[begin : begin + at_once]
            await asyncio.gather(*(link.publish(one, timeout=timeout) for one in some))

    # --- what cannot be taken --------------------------------------------------------------------

    async def _bury_faults(self, run: PartitionRun, taken: Taken) -> None:
        for source, entries in taken.items():
            for entry in entries:
                strange = run.strange(source, entry)
                for fault in [*entry.faults, *([] if strange is None else [strange])]:
                    name = self.description.reads[source].name
                    if not await self._host.bury(name, entry, fault, None, 1):
                        raise MyceliaError(
                            f'log "{name}", offset {entry.offset}: what cannot be read could not be made a dead letter.'
                        )
                    self.faults += 1

    async def _bury_refused(
        self, records: list[SinkRecord[Any]], output: str, refused: SinkRefused
    ) -> bool:
        for record in records:
            if not await self._host.bury_refused(self.reads_first.name, output, record, refused):
                return False
            self.dead += 1
        return True

    async def _bury_rejected(self, run: PartitionRun) -> None:
        rejected = run.take_rejected()
        for record, is_there in zip(
            rejected,
            await asyncio.gather(*(self._bury(run, one, 1) for one in rejected)),
            strict=True,
        ):
            if not is_there:
                raise record

    async def _bury(self, run: PartitionRun, failed: RecordFailed, attempts: int) -> bool:
        """Make it a dead letter, so that the flow may go on without it; whether it is one."""
        entry, at = failed.entry, failed.at
        source = self.description.reads[failed.source]
        body = self.description.body_of(failed.source, entry, at)
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
        self.dead += 1
        return True


async def _tell_group(run: PartitionRun, lease: PartitionLease) -> None:
    """Say at the broker how far the partition has come, if that is news."""
    told, offset = lease.position, run.offset
    if offset is not None and (told is None or told.offset != offset):
        await lease.commit(LogPosition(offset=offset))


def _cause_of(record: RecordFailed) -> BaseException | None:
    error = record.__cause__
    return error.__cause__ if isinstance(error, FlowFunctionError) else error


async def _wait(event: asyncio.Event, timeout: float) -> bool:
    """Wait for an event, or until the time is over; whether it has come."""
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        return False
    return True
