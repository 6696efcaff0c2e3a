"""What is behind `@flow`: a method of a service that describes a flow over logs. The service runs its stages, with durable state, sharing their partitions."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, Literal, TypeVar, get_args

from mycelia.amqp import Delivery, Link, Message, Properties
from mycelia.call import CallKind
from mycelia.durations import Duration, seconds_of
from mycelia.entrypoints.dead_letters import DeadLetters
from mycelia.entrypoints.tick_lease import LeaseLink
from mycelia.errors import ConfigError, LinkError, MyceliaError, StateUnavailable, describe
from mycelia.flow.asked_state import KeyAnswer, reads_row, reads_state, reads_windows
from mycelia.flow.described_flow import AnySource, DescribedFlow, described_flow
from mycelia.flow.engine import saved_watermarks
from mycelia.flow.flow_call import CallsAround
from mycelia.flow.flow_statistics import FlowStatistics, statistics_of
from mycelia.flow.flow_watch import FlowWatch
from mycelia.flow.next_stages import NextStages
from mycelia.flow.output_calls import OutputCalls
from mycelia.flow.outputs import FlowOutput
from mycelia.flow.partition_numbers import check_partition_numbers
from mycelia.flow.partition_run import StageDescription
from mycelia.flow.partition_state import StatePlace
from mycelia.flow.relay_log import relay_partition
from mycelia.flow.sinks.sink import FlowSink, SinkRecord, SinkRefused
from mycelia.flow.sources.single import SingleSource
from mycelia.flow.stage import Stage
from mycelia.flow.stage_host import PartitionCommit, StageOptions
from mycelia.flow.staging import BETWEEN, LogsBetween, descriptions_of
from mycelia.flow.standing import StageSource, StageStanding
from mycelia.flow.state_home import StateHome, logged_state_home
from mycelia.flow.table_answers import FlowTables, TablePlace
from mycelia.flow.table_rpc import TableRpc, table_method
from mycelia.flow.tables import table_step
from mycelia.flow.user_code import error_of, repr_of_value
from mycelia.log_event import event
from mycelia.logs import FaultyRecord, Log, LogEntry
from mycelia.logs.batch_format import MAX_ENTRY_BYTES
from mycelia.logs.burial import bury_fault, bury_letter
from mycelia.logs.group_names import claim_group
from mycelia.logs.layout import declare_log
from mycelia.logs.position import StartAt, checked_start
from mycelia.policies.retry import Retry
from mycelia.runtime import Container, Entrypoint
from mycelia.runtime.settings import FlowsSection
from mycelia.runtime.topology import event_exchange

__all__ = ["FlowHandler", "OnError"]

log = logging.getLogger("mycelia.flow")

R = TypeVar("R")

OnError = Literal["fail", "dead-letter"]

_STOP_WAITS: Final = 8.0
"""Seconds that a stop leaves to commits; below the container's 10 s for a hook."""

_THREADS_WAITING: Final = 32
"""Of a flow with `async` steps or a changelog: most of its threads wait for them."""

_HEAR_AGAIN: Final = 30.0

_FOLLOW_EVERY: Final = 0.25
"""Seconds between two looks at which partitions are ours, where somebody may ask for what is in them."""

_SHOWN: Final = 10_000
"""Characters of a result in its dead letter, where it cannot be written as it is."""

_THREADS: Final = 4
"""Of a flow. A partition has one call in a thread at a time and goes to the end of the queue for the next, so all come by in turn."""


