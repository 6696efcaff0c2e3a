"""`@flow`: a method of a service that describes a flow over a log. The service runs it, with durable state, sharing partitions as log handlers do."""

from __future__ import annotations

import asyncio
import inspect
import logging
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args
from urllib.parse import quote

from mycelia.amqp import Message
from mycelia.durations import Duration, seconds_of
from mycelia.errors import (
    ConfigError,
    LeaseLost,
    LinkError,
    MyceliaError,
    StateUnavailable,
    describe,
)
from mycelia.flow.graph import FlowPlan
from mycelia.flow.outputs import FlowOutput, checked_outputs
from mycelia.flow.partition_run import FlowDescription, PartitionRun, RecordFailed
from mycelia.flow.stream import source as stream_of
from mycelia.log_event import event
from mycelia.logs import FaultyRecord, Log, LogEntry, LogHandler, LogReader
from mycelia.logs.layout import declare_log
from mycelia.logs.log_handler import GroupStatistics
from mycelia.logs.partition_lease import PartitionLease
from mycelia.logs.position import StartAt
from mycelia.runtime.decorators import decorator_of
from mycelia.runtime.settings import FlowsSection
from mycelia.runtime.topology import event_exchange

__all__ = ["FlowHandler", "FlowStatistics", "flow"]

log = logging.getLogger("mycelia.flow")

R = TypeVar("R")

OnError = Literal["fail", "dead-letter"]

BATCH_RECORDS: Final = 2000
"""Records that the engine is given at once. It runs in a thread, so this bounds how soon a stop is seen, not how long the loop waits."""

PUBLISHED_AT_ONCE: Final = 200
"""Events on their way to the broker."""

TICK_EVERY: Final = 0.25
"""Seconds of silence after which time on the wall is let by, and it is looked whether the partition is to be left."""

TELL_EVERY: Final = 1.0
"""Seconds between two words to the broker of how far the group has come. What counts is the state file."""

PAUSES: Final = (1.0, 5.0, 15.0, 60.0)
"""Seconds that a partition stands still before it tries again what failed; the last again and again."""

_STOP_WAITS: Final = 8.0
_THREADS: Final = 4


class FlowStatistics(GroupStatistics, frozen=True, kw_only=True):
    """What a flow has done in this process, and has. `records` are committed; `dead` are those that it went on without: a function raised
    over them, or they have no key, or an impossible time."""

    standing_still: dict[int, str]
    """Of those that do not go on, why."""
    commits: int
    published: int
    """Messages: batches of logs, and events."""
    watermarks_ms: dict[int, dict[str, int]]
    """By partition and step, as of the last commit."""


