"""What is behind `@log_handler`: a method that is given the records of a log, entry by entry, each partition by one instance of a group at a time."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Sequence
from random import Random
from typing import Any, Final, Generic, TypeVar, Unpack

import msgspec

from mycelia.amqp import Queue
from mycelia.call import Arguments, Call, CallKind, GiveBack, Outcome, Settlement
from mycelia.durations import Duration, seconds_of
from mycelia.entrypoints.dead_letters import DeadLetters
from mycelia.entrypoints.tick_lease import LeaseLink
from mycelia.errors import (
    BrokerBlocked,
    BrokerUnavailable,
    ConfigError,
    LinkError,
    OffsetGone,
    describe,
)
from mycelia.log_event import event
from mycelia.logs.append_call import MAX_LINKS, carried_trace
from mycelia.logs.bad_records import with_possible_times
from mycelia.logs.burial import bury_entry, bury_faults
from mycelia.logs.group_names import claim_group
from mycelia.logs.group_places import GroupPlace, progress_stream, tell_place
from mycelia.logs.lag_watch import LagWatch
from mycelia.logs.layout import declare_log
from mycelia.logs.log import Log
from mycelia.logs.membership import Membership, waited_for
from mycelia.logs.partition_lease import PartitionLease
from mycelia.logs.position import StartAt, checked_start
from mycelia.logs.reader import LogEntry, LogReader
from mycelia.logs.record import RecordHeaders
from mycelia.policies.retry import Retry, fixed
from mycelia.runtime import Container, Entrypoint, EntrypointArguments
from mycelia.runtime.lane import Lane
from mycelia.wire import TRACEPARENT

__all__ = ["GroupStatistics", "LogCall", "LogHandler", "LogHandlerStatistics"]

log = logging.getLogger("mycelia.logs")

T = TypeVar("T")

COMMIT_EVERY: Final = 1.0
"""Seconds between two checkpoints. What has been handled since the last one comes again when the process dies."""

_LOOK_UP: Final = 0.25
"""Seconds after which a partition that has nothing to read looks whether it is to be left."""

_STOP_WAITS: Final = 8.0
"""Seconds that a stop leaves to methods that run, so that their end is written down; below the container's 10 s for a hook."""

_REMIND_EVERY: Final = 60.0

LOG_RETRY: Final = Retry(attempts=6, backoff=fixed("500ms", "2s", "10s", "30s", "60s"))
"""A partition waits for its entry, so that its order holds; a good minute and a half, then the entry is a dead letter."""


class LogCall(Call, Generic[T], eq=False, kw_only=True):
    """A call with the records of an entry. Its trace is that of the batch; it links to those that records name in their headers."""

    entry: LogEntry[T]
    ended: asyncio.Future[tuple[Outcome, Settlement]]

    @property
    def item_count(self) -> int:
        return len(self.entry.values)

    def decode_if_small(self) -> Arguments:
        return self.decode()  # it has been read

    def linked(self) -> Sequence[Call]:
        found: dict[str, RecordHeaders] = {}
        for headers in self.entry.headers if any(self.entry.headers) else ():
            if headers and isinstance(trace := headers.get(TRACEPARENT), str):
                found.setdefault(trace, headers)
                if len(found) == MAX_LINKS:
                    break
        linked = (Call(self.target, headers=headers) for headers in found.values())
        return [Call(self.target, headers=carried_trace(call)) for call in linked]


class GroupStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What an instance of a group has done in this process, and what it has now."""

    log: str
    group: str
    partitions: list[int]
    """That are this instance's own."""
    records: int
    """Handled."""
    faults: int
    """Records and entries that could not be read, and are dead letters."""
    dead: int
    """What could not be handled, and is a dead letter: whole entries of a log handler, records of a flow."""
    lag: dict[int, int]
    """Entries of each partition that have not been handled (of a flow: not committed); where it is known. 0 once it is another's."""
    stays_out: str | None = None
    """Why it takes no partition, if it does not: another method, elsewhere, is this group."""


class LogHandlerStatistics(GroupStatistics, frozen=True, kw_only=True):
    """What a log handler has done in this process, and what it has now."""

    entries: int
    """Handled."""
    checkpoints: int
    standing_still: dict[int, str] = {}
    """Why partitions do not go on, by partition: their place or their stream is gone, or their dead letters cannot be published."""

    def troubles(self) -> list[str]:
        """As `TellsTroubles`: partitions that stand still, and a group that is another's."""
        out = [] if self.stays_out is None else [f"log {self.log}: {self.stays_out}"]
        return out + [
            f"log {self.log}: partition {partition} of group {self.group} stands still: {why:.200}"
            for partition, why in self.standing_still.items()
        ]