class FlowHandler(Entrypoint):
    """The entrypoint behind `@flow`.

    The method is called once, when the service starts, with a stream of the records of each log, and returns where its streams go:
    `Stream.to()`, `Stream.emit()`. Where records have to be split anew by another key, the flow is cut into stages (docs/flows.md). Each
    partition of a stage is run by one instance of the group at a time, for itself. State, positions, timers, watermarks and what is to
    leave are committed together in `mycelia.flows.state`, files of SQLite or a PostgreSQL; a commit of an owner that another has followed is refused.
    Then what leaves is published, with confirms; after a crash perhaps again, with the same ids.

    Args:
        sources: a `Log`, `events()`, `queue()`, `sql_changes()`, `ticks()` or `iterator()`, or several of them: the method has an argument for each.
        group: the flow's name: of its leases, its state and its logs between stages. `service.method` by default; another one begins anew.
        start: where it begins when it has never run: `"first"`, `"last"`, `"next"`, an offset, or a time.
        commit_every: how long records wait for the commit, "200ms" by default: results leave that much later, from each stage.
        commit_records: how many records a commit has at most, 50,000 by default; of 32 MiB, as they came, there are no more.
        on_error: what becomes of a record over which a function raises. `"fail"`, the default: its partition stands still, says so, and tries
            again; `"dead-letter"`: it is a dead letter, and the flow goes on without it. So are timers whose functions raise, and results of windows.
        retry: how often such a record is tried before it is a dead letter, its partition waiting meanwhile; once by default.
        dropped: names of steps that the flow had and has no more: their state is deleted. Without, a flow that has lost a step refuses to go on.
        retain_between: how long the logs between stages keep records, "3d" by default: a stage may not stand still for longer.
        retain_between_bytes: how many bytes a partition of them keeps at most, 8 GiB by default; `None`: any.
    """

    kind = CallKind.LOG
    container: Container
    needs_broker = True
    dead_letters = DeadLetters()
    leases = LeaseLink()

    def __init__(
        self,
        *sources: AnySource,
        group: str | None = None,
        start: StartAt = "first",
        commit_every: Duration = "200ms",
        commit_records: int = 50_000,
        on_error: OnError = "fail",
        retry: Retry | None = None,
        dropped: Collection[str] = (),
        retain_between: Duration = "3d",
        retain_between_bytes: int | None = BETWEEN.retain_bytes,
    ) -> None:
        super().__init__()
        if not sources:
            raise ValueError("expected a Log, or several.")
        for one in sources:
            if not isinstance(one, Log | SingleSource):
                raise ValueError(f"{one!r:.60} is no Log, and no other source.")
        names = [one.name for one in sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f'log "{name}" is there twice; a stream may be used twice.')
        if group is not None and not (type(group) is str and group):
            raise ValueError(f"group={group!r:.60}: expected a name.")
        if type(commit_records) is not int or commit_records < 1:
            raise ValueError(f"commit_records={commit_records!r:.60}: expected a number, from 1.")
        if on_error not in get_args(OnError):
            raise ValueError(f'on_error={on_error!r:.60}: expected "fail" or "dead-letter".')
        if retry is not None and not isinstance(retry, Retry):
            raise ValueError(f"retry={retry!r:.60}: expected a Retry, or None.")
        if retry is not None and on_error == "fail":
            raise ValueError('retry= has no meaning with on_error="fail", which tries for ever.')
        self.sources: tuple[AnySource, ...] = sources
        self.group: str | None = group
        self.options = StageOptions(
            start=checked_start(start, f'log "{names[0]}"'),
            commit_every=seconds_of(commit_every, "commit_every="),
            commit_records=commit_records,
            buries=on_error == "dead-letter",
            retry=Retry(attempts=1) if retry is None else retry,
        )
        if isinstance(dropped, str):
            raise ValueError(f"dropped={dropped!r:.60}: expected names of steps, in a list.")
        self.dropped = frozenset(dropped)
        self.between = LogsBetween(
            retain_s=seconds_of(retain_between, "retain_between="),
            retain_bytes=retain_between_bytes,
        )
        self.stages: list[Stage] = []
        """Those that feed others first; from `setup()` on."""
        self.observers: list[Callable[[PartitionCommit], None]] = []
        """Told after each commit of a partition, on the loop; they raise nothing."""
        self._home: StateHome | None = None
        self._service: Any = None
        """What the method was called on. It has the service's shared dependencies from `start()` on, for `async` steps."""
        self._threads: ThreadPoolExecutor | None = None
        self._described: DescribedFlow | None = None
        self._around: CallsAround | None = None
        self._output_calls: OutputCalls | None = None
        self._watch: FlowWatch | None = None
        self._tables: FlowTables | None = None
        self._next_stages: NextStages | None = None
        self._answering: asyncio.Task[None] | None = None

    # --- life ------------------------------------------------------------------------------------

    def bind(self, container: Any, method_name: str = "") -> Any:
        """As every entrypoint; what it may be asked for brings methods with it, `get_<table>`."""
        instance = super().bind(container, method_name)
        instance._service = container.service_cls()
        described = instance._described = described_flow(instance._service, method_name, instance)
        for table in described.asked:
            name = table_method(table)
            others = {one.method_name for one in container.entrypoints}
            if hasattr(container.service_cls, name) or name in others:
                raise ConfigError(
                    f'{instance.target.name}: its table "{table}" is asked by the method {name}, and {container.service_cls.__qualname__} has '
                    "something of that name. Call one of them otherwise."
                )
            bound = TableRpc(table, instance.get_row).bind(container, name)
            container.entrypoints.append(bound)
        return instance

    async def setup(self) -> None:
        group = self.group = self.group or self.target.name
        container, described = self.container, self._described
        assert described is not None
        self.sources = tuple(
            one if isinstance(one, Log) else one.for_flow(group) for one in self.sources
        )
        descriptions = descriptions_of(
            group,
            described.outputs,
            {one.name: one for one in self.sources},
            event_exchange(container.service_name, container.config).name,
            container.host.serializers.by_name(None),
            self.between,
            self.dropped,
        )
        for one in descriptions:
            claim_group(container.host, one.leased_as, group, self.called)
        await self._prepare_state([one.leased_as for one in descriptions])
        self._around = CallsAround(self.target, container.middleware_for(self.target))
        given: list[Log[Any]] = [relay.log for one in descriptions for relay in one.gives]
        given += [output.log for output in described.outputs if output.log is not None]
        self._output_calls = OutputCalls(self.link, container.middleware_for, given)
        self.stages = [
            Stage(self, one, self.options, opens_state=self.home.open) for one in descriptions
        ]
        section = container.settings.mycelia.flows or FlowsSection()
        self._next_stages = NextStages(
            self.link, group, descriptions, self._owned, section.ahead_bytes
        )
        self.observers.append(self._next_stages.committed)
        self._watch = FlowWatch(
            self.link,
            group,
            self.called,
            described.graph,
            map(_told_of, descriptions),
            self.stages,
            self._state_bytes,
        )
        self.observers.append(self._watch.committed)
        if places := [place for one in descriptions for place in _tables_of(one)]:
            self._tables = FlowTables(
                self.link, group, places, self._owned, self._row, relay_partition
            )
        await self.declare()
        with suppress(StateUnavailable):  # then the partitions stand still
            for one in descriptions:
                await check_partition_numbers(self.link, self.home, self.called, one)
        for sink in self._sinks():
            await sink.open(container)

    def _sinks(self) -> list[FlowSink[Any]]:
        outputs = [output for stage in self.stages for output in stage.description.outputs]
        return [output.sink for output in outputs if output.sink is not None]

    async def _prepare_state(self, stages: Sequence[str]) -> None:
        """
        Raises:
            ConfigError: the state cannot be kept there.
        """
        section = self.container.settings.mycelia.flows or FlowsSection()
        name = self.target.name
        self._home = logged_state_home(section, self.container.host.link)
        try:
            await asyncio.to_thread(self._home.prepare, name, self.group or "", stages)
        except StateUnavailable as exc:
            # It may be back any moment: the partitions stand still until then.
            log.warning(event("flow_waiting", call=name, stage=None, partition=None, reason=exc))

    async def declare(self) -> None:
        """The logs that are read, those between stages, and where the outputs go."""
        link = self.container.host.link
        for stage in self.stages:
            for source in stage.description.reads.values():
                await source.declare(link)
            for output in stage.description.outputs:
                if output.log is not None:
                    await declare_log(link, output.log.layout)
        config = self.container.config
        outputs = [output for stage in self.stages for output in stage.description.outputs]
        if any(output.event_type for output in outputs) and (
            config.get("DECLARE_EVENT_EXCHANGES") is not False
        ):
            await link.declare(event_exchange(self.container.service_name, config))

    def start(self) -> None:
        assert self.group is not None
        partitions = sum(stage.description.partitions for stage in self.stages)
        section = self.container.settings.mycelia.flows
        awaits = any(stage.description.plan.awaits for stage in self.stages) or (
            section is not None and section.changelog
        )
        most = _THREADS_WAITING if awaits else _THREADS
        # One computes while the commit before is written.
        self._threads = ThreadPoolExecutor(min(most, 2 * partitions), f"mycelia-flow-{self.group}")
        for provider in self.container.dependencies:
            if provider.is_shared and provider.attr_name is not None:
                shared = provider.shared_dependency(is_async=True)
                self._service.__dict__[provider.attr_name] = shared
        for stage in self.stages:
            stage.start()
        self._answering = asyncio.create_task(self._answer(), name=f"mycelia:flow:{self.group}")

    async def stop(self) -> None:
        """Take no further entry, commit what has been taken, and leave the partitions to others. Idempotent."""
        await self._end(_STOP_WAITS)

    async def kill(self) -> None:
        await self._end(0.1)

    async def _end(self, timeout: float) -> None:
        answering, self._answering = self._answering, None
        if answering is not None:
            answering.cancel()
            await asyncio.wait([answering])
        await asyncio.gather(*(stage.aclose(timeout) for stage in self.stages))
        for sink in self._sinks():
            await sink.aclose()
        for telling in (self._watch, self._tables, self._next_stages):
            if telling is not None:
                await telling.aclose()
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)
        if self._home is not None:
            self._home.close()

    def statistics(self) -> FlowStatistics:
        stages = {stage.name: statistics_of(stage) for stage in self.stages}
        every = list(stages.values())
        first = every[0] if every else None
        return FlowStatistics(
            log=self.sources[0].name if first is None else first.log,
            group=self.group or "",
            partitions=[] if first is None else first.partitions,
            standing_still={} if first is None else first.standing_still,
            watermarks_ms={} if first is None else first.watermarks_ms,
            lag={} if first is None else first.lag,
            records=0 if first is None else first.records,
            commits=sum(one.commits for one in every),
            published=sum(one.published for one in every),
            delivered=sum(one.delivered for one in every),
            waiting_bytes=sum(one.waiting_bytes for one in every),
            ahead_bytes=sum(one.ahead_bytes for one in every),
            waiting={} if first is None else first.waiting,
            stays_out=None if first is None else first.stays_out,
            faults=sum(one.faults for one in every),
            dead=sum(one.dead for one in every),
            stages=stages,
            counted={} if self._watch is None else self._watch.counted(),
            state_bytes={
                stage.name: {
                    one: size
                    for one in stage.partitions
                    if (size := self._state_bytes(stage.name, one)) is not None
                }
                for stage in self.stages
            },
        )

    @property
    def home(self) -> StateHome:
        """Where its state is; from `setup()` on."""
        assert self._home is not None
        return self._home

    # --- those who ask it --------------------------------------------------------------------------

    async def _answer(self) -> None:
        """Tell how it stands, and what its tables say, until cancelled."""
        assert self._watch is not None
        await self._watch.start()
        hear_at = time.monotonic()
        while True:
            if not self.next_stages.is_ready and time.monotonic() >= hear_at:
                hear_at = time.monotonic() + _HEAR_AGAIN
                await self._hear_others()
            if self._tables is not None:
                try:
                    await self._tables.follow()
                except LinkError as exc:
                    log.info(event("flow_tables_waiting", call=self.called, reason=exc))
            elif self.next_stages.is_ready:
                return
            await asyncio.sleep(_FOLLOW_EVERY)

    async def _hear_others(self) -> None:
        """Be ready to hear what other instances have taken. Until it is, stages are ahead without bound, which is said."""
        try:
            await self.next_stages.start()
        except MyceliaError as exc:
            detail = "stages are ahead of each other without bound; tried again in half a minute"
            log.warning(
                event("flow_not_told", flow=self.group, reason=describe(exc), detail=detail)
            )

    def _stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def _owned(self, stage: str) -> list[int]:
        return self._stage(stage).partitions

    def _state_bytes(self, stage: str, partition: int) -> int | None:
        return self.home.size_bytes(self._state_place(stage, partition))

    def _state_place(self, stage: str, partition: int) -> StatePlace:
        leased_as = self._stage(stage).description.leased_as
        return StatePlace(leased_as, self.group or "", stage, partition)

    async def get_row(self, table: str, key: Any, timeout: float) -> dict[str, Any]:
        """What a table says of a key: `FlowTables.get()`."""
        assert self._tables is not None
        return await self._tables.get(table, key, timeout)

    async def _row(self, place: TablePlace, partition: int, key: Any) -> KeyAnswer | None:
        state = self._state_place(place.stage, partition)
        assert self._watch is not None
        committed_ms = self._watch.committed_ms(place.stage, partition)

        def read() -> KeyAnswer | None:
            with self.home.reading(state) as store:
                known = place.reads(store, place.step, key)
                if known is None:
                    return None
                return KeyAnswer(
                    key=key,
                    **known,
                    partition=partition,
                    watermark_ms=saved_watermarks(store).get(place.step),
                    committed_ms=committed_ms,
                )

        return await asyncio.to_thread(read)

    # --- what its stages ask of it -----------------------------------------------------------------

    @property
    def called(self) -> str:
        """`service.method`."""
        return self.target.name

    @property
    def link(self) -> Link:
        return self.container.host.link

    @property
    def lease_link(self) -> Link:
        return self.leases.link

    @property
    def around(self) -> CallsAround:
        """What stands around each commit."""
        assert self._around is not None
        return self._around

    async def publish(self, message: Message) -> None:
        """As `OutputCalls.publish()`."""
        assert self._output_calls is not None
        timeout = self.container.settings.mycelia.publish_timeout
        await self._output_calls.publish(message, timeout)

    @property
    def next_stages(self) -> NextStages:
        """What those behind have taken."""
        assert self._next_stages is not None
        return self._next_stages

    def now_ms(self) -> int:
        """The time on the wall."""
        return int(time.time() * 1000)

    async def in_thread(self, function: Callable[..., R], *args: Any) -> R:
        """Run it beside the loop. Cancelled, it waits for the end, because what runs holds the partition's state."""
        assert self._threads is not None
        running = self.container.loop.run_in_executor(self._threads, _ending_well, function, *args)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running], timeout=_STOP_WAITS)
            raise

    async def bury(
        self,
        source: str,
        entry: LogEntry[Any],
        fault: FaultyRecord,
        error: BaseException | None,
        attempts: int,
    ) -> bool:
        """Publish a dead letter, of a record that could not be read, or over which a function raised; whether it is there."""
        assert self.group is not None
        letters, method = self.dead_letters, self.method_name
        if await bury_fault(letters, source, self.group, method, entry, fault, error, attempts):
            return True
        reason = fault.reason if error is None else describe(error)
        log.error(event("log_dead_letter_failed", call=self.called, error=reason))
        return False

    async def bury_refused(
        self, source: str, output: str, record: SinkRecord[Any], error: SinkRefused
    ) -> bool:
        """Publish a dead letter of a result that a sink has refused, or that cannot leave; whether it is there."""
        assert self.group is not None
        serializer = self.container.host.serializers.by_name(None)
        content_type, encoding = serializer.content_type, serializer.content_encoding
        try:
            body = serializer.encode(record.value)
        except Exception:  # noqa: BLE001  it may be refused for that
            body = b""
        if not body or len(body) > MAX_ENTRY_BYTES // 2:
            content_type, encoding = "text/plain", "utf-8"
            body = repr_of_value(record.value, _SHOWN).encode("utf-8", "backslashreplace")
        properties = Properties(
            content_type=content_type,
            content_encoding=encoding,
            headers={"x-flow-output": output, "x-flow-record": record.id},
            delivery_mode=2,
            message_id=record.id,
        )
        nobody: Any = None  # who buries it puts in a settler
        letter = Delivery(nobody, "", 0, False, "", output, properties, body)
        letters, method = self.dead_letters, self.method_name
        return await bury_letter(letters, source, self.group, method, letter, error, 1)

    def committed(self, commit: PartitionCommit) -> None:
        for observer in self.observers:
            observer(commit)