class FlowHandler(LogHandler):
    """The entrypoint behind `@flow`.

    The method is called once, when the service starts, with the stream of the log's records, and returns where its streams go: `Stream.to()`,
    `Stream.emit()`. Each partition is run by one instance of the group at a time, for itself: state, windows and joins are of the records
    of one partition. State, position, timers, watermarks and what is to leave are committed together in a file of SQLite in
    `mycelia.flows.state`; a commit of an owner that another has followed is refused. Then what leaves is published, with confirms; after a crash
    perhaps again, with the same ids.

    Args:
        source: the `Log`.
        group: the flow's name: of its leases and its state. `service.method` by default; another one begins anew.
        start: where it begins when it has never run: `"first"`, `"last"`, `"next"`, an offset, or a time.
        commit_every: how long records wait for the commit, "200ms" by default: results leave that much later.
        commit_records: how many records a commit has at most, 20,000 by default.
        on_error: what becomes of a record over which a function raises. `"fail"`, the default: its partition stands still, says so, and tries
            again; `"dead-letter"`: it is a dead letter, and the flow goes on without it.
    """

    def __init__(
        self,
        source: Log[Any],
        *,
        group: str | None = None,
        start: StartAt = "first",
        commit_every: Duration = "200ms",
        commit_records: int = 20_000,
        on_error: OnError = "fail",
    ) -> None:
        super().__init__(source, group=group, start=start, retry=None)
        self.commit_every = seconds_of(commit_every, "commit_every=")
        if type(commit_records) is not int or commit_records < 1:
            raise ValueError(f"commit_records={commit_records!r:.60}: expected a number, from 1.")
        if on_error not in get_args(OnError):
            raise ValueError(f'on_error={on_error!r:.60}: expected "fail" or "dead-letter".')
        self.commit_records = commit_records
        self.on_error = on_error
        self._description: FlowDescription | None = None
        self._directory = Path()
        self._outputs: tuple[FlowOutput, ...] = ()
        self._threads: ThreadPoolExecutor | None = None
        self._standing_still: dict[int, str] = {}
        self._watermarks: dict[int, dict[str, int]] = {}
        self._skipped: dict[int, set[tuple[int, int]]] = {}
        self._commits = self._published = 0

    # --- life ------------------------------------------------------------------------------------

    async def setup(self) -> None:
        name = self.target.name
        group = self.group = self.group or name
        container = self.container
        if inspect.iscoroutinefunction(self.method):
            raise ConfigError(
                f"{name}: the method under @flow describes the flow, once; make it `def`, not `async def`."
            )
        of = self.source.shape.codec.of
        described = self.method(
            container.service_cls(), stream_of(self.source.name, object if of is None else of)
        )
        self._outputs = checked_outputs(described, name)
        self._description = FlowDescription(
            group,
            self.source.name,
            FlowPlan({one.name: one.port for one in self._outputs}),
            self._outputs,
            event_exchange(container.service_name, container.config).name,
            container.host.serializers.by_name(None),
        )
        self._directory = self._made_directory()
        await self._declare()

    def _made_directory(self) -> Path:
        """Where the state files are, made and tried.

        Raises:
            ConfigError: they cannot be there.
        """
        section = self.container.settings.mycelia.flows or FlowsSection()
        group = f"{quote(self.source.name, safe='')}--{quote(self.group or '', safe='')}"
        directory = Path(section.state).absolute() / group
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                return directory
        except OSError as exc:
            raise ConfigError(
                f"{self.target.name}: its state cannot be kept in {directory}: {exc.strerror or exc}. Set mycelia.flows.state to a "
                "directory that this process may write, and that all instances on this machine share."
            ) from exc

    async def _declare(self) -> None:
        """The log that is read, and where the outputs go."""
        link = self.container.host.link
        await declare_log(link, self.source.layout)
        for output in self._outputs:
            if output.log is not None:
                await declare_log(link, output.log.layout)
        config = self.container.config
        if any(output.event_type for output in self._outputs) and (
            config.get("DECLARE_EVENT_EXCHANGES") is not False
        ):
            await link.declare(event_exchange(self.container.service_name, config))

    def start(self) -> None:
        assert self.group is not None
        self._threads = ThreadPoolExecutor(
            min(_THREADS, self.source.partitions), f"mycelia-flow-{self.group}"
        )
        self._join_group("flow")

    async def _end(self, timeout: float) -> None:
        await super()._end(timeout)
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)

    def statistics(self) -> FlowStatistics:  # type: ignore[override]  # of its own kind
        return FlowStatistics(
            log=self.source.name,
            group=self.group or "",
            partitions=[] if self._membership is None else self._membership.owned,
            standing_still=dict(self._standing_still),
            records=self._records,
            commits=self._commits,
            published=self._published,
            faults=self._faults,
            dead=self._dead,
            watermarks_ms=dict(self._watermarks),
            lag=self._known_lag(),
        )

    async def _in_thread(self, function: Callable[..., R], *args: Any) -> R:
        """Run it beside the loop. Cancelled, it waits for the end, because what runs holds the partition's file."""
        assert self._threads is not None
        running = self.container.loop.run_in_executor(self._threads, function, *args)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running], timeout=_STOP_WAITS)
            raise

    # --- a partition -----------------------------------------------------------------------------

    async def _own(self, partition: int, lease: PartitionLease) -> None:
        """Run a partition until it is to be left, or the lease is lost; what fails is told, and tried again from the last commit."""
        leaving = self._leave[partition] = asyncio.Event()
        failures = 0
        try:
            while lease.is_held and not leaving.is_set():
                committed = self._commits
                try:
                    await self._run_partition(partition, lease, leaving)
                    continue
                except LeaseLost as exc:
                    log.info(
                        event(
                            "log_checkpoint_refused",
                            call=self.target.name,
                            partition=partition,
                            reason=exc,
                        )
                    )
                    return
                except LinkError as exc:
                    log.info(
                        event(
                            "flow_waiting",
                            call=self.target.name,
                            partition=partition,
                            reason=exc,
                        )
                    )
                    pause = 1.0
                except RecordFailed as exc:
                    if self.on_error == "dead-letter" and await self._bury_record(exc):
                        skipped = self._skipped.setdefault(partition, set())
                        skipped.add((exc.entry.offset, exc.index))
                        continue
                    pause = self._stands_still(partition, exc, failures)
                    failures += 1
                except Exception as exc:  # noqa: BLE001  a user's function, or the file: told, and tried again
                    pause = self._stands_still(partition, exc, failures)
                    failures += 1
                if self._commits > committed and failures > 1:
                    failures = 1
                await _wait(leaving, pause)
        finally:
            for kept in (self._leave, self._standing_still, self._skipped, self._watermarks):
                kept.pop(partition, None)

    def _stands_still(self, partition: int, error: Exception, failures: int) -> float:
        """Say it; returns for how long."""
        pause = PAUSES[min(failures, len(PAUSES) - 1)]
        cause = error.__cause__ if isinstance(error, RecordFailed) else error
        failed = getattr(cause, "__cause__", None) or error
        self._standing_still[partition] = describe(error)
        log.error(
            event(
                "flow_stands_still",
                call=self.target.name,
                log=self.source.name,
                partition=partition,
                offset=error.entry.offset if isinstance(error, RecordFailed) else None,
                record=error.index if isinstance(error, RecordFailed) else None,
                operator=getattr(cause, "operator", None),
                key=repr(key)[:80] if (key := getattr(cause, "key", None)) is not None else None,
                error=describe(error),
                retry_in_s=pause,
            ),
            exc_info=None if isinstance(error, StateUnavailable | LinkError) else failed,
        )
        return pause

    async def _run_partition(
        self, partition: int, lease: PartitionLease, leaving: asyncio.Event
    ) -> None:
        assert self._description is not None
        path = self._directory / f"{partition}.sqlite3"
        run = await self._in_thread(
            PartitionRun, self._description, partition, path, lease.epoch or 1
        )
        try:
            start = self._start_of(run, lease)
            await self._declare()
            await self._publish(run.left_over)
            if run.left_over:
                run.file.sent(run.left_over[-1][0])
            reader = self.source.reader(self.container.host.link, partition, start)
            try:
                await reader.open()
                await self._pump(run, reader, lease, leaving)
            finally:
                await reader.aclose()
        finally:
            await self._in_thread(run.close)

    def _start_of(self, run: PartitionRun, lease: PartitionLease) -> StartAt:
        """Where to go on.

        Raises:
            StateUnavailable: the group has come further than this file says: its state is elsewhere.
        """
        told, kept = lease.position, run.position
        if told is not None and (kept is None or kept.offset < told.offset):
            has = "no state" if kept is None else f"the state of offset {kept.offset}"
            raise StateUnavailable(
                f'flow "{self.group}", partition {run.partition}',
                str(run.file.path),
                f"the group has come to offset {told.offset}, and here is {has}. It has run on another machine, or in another "
                "directory, or the file was removed. Give all instances the same directory (mycelia.flows.state), bring the file back, or "
                "let the flow begin anew with another group=",
            )
        return self.start_at if kept is None else kept

    async def _pump(
        self,
        run: PartitionRun,
        reader: LogReader[Any],
        lease: PartitionLease,
        leaving: asyncio.Event,
    ) -> None:
        """Take, compute, commit, publish; until the partition is to be left."""
        loop = self.container.loop
        skipped = self._skipped.setdefault(run.partition, set())
        if run.position is None and reader.position is not None:
            await self._commit_run(run, reader)  # so that "next" means the same to the next one
        commit_at: float | None = None
        tell_at = loop.time() + TELL_EVERY
        has_news = False
        while lease.is_held and not leaving.is_set():
            until = TICK_EVERY if commit_at is None else max(commit_at - loop.time(), 0.0)
            entries = await _gather(reader, min(until, TICK_EVERY))
            if entries:
                for entry in entries:
                    await self._bury_faults(entry)
                for failed in await self._in_thread(run.feed, entries, skipped, _now_ms()):
                    if not await self._bury_record(failed):
                        raise failed
                has_news = True
            else:
                await self._in_thread(run.tick, _now_ms())
                has_news = has_news or run.has_given
            self._standing_still.pop(run.partition, None)
            if has_news and commit_at is None:
                commit_at = loop.time() + self.commit_every
            is_due = commit_at is not None and loop.time() >= commit_at
            if is_due or run.uncommitted >= self.commit_records:
                await self._commit_run(run, reader)
                commit_at, has_news = None, False
            if commit_at is None and loop.time() >= tell_at:
                tell_at = loop.time() + TELL_EVERY
                if run.position != lease.position:
                    await lease.commit(run.position)
        if lease.is_held:
            if has_news:
                await self._commit_run(run, reader)
            await self._in_thread(run.file.forget_sent)
            if run.position != lease.position:
                await lease.commit(run.position)

    async def _commit_run(self, run: PartitionRun, reader: LogReader[Any]) -> None:
        records = run.uncommitted
        numbered = await self._in_thread(run.commit, reader.position, _now_ms())
        self._commits += 1
        self._records += records
        self._watermarks[run.partition] = run.watermarks()
        if run.position is not None:
            skipped = self._skipped.get(run.partition, set())
            skipped -= {one for one in skipped if one[0] < run.position.offset}
        await self._publish(numbered)
        if numbered:
            run.file.sent(numbered[-1][0])

    # --- what leaves -----------------------------------------------------------------------------

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
        self._published += len(numbered)

    async def _publish_lane(self, messages: list[Message]) -> None:
        link, timeout = self.container.host.link, self.container.settings.mycelia.publish_timeout
        at_once = 1 if messages[0].mandatory else PUBLISHED_AT_ONCE
        for begin in range(0, len(messages), at_once):
            some = messages[begin : begin + at_once]
            await asyncio.gather(*(link.publish(one, timeout=timeout) for one in some))

    # --- what cannot be taken --------------------------------------------------------------------

    async def _bury_faults(self, entry: LogEntry[Any]) -> None:
        for fault in entry.faults:
            if not await self._bury_fault(entry, fault):
                raise MyceliaError(
                    f"offset {entry.offset}: what cannot be read could not be made a dead letter."
                )
            self._faults += 1

    async def _bury_record(self, failed: RecordFailed) -> bool:
        """Make it a dead letter, so that the flow may go on without it; whether it is one."""
        entry, at = failed.entry, failed.at
        body = self.source.shape.codec.encode([entry.values[at]])
        letter = FaultyRecord(failed.index, str(failed), entry.keys[at], entry.times[at], body)
        if not await self._bury_fault(entry, letter, failed):
            return False
        self._dead += 1
        return True


async def _gather(reader: LogReader[Any], timeout: float) -> list[LogEntry[Any]]:
    """The next entry, and what else is there already, up to the records of a batch."""
    entries: list[LogEntry[Any]] = []
    records = 0
    entry = await reader.take(timeout)
    while entry is not None:
        entries.append(entry)
        records += len(entry.values)
        if records >= BATCH_RECORDS:
            break
        entry = await reader.take(0)
    return entries


def _now_ms() -> int:
    return int(time.time() * 1000)


async def _wait(event: asyncio.Event, timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        return


flow = decorator_of(
    "flow",
    FlowHandler,
    "Run the flow that a method describes, over a log: `@flow(DEPARTED)`, "
    '`@flow(DEPARTED, commit_every="50ms", on_error="dead-letter")`.',
)
