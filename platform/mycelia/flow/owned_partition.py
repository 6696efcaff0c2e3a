"""A partition of a stage, as long as it is this instance's own: run from its last commit, and again when something has failed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from mycelia.errors import (
    BrokerBlocked,
    BrokerUnavailable,
    LeaseLost,
    LinkError,
    OffsetGone,
    StateUnavailable,
    describe,
)
from mycelia.flow.async_steps import OnLoop
from mycelia.flow.delivery import SinkDelivery
from mycelia.flow.failed_records import FailedRecords
from mycelia.flow.flow_call import PartitionCalls
from mycelia.flow.group_commit import GroupCommit
from mycelia.flow.inflow import Inflow
from mycelia.flow.next_stages import RoomBehind
from mycelia.flow.partition_pump import PartitionPump
from mycelia.flow.partition_run import (
    PartitionRun,
    RecordFailed,
    RecordsFailed,
    Skipped,
    StageDescription,
)
from mycelia.flow.partition_state import OpensState, PartitionState, StatePlace
from mycelia.flow.stage_host import StageCounts, StageHost, StageOptions
from mycelia.flow.table_sources import table_sources
from mycelia.log_event import event
from mycelia.logs.membership import waited_for
from mycelia.logs.partition_lease import PartitionLease
from mycelia.logs.position import StartAt

__all__ = ["OwnedPartition"]

log = logging.getLogger("mycelia.flow")

PAUSES: Final = (1.0, 5.0, 15.0, 60.0)
"""Seconds that a partition stands still before it tries again what failed; the last again and again."""

STATE_PAUSES: Final = (1.0, 2.0, 5.0)
"""The same where its state could not be read or written, which is not asked of much to look after."""

_OF_FUNCTION: Final = (
    'Mend the function, or let such records become dead letters: on_error="dead-letter".'
)

CALLED_OFF_AFTER: Final = 4.0
"""Seconds for a commit whose broker does not answer, when the partition is to be left. Below what a stop has (`_STOP_WAITS`)."""


class OwnedPartition:
    """Made when the partition has become ours; `run()` ends when it is to be left.

    Args:
        counts: the stage's; counted on.
        opens_state: opens the state of a partition.
    """

    def __init__(
        self,
        host: StageHost,
        description: StageDescription,
        options: StageOptions,
        counts: StageCounts,
        opens_state: OpensState,
        partition: int,
        lease: PartitionLease,
    ) -> None:
        self.partition = partition
        self.offset: int | None = None
        """Of the log that is read first, as of the last commit."""
        self.offsets: dict[str, int] = {}
        """Of all that is read, by source, likewise; also where that commit was a former owner's."""
        self.watermarks: dict[str, int] = {}
        """By step, as of the last commit of the run."""
        self._host = host
        self._description = description
        self._options = options
        self._counts = counts
        self._opens_state = opens_state
        self._lease = lease
        self._leaving = asyncio.Event()
        self._skipped: Skipped = set()
        self._calls = PartitionCalls(host.around, description.name, partition)
        self._failed = FailedRecords(host, description, options, counts)
        self._sinks = {one.name: one.sink for one in description.outputs if one.sink is not None}
        self._awaiting: OnLoop | None = None
        self._state: PartitionState | None = None
        """Of the run of now."""
        self._is_claimed = False
        self._calling_off: asyncio.TimerHandle | None = None
        self._delivery: SinkDelivery | None = None
        self._room: RoomBehind | None = None
        self._why_still: str | None = None

    @property
    def ahead_bytes(self) -> int:
        """Written for the stages behind, and not committed by them yet."""
        return 0 if self._room is None else self._room.bytes

    @property
    def waits_for(self) -> str | None:
        """The stages behind, if it waits for them to take what has been written."""
        return None if self._room is None else self._room.waits

    @property
    def standing_still(self) -> str | None:
        """Why it does not go on; None if it does."""
        delivery = self._delivery
        if self._why_still is None and delivery is not None and delivery.standing_still:
            output, why = next(reversed(delivery.standing_still.items()))
            return f'output "{output}": {why}'
        return self._why_still

    @property
    def delivered(self) -> int:
        """Bodies that sinks have taken, in the run of now."""
        return 0 if self._delivery is None else self._delivery.delivered

    @property
    def waiting_bytes(self) -> int:
        """Of what sinks have not taken yet."""
        return 0 if self._delivery is None else self._delivery.waiting_bytes

    def leave(self) -> None:
        """Let `run()` end, soon."""
        if self._leaving.is_set():
            return
        self._leaving.set()
        if self._awaiting is not None:
            self._awaiting.cancel()
        # What is not the owner yet has nothing to commit.
        patience = CALLED_OFF_AFTER if self._is_claimed else 0.0
        self._calling_off = asyncio.get_running_loop().call_later(patience, self._call_off)

    def _call_off(self) -> None:
        """Wait for the broker no more: neither the partition's lease nor who stops it waits for that."""
        if self._state is not None:
            self._state.call_off()

    async def run(self) -> None:
        """Run the partition until it is to be left, or the lease is lost; what fails is told, and tried again from the last commit.

        Raises:
            LeaseLost: it has another owner.
        """
        try:
            await self._run_until_left()
        finally:
            if self._calling_off is not None:
                self._calling_off.cancel()

    async def _run_until_left(self) -> None:
        leaving, counts = self._leaving, self._counts
        failures = 0
        while self._lease.is_held and not leaving.is_set():
            committed = counts.commits
            try:
                await self._run_once()
                continue
            except LeaseLost:
                raise  # whoever shares the partitions out says it
            except LinkError as exc:
                if not isinstance(exc, BrokerUnavailable | BrokerBlocked):
                    self._why_still = describe(exc)
                log.info(event("flow_waiting", **self._place(), reason=exc))
                pause = 1.0
            except Exception as raised:  # noqa: BLE001  a user's function, or the state: told, and tried again
                told = self._with_ways_out(raised)
                pause = self._stands_still(told, failures)
                failures += 1
                await self._calls.tell_failed(told)
            if counts.commits > committed and failures > 1:
                failures = 1
            await waited_for(leaving, pause)

    # --- once ------------------------------------------------------------------------------------

    async def _run_once(self) -> None:
        host, description = self._host, self._description
        told = None if self._lease.position is None else self._lease.position.offset
        place = StatePlace(
            description.leased_as, description.group, description.name, self.partition, told
        )
        awaiting = self._awaiting = OnLoop(asyncio.get_running_loop())
        if self._leaving.is_set():
            awaiting.cancel()
        run = await host.in_thread(self._opened, place, awaiting)
        self._is_claimed = True
        bury = self._failed.bury_refused if self._options.buries else None
        delivery = self._delivery = SinkDelivery(self._sinks, run.flow, host.called, bury)
        try:
            self._check_state(run, place)
            room = self._room = self._room_behind(run)
            await host.declare()
            inflow = self._inflow(run)
            commits = GroupCommit(
                host,
                description.name,
                self._counts,
                run,
                delivery,
                inflow,
                self._calls,
                bury,
                room,
                lambda watermarks: self._note(run, watermarks),
            )
            self._note(run, {})
            await commits.send(run.left_over)
            try:
                await inflow.open()
                pump = PartitionPump(
                    host,
                    self._options,
                    run,
                    inflow,
                    delivery,
                    commits,
                    room,
                    self._calls,
                    self._failed,
                    self._lease,
                    self._leaving,
                    self._goes_on,
                )
                await pump.run()
            finally:
                await inflow.aclose()
        finally:
            self._room = None
            await self._end_delivery(run, delivery)
            await host.in_thread(run.close)
            self._state, self._is_claimed = None, False

    def _opened(self, place: StatePlace, awaiting: OnLoop) -> PartitionRun:
        state = self._state = self._opens_state(place)
        if self._leaving.is_set():
            state.call_off()
        return PartitionRun(
            self._description,
            self.partition,
            state,
            self._lease.epoch or 1,
            self._skipped,
            collects=self._options.buries,
            run=awaiting,
        )

    def _inflow(self, run: PartitionRun) -> Inflow:
        link, partition, positions = self._host.link, self.partition, run.positions
        description = self._description
        tables = table_sources(description.plan)
        starts: dict[str, StartAt] = {
            # Of a table all is read that there is. Of a log between stages nothing is passed over, whatever the flow begins with: what it does not
            # hold any more is missed, also by a stage that has never taken anything.
            **dict.fromkeys(description.sources, self._options.start),
            **dict.fromkeys(tables, "first"),
            **dict.fromkeys(description.relays, 0),
            **positions,
        }
        return Inflow(
            {
                name: source.reader(link, partition, starts[name])
                for name, source in description.reads.items()
                if partition < source.partitions
            },
            tables,
        )

    def _room_behind(self, run: PartitionRun) -> RoomBehind | None:
        next_stages, partition = self._host.next_stages, self.partition
        next_stages.note(self._description.name, partition, run.positions)
        sequences = run.state.checkpoint.sequences
        called = self._host.called
        return next_stages.room_behind(self._description, run.flow, sequences, called, partition)

    def _check_state(self, run: PartitionRun, place: StatePlace) -> None:
        """
        Raises:
            StateUnavailable: the group has come further than this state says: its state is elsewhere.
        """
        told, kept = self._lease.position, run.offset
        if told is not None and (kept is None or kept < told.offset):
            has = "no state" if kept is None else f"the state of offset {kept}"
            raise StateUnavailable(
                str(place),
                run.state.where,
                f"the group has come to offset {told.offset}, and here is {has}. It has run on another machine, or in another "
                "directory, or the file was removed. Give all instances the same directory (mycelia.flows.state), bring the file back, go on from a "
                "savepoint, reset the flow, or let the flow begin anew with another group=",
            )

    async def _end_delivery(self, run: PartitionRun, delivery: SinkDelivery) -> None:
        await delivery.aclose()
        if delivery.delivered:
            run.state.sent(delivery.done_up_to())
            with suppress(StateUnavailable):  # then the next owner delivers it again
                await self._host.in_thread(run.state.forget_sent)
        self._counts.delivered += delivery.delivered
        self._delivery = None

    # --- what is told of it ----------------------------------------------------------------------

    def _place(self) -> dict[str, object]:
        return {
            "call": self._host.called,
            "stage": self._description.name,
            "partition": self.partition,
        }

    def _note(self, run: PartitionRun, watermarks_ms: Mapping[str, int]) -> None:
        """As of a commit."""
        self.offsets = {name: one.offset for name, one in run.positions.items()}
        self.offset = self.offsets.get(self._description.first, self.offset)
        self.watermarks = dict(watermarks_ms)

    def _goes_on(self) -> None:
        """The engine has taken something, or time has come by."""
        self._why_still = None

    def _with_ways_out(self, error: Exception) -> Exception:
        if not isinstance(error, OffsetGone):
            return error
        group = self._description.group
        return error.with_remedy(
            f"Stop the flow. Two ways out: begin anew, without its state, from a place that its logs still have (mycelia flow reset {group} --from first), or go "
            f"on from a savepoint that is not as far behind (mycelia flow reset {group} --savepoint DIRECTORY). Have the log retain more than its flows "
            "are ever behind."
        )

    def _stands_still(self, error: Exception, failures: int) -> float:
        """Say it; returns for how long."""
        pauses = STATE_PAUSES if isinstance(error, StateUnavailable) else PAUSES
        pause = pauses[min(failures, len(pauses) - 1)]
        failed = error.failed[0] if isinstance(error, RecordsFailed) else error
        record = failed if isinstance(failed, RecordFailed) else None
        of_function = failed.__cause__ if record is not None else failed
        cause = getattr(of_function, "__cause__", None) or error
        reads = self._description.reads
        source = next(iter(reads)) if record is None else record.source
        key = getattr(of_function, "key", None)
        why = self._why_still = describe(failed)
        if record is not None and of_function is not None and not self._options.buries:
            self._why_still = f"{why.removesuffix('.')}. {_OF_FUNCTION}"
        log.error(
            event(
                "flow_stands_still",
                **self._place(),
                log=reads[source].name,
                offset=None if record is None else record.entry.offset,
                record=None if record is None else record.index,
                operator=getattr(of_function, "operator", None),
                key=None if key is None else repr(key)[:80],
                error=self._why_still,
                retry_in_s=pause,
            ),
            exc_info=None if isinstance(error, StateUnavailable | LinkError) else cause,
        )
        return pause