def _told_of(stage: StageDescription) -> StageStanding:
    return StageStanding(
        name=stage.name,
        partitions=stage.partitions,
        leased_as=stage.leased_as,
        sources=[
            StageSource(name=name, log=one.name, partitions=one.partitions)
            for name, one in stage.reads.items()
        ],
    )


def _tables_of(stage: StageDescription) -> list[TablePlace]:
    return [
        _table_of(stage, output, asked)
        for output in stage.outputs
        if (asked := output.asked_as) is not None
    ]


def _table_of(stage: StageDescription, output: FlowOutput, asked: str) -> TablePlace:
    if output.table is not None:
        return TablePlace(asked, table_step(asked), stage.name, stage.partitions, reads_row)
    node, _ = stage.plan.outputs[output.name]
    ((step, _),) = node.inputs
    name = stage.plan.names[step]
    if step.open_windows is None:
        return TablePlace(asked, name, stage.name, stage.partitions, reads_state)
    read = reads_windows(step.open_windows)
    return TablePlace(asked, name, stage.name, stage.partitions, read, "no open window")


def _ending_well(function: Callable[..., R], *args: Any) -> R:
    """It calls users' code in many places: hashes, encoders, functions."""
    try:
        return function(*args)
    except BaseException as exc:
        error = error_of(exc)
        if error is exc:
            raise
        raise error from exc