class _Kept:
    """The settler of an entry that is being handled: it is read already, so that losing its channel loses nothing."""

    is_lost = False

    def ack(self, delivery_tag: int) -> None: ...

    def nack(self, delivery_tag: int, requeue: bool) -> None: ...


_KEPT: Final = _Kept()


class LogHandler(Entrypoint):
    """The entrypoint behind `@log_handler`.

    The method gets a list of `Record`, those of one entry, and has handled them when it returns. The partitions of the log are shared
    evenly by the instances of a group; as they come and go, partitions move within seconds. In a partition one entry is handled after
    the other, so the order of a key holds; partitions are handled at the same time. How far the group has come is kept at the broker,
    written down every second: an entry is handled at least once, and again where a process died before its end was written.

    Args:
        source: the `Log`.
        group: instances of the same group share the partitions, groups know nothing of each other; `service.method` by default.
        start: where a group begins that has never run: `"first"`, `"last"`, `"next"`, an offset, or a time.
        retry: how often an entry is tried, its partition waiting meanwhile; then it is a dead letter. 0.5 s, 2 s, 10 s, 30 s and a minute
            apart by default; `None`: once.
        ahead: how far beyond now a record's time may lie, a year by default; one that lies further, or before 1970, is a dead letter (`rejected`).
            `None`: any time.
        options: those of every entrypoint (`Entrypoint`); `concurrency` is of partitions at once.
    """

    kind = CallKind.LOG
    container: Container
    needs_broker = True
    dead_letters = DeadLetters()
    leases = LeaseLink()

    def __init__(
        self,
        source: Log[Any],
        *,
        group: str | None = None,
        start: StartAt = "first",
        retry: Retry | None = LOG_RETRY,
        ahead: Duration | None = "365d",
        **options: Unpack[EntrypointArguments],
    ) -> None:
        super().__init__(**options)
        if not isinstance(source, Log):
            raise ValueError(f"{source!r:.60} is no Log.")
        if retry is not None and not isinstance(retry, Retry):
            raise ValueError(f"retry={retry!r:.60}: expected a Retry, or None.")
        if group is not None and not (type(group) is str and group):
            raise ValueError(f"group={group!r:.60}: expected a name.")
        self.source = source
        self.group: str | None = group
        self.start_at = checked_start(start, f'log "{source.name}"')
        self.retry = Retry(attempts=1) if retry is None else retry
        self.ahead: float | None = None if ahead is None else seconds_of(ahead, "ahead=")
        self._random = Random()
        self._progress: Queue | None = None
        self._lane: Lane | None = None
        self._membership: Membership | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._lag: LagWatch | None = None
        self._handled: dict[int, int] = {}
        """By partition, the offset behind what has been handled, written down or not."""
        self._leave: dict[int, asyncio.Event] = {}
        self._standing_still: dict[int, str] = {}
        self._unburied: set[int] = set()
        """Partitions whose dead letters could not be published: reading goes on, and they do not."""
        self._entries = self._records = self._faults = self._dead = self._checkpoints = 0

    # --- life ------------------------------------------------------------------------------------

    async def setup(self) -> None:
        method = self.target.name
        required = [
            parameter
            for parameter in list(inspect.signature(self.method).parameters.values())[1:]
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        if len(required) != 1:
            raise ConfigError(
                f"{method}: a log handler's method takes one argument, a list of records."
            )
        self.group = self.group or method
        claim_group(self.container.host, self.source.name, self.group, method)
        await declare_log(self.container.host.link, self.source.layout)
        self._progress = progress_stream(self.source.name, self.group)
        await self.container.host.link.declare(self._progress)

    def start(self) -> None:
        self._lane = self.container.make_lane(self)
        assert self.group is not None
        self._membership = Membership(
            self.leases.link,
            self.source.name,
            self.group,
            self.source.partitions,
            self._own,
            self._leave_partition,
            self.target.name,
        )
        self._lag = LagWatch(self.container.host.link, self.source.name, self._offsets)
        name = f"mycelia:log:{self.source.name}--{self.group}"
        self._tasks = [
            asyncio.create_task(self._membership.run(), name=name),
            asyncio.create_task(self._lag.run(), name=f"{name}:lag"),
        ]

    async def stop(self) -> None:
        """Take no further entry, write down what has been handled, and leave the partitions to others. Idempotent."""
        await self._end(_STOP_WAITS)

    async def kill(self) -> None:
        await self._end(0.1)

    async def _end(self, timeout: float) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        membership, self._membership = self._membership, None
        if membership is not None:
            await membership.aclose(timeout)

    def statistics(self) -> LogHandlerStatistics:
        return LogHandlerStatistics(
            log=self.source.name,
            group=self.group or "",
            partitions=[] if self._membership is None else self._membership.owned,
            entries=self._entries,
            records=self._records,
            faults=self._faults,
            dead=self._dead,
            checkpoints=self._checkpoints,
            lag=self._known_lag(),
            standing_still=dict(self._standing_still),
            stays_out=None if self._membership is None else self._membership.stays_out,
        )

    def _offsets(self) -> dict[int, int]:
        """Where it goes on in each of its partitions."""
        written = {} if self._membership is None else self._membership.offsets()
        return written | self._handled

    def _known_lag(self) -> dict[int, int]:
        return {} if self._lag is None else self._lag.lag()

    # --- a partition -----------------------------------------------------------------------------

    def _leave_partition(self, partition: int) -> None:
        leaving = self._leave.get(partition)
        if leaving is not None:
            leaving.set()

    async def _own(self, partition: int, lease: PartitionLease) -> None:
        """Handle a partition until it is to be left.

        Raises:
            LeaseLost: it is another's.
        """
        leaving = self._leave[partition] = asyncio.Event()
        try:
            while lease.is_held and not leaving.is_set():
                start = self.start_at if lease.position is None else lease.position
                reader = self.source.reader(self.container.host.link, partition, start)
                try:
                    await self._follow(reader, lease, leaving)
                except OffsetGone as gone:
                    exc = gone.with_remedy(
                        f"Stop the handler, and have it begin elsewhere, knowing that: mycelia log replay {self.source.name} {self.group} --from first. Have "
                        "the log retain more than its handlers are ever behind."
                    )
                    # Not ours to decide: whoever operates it says where to go on.
                    self._stands_still(partition, lease, describe(exc))
                    log.error(
                        event(
                            "log_handler_stands_still",
                            call=self.target.name,
                            log=self.source.name,
                            partition=partition,
                            reason=exc,
                        )
                    )
                    await waited_for(leaving, _REMIND_EVERY)
                except LinkError as exc:
                    if not isinstance(exc, BrokerUnavailable | BrokerBlocked):
                        self._stands_still(partition, lease, describe(exc))
                    log.info(
                        event(
                            "log_handler_waiting",
                            call=self.target.name,
                            partition=partition,
                            reason=exc,
                        )
                    )
                    await waited_for(leaving, 1.0)
                finally:
                    await reader.aclose()
        finally:
            self._leave.pop(partition, None)
            self._handled.pop(partition, None)
            self._standing_still.pop(partition, None)
            self._unburied.discard(partition)

    async def _follow(
        self, reader: LogReader[Any], lease: PartitionLease, leaving: asyncio.Event
    ) -> None:
        loop = self.container.loop
        await reader.open()
        if reader.partition not in self._unburied:
            self._standing_still.pop(reader.partition, None)
        if lease.position is None and reader.position is not None:
            await self._commit(reader, lease)  # so that "next" means the same to the next owner
        is_told = True
        tell_at = 0.0
        self._tell(reader, lease)
        remind_at = loop.time() + _REMIND_EVERY
        try:
            while lease.is_held and not leaving.is_set():
                entry = await reader.take(timeout=_LOOK_UP)
                if entry is not None:
                    if not await self._handle(entry, lease, leaving):
                        if entry.partition in self._unburied:
                            self._stands_still(
                                entry.partition, lease, "a dead letter cannot be published"
                            )
                        is_told = True  # the position is behind an entry that has not been handled
                        return
                    if entry.partition in self._unburied:
                        self._unburied.discard(entry.partition)
                        self._standing_still.pop(entry.partition, None)
                    if is_told:
                        is_told = False
                        tell_at = loop.time() + COMMIT_EVERY
                if not is_told and loop.time() >= tell_at:
                    await self._commit(reader, lease)
                    is_told = True
                    remind_at = loop.time() + _REMIND_EVERY
                elif loop.time() >= remind_at:
                    self._tell(reader, lease)
                    remind_at = loop.time() + _REMIND_EVERY
        finally:
            if not is_told and lease.is_held:
                await self._commit(reader, lease)

    async def _commit(self, reader: LogReader[Any], lease: PartitionLease) -> None:
        await lease.commit(reader.position)
        self._checkpoints += 1
        self._tell(reader, lease)

    def _stands_still(self, partition: int, lease: PartitionLease, why: str) -> None:
        """It does not go on: said to `/ready`, metrics and `mycelia log lag`."""
        self._standing_still[partition] = why
        if lease.position is not None:
            self._tell_offset(partition, lease.position.offset, lease)

    def _tell(self, reader: LogReader[Any], lease: PartitionLease) -> None:
        """Say how far it has come, for `mycelia log lag`."""
        if reader.offset is not None:
            self._tell_offset(reader.partition, reader.offset, lease)

    def _tell_offset(self, partition: int, offset: int, lease: PartitionLease) -> None:
        if self._progress is None:
            return
        place = GroupPlace(
            partition=partition,
            offset=offset,
            epoch=lease.epoch,
            owner=lease.owner,
            at_ms=int(time.time() * 1000),
            standing_still=self._standing_still.get(partition),
        )
        tell_place(self.container.host.link, self._progress, place)

    # --- an entry --------------------------------------------------------------------------------

    async def _handle(
        self, entry: LogEntry[Any], lease: PartitionLease, leaving: asyncio.Event
    ) -> bool:
        """Have an entry handled, or buried. False: neither, and whoever has the partition next is to do it."""
        if self.ahead is not None:
            now_ms = int(time.time() * 1000)
            codec = self.source.shape.codec
            entry = with_possible_times(entry, codec, now_ms, int(self.ahead * 1000))
        if entry.faults and not await self._bury_faults(entry):
            return False
        attempt = 0
        while entry.values:
            attempt += 1
            outcome, settlement = await self._run(entry, attempt)
            if isinstance(settlement, GiveBack):
                return False
            error = outcome.error
            if error is None:
                break
            delay = (
                self.retry.delay_after(error, attempt, self._random)
                if isinstance(error, Exception)
                else None
            )
            if delay is None:
                if not await self._bury(entry, error, attempt):
                    return False
                self._dead += 1
                break
            if await waited_for(leaving, delay) or not lease.is_held:
                return False
        self._handled[entry.partition] = entry.offset + 1
        self._entries += 1
        self._records += len(entry.values)
        self._faults += len(entry.faults)
        return True

    async def _run(self, entry: LogEntry[Any], attempt: int) -> tuple[Outcome, Settlement]:
        assert self._lane is not None
        ended: asyncio.Future[tuple[Outcome, Settlement]] = self.container.loop.create_future()
        self._lane.submit(
            LogCall(
                self.target,
                headers=entry.delivery.properties.headers,
                message=msgspec.structs.replace(entry.delivery, settler=_KEPT),
                read=_records_of,
                attempt=attempt,
                parent_calls_tracked=self.container.settings.parent_calls_tracked,
                entry=entry,
                ended=ended,
            )
        )
        return await ended

    def settle(self, call: Call, outcome: Outcome, settlement: Settlement) -> None:
        assert isinstance(call, LogCall)
        if not call.ended.done():
            call.ended.set_result((outcome, settlement))

    # --- what cannot be handled ------------------------------------------------------------------

    async def _bury_faults(self, entry: LogEntry[Any]) -> bool:
        """Bury what of an entry cannot be taken. Whether the dead letters are there."""
        assert self.group is not None
        letters, name = self.dead_letters, self.source.name
        if await bury_faults(letters, name, self.group, self.method_name, entry):
            return True
        self._unburied.add(entry.partition)
        reason = entry.faults[0].reason
        log.error(event("log_dead_letter_failed", call=self.target.name, error=reason))
        return False

    async def _bury(self, entry: LogEntry[Any], error: BaseException, attempts: int) -> bool:
        """Bury an entry that could not be handled. Whether the dead letter is there."""
        assert self.group is not None
        letters, name = self.dead_letters, self.source.name
        if await bury_entry(letters, name, self.group, self.method_name, entry, error, attempts):
            return True
        self._unburied.add(entry.partition)
        log.error(event("log_dead_letter_failed", call=self.target.name, error=describe(error)))
        return False


def _records_of(call: Call) -> Arguments:
    assert isinstance(call, LogCall)
    return (call.entry.records,), {}
