"""What a process tells of itself, as samples: `HostStatistics` by Prometheus' names. Pure.

Nothing is counted for it. A counter's sample is its count since the process began.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec

from mycelia.amqp import LinkState, LinkStatistics
from mycelia.entrypoints.statistics import (
    ConsumerStatistics,
    DeadLetterStatistics,
    TimerStatistics,
)
from mycelia.logs.log_handler import GroupStatistics, LogHandlerStatistics
from mycelia.logs.writer import AppendStatistics
from mycelia.policies.kill_switch import ConsumptionState
from mycelia.providers.metrics.cells import Kind
from mycelia.runtime import HostStatistics, LaneStatistics, ServiceStatistics, ThreadStatistics

__all__ = ["DESCRIPTIONS", "Sample", "TellsSamples", "consumer_labels", "samples_of"]


class Sample(NamedTuple):
    """One value of one metric; a counter's name without its `_total`."""

    name: str
    kind: Kind
    labels: dict[str, str]
    value: float


@runtime_checkable
class TellsSamples(Protocol):
    """A record that an extension tells of itself, whose metrics it makes itself: those of layers above this one."""

    def samples(self, service: str, method: str) -> Iterable[Sample]:
        """Its metrics, whose names have a description here."""


DESCRIPTIONS = {
    "mycelia_calls": "Calls that have ended, by how.",
    "mycelia_errors": "Calls that have ended with an error, by its class.",
    "mycelia_call_duration_seconds": "How long calls took, from the beginning of their worker, or their sending.",
    "mycelia_retried_calls": "Workers begun that were not the first attempt at their message.",
    "mycelia_queue_time_seconds": "From publishing to the beginning of the first attempt.",
    "mycelia_critical_time_seconds": "From publishing until the call was done, all attempts included.",
    "mycelia_event_loop_delay_seconds": "How late the event loop came to a timer of its own.",
    "mycelia_processes": "Processes that count.",
    "mycelia_workers": "Workers that run.",
    "mycelia_workers_limit": "Workers that may run at once.",
    "mycelia_calls_waiting": "Calls that have arrived and wait for a worker.",
    "mycelia_calls_lost": "Calls dropped before they began, because the broker has taken their message back.",
    "mycelia_consumers": "Consumers that the broker has.",
    "mycelia_consumers_paused": "Consumers that were paused on purpose.",
    "mycelia_consumer_prefetch": "Messages that the broker may have outstanding here.",
    "mycelia_consumer_unsettled": "Messages that are here: they wait, run, or are on their way elsewhere.",
    "mycelia_consumer_put_back": "Messages that wait to be published again, for another attempt.",
    "mycelia_kill_switch_state": "Handlers with a kill switch that are in a state: consuming, stopped or probing.",
    "mycelia_kill_switch_stops": "Times that a kill switch stopped a handler that failed too often.",
    "mycelia_queue_messages": "Messages ready in a queue that is consumed.",
    "mycelia_dead_letters": "Messages moved to a dead-letter queue.",
    "mycelia_dead_letters_under_way": "Dead letters that the broker has not taken yet.",
    "mycelia_log_appended_records": "Records appended to a log, and confirmed.",
    "mycelia_log_appended_bytes": "Bytes of the batches confirmed, as they were sent.",
    "mycelia_log_given_up_records": "Records whose appends have raised, because the broker did not confirm them.",
    "mycelia_log_unconfirmed_bytes": "Bytes appended that the broker has not confirmed yet.",
    "mycelia_log_appends_waiting": "Appends that wait for room.",
    "mycelia_log_handled_records": "Records handled of a log.",
    "mycelia_log_unreadable_records": "Records, and whole entries, that could not be read and are dead letters.",
    "mycelia_log_failed": "What could not be handled and is a dead letter: entries of a log handler, records of a flow.",
    "mycelia_log_partitions": "Partitions that are an instance's own.",
    "mycelia_log_standing_still": "Partitions of a log handler's group that do not go on.",
    "mycelia_log_lag_entries": "Entries of a partition that a group has not handled.",
    "mycelia_flow_records": "Records that a stage of a flow has taken, and committed.",
    "mycelia_flow_commits": "Commits of the partitions of a stage.",
    "mycelia_flow_published": "Messages that a stage has published: batches of logs, and events.",
    "mycelia_flow_delivered": "Bodies that the sinks of a stage have taken.",
    "mycelia_flow_standing_still": "Partitions of a stage that do not go on.",
    "mycelia_flow_sink_waiting_bytes": "What the sinks of a stage have not taken yet.",
    "mycelia_flow_ahead_bytes": "What a stage has written for the next ones, and they have not committed.",
    "mycelia_flow_waiting_for_next": "Partitions of a stage that take nothing until the next stages have gone on.",
    "mycelia_flow_watermark_behind_seconds": "How far event time is behind the time on the wall, at the step of a stage where it is furthest.",
    "mycelia_flow_counted_records": "Records that a step of a flow has counted: late ones, repeated ones.",
    "mycelia_flow_state_bytes": "What the state of a partition takes.",
    "mycelia_timer_ticks": "Timer ticks whose workers were begun.",
    "mycelia_timer_skipped": "Timer ticks left out because a worker still ran.",
    "mycelia_threads": "Threads for `def` methods, by what they do.",
    "mycelia_link_state": "Whether the broker link is in a state.",
    "mycelia_link_unconfirmed": "Publishings that wait for their confirm.",
    "mycelia_link_blocked_seconds": "Time during which the broker took no publishings.",
    "mycelia_extension": "What an extension tells of itself.",
}
"""Help texts, by the names of metrics without `_total`."""

_LINK_COUNTERS = (
    *("published", "confirmed", "returned", "rejected", "republished"),
    *("delivered", "acknowledged", "requeued", "reconnects"),
)
DESCRIPTIONS |= {
    f"mycelia_link_{name}": f"`LinkStatistics.{name}` since the link was made."
    for name in _LINK_COUNTERS
}


def samples_of(told: HostStatistics) -> Iterator[Sample]:
    """All that a process tells of itself."""
    yield Sample("mycelia_processes", "sum", {}, 1.0)
    if told.link is not None:
        yield from _of_link(told.link)
        for state in LinkState:
            is_it = float(told.link_state == state.value)
            yield Sample("mycelia_link_state", "sum", {"state": state.value}, is_it)
    for name, service in told.services.items():
        yield from _of_service(name, service)


def _of_link(link: LinkStatistics) -> Iterator[Sample]:
    for name in _LINK_COUNTERS:
        yield Sample(f"mycelia_link_{name}", "counter", {}, float(getattr(link, name)))
    yield Sample("mycelia_link_blocked_seconds", "counter", {}, link.blocked_s)
    yield Sample("mycelia_link_unconfirmed", "sum", {}, float(link.unconfirmed))


def _of_service(service: str, told: ServiceStatistics) -> Iterator[Sample]:
    for name, lane in told.lanes.items():
        yield from _of_lane({"service": service, "method": name.removeprefix(f"{service}.")}, lane)
    if told.threads is not None:
        yield from _of_threads(service, told.threads)
    for name, statistics in told.extensions.items():
        yield from _of_extension(service, name, statistics)


def _of_lane(labels: dict[str, str], lane: LaneStatistics) -> Iterator[Sample]:
    yield Sample("mycelia_workers", "sum", labels, float(lane.active))
    yield Sample("mycelia_workers_limit", "sum", labels, float(lane.limit))
    yield Sample("mycelia_calls_waiting", "sum", labels, float(lane.waiting))
    yield Sample("mycelia_calls_lost", "counter", labels, float(lane.lost))


def _of_threads(service: str, threads: ThreadStatistics) -> Iterator[Sample]:
    for state in ("started", "busy", "abandoned"):
        value = float(getattr(threads, state))
        yield Sample("mycelia_threads", "sum", {"service": service, "state": state}, value)


def consumer_labels(service: str, extension: str, told: ConsumerStatistics) -> dict[str, str]:
    """Of the metrics of a consumer and its queue: the method is `*` where several share it, as those of an RPC service do."""
    method = extension.partition("#")[0].partition(":")[2] or "*"
    return {"service": service, "queue": told.queue, "method": method}


def _of_extension(service: str, name: str, told: Any) -> Iterator[Sample]:
    extension = name.partition("#")[0]
    if isinstance(told, ConsumerStatistics):
        labels = consumer_labels(service, name, told)
        yield Sample("mycelia_consumers", "sum", labels, float(told.is_consuming))
        yield Sample("mycelia_consumers_paused", "sum", labels, float(told.is_paused))
        for field in ("prefetch", "unsettled", "put_back"):
            value = float(getattr(told, field))
            yield Sample(f"mycelia_consumer_{field}", "sum", labels, value)
        yield from _of_kill_switch(labels, told)
    elif isinstance(told, DeadLetterStatistics):
        labels = {"service": service}
        yield Sample("mycelia_dead_letters", "counter", labels, float(told.buried))
        yield Sample("mycelia_dead_letters_under_way", "sum", labels, float(told.under_way))
    elif isinstance(told, TimerStatistics):
        labels = {"service": service, "method": extension.partition(":")[2]}
        yield Sample("mycelia_timer_ticks", "counter", labels, float(told.ticks))
        yield Sample("mycelia_timer_skipped", "counter", labels, float(told.skipped))
    elif isinstance(told, AppendStatistics):
        yield from _of_appends({"service": service, "log": told.log}, told)
    elif isinstance(told, GroupStatistics):
        yield from _of_group(service, extension.partition(":")[2], told)
        if isinstance(told, TellsSamples):
            yield from told.samples(service, extension.partition(":")[2])
    else:
        for field, value in _numbers_in(told):
            labels = {"service": service, "extension": extension, "name": field}
            yield Sample("mycelia_extension", "sum", labels, value)


def _of_appends(labels: dict[str, str], told: AppendStatistics) -> Iterator[Sample]:
    for name, field in (
        ("appended_records", "records"),
        ("appended_bytes", "bytes"),
        ("given_up_records", "failed"),
    ):
        yield Sample(f"mycelia_log_{name}", "counter", labels, float(getattr(told, field)))
    yield Sample("mycelia_log_unconfirmed_bytes", "sum", labels, float(told.unconfirmed_bytes))
    yield Sample("mycelia_log_appends_waiting", "sum", labels, float(told.waiting))


def _of_group(service: str, method: str, told: GroupStatistics) -> Iterator[Sample]:
    labels = {"service": service, "method": method, "log": told.log, "group": told.group}
    for name, field in (
        ("handled_records", "records"),
        ("unreadable_records", "faults"),
        ("failed", "dead"),
    ):
        yield Sample(f"mycelia_log_{name}", "counter", labels, float(getattr(told, field)))
    yield Sample("mycelia_log_partitions", "sum", labels, float(len(told.partitions)))
    if isinstance(told, LogHandlerStatistics):
        still = float(len(told.standing_still))
        yield Sample("mycelia_log_standing_still", "sum", labels, still)
    for partition, lag in told.lag.items():
        its = {"log": told.log, "group": told.group, "partition": str(partition)}
        yield Sample("mycelia_log_lag_entries", "max", its, float(lag))


def _of_kill_switch(labels: dict[str, str], told: ConsumerStatistics) -> Iterator[Sample]:
    if told.kill_switch is None:
        return
    for state in ConsumptionState:
        is_it = float(told.kill_switch == state.value)
        yield Sample("mycelia_kill_switch_state", "sum", {**labels, "state": state.value}, is_it)
    yield Sample("mycelia_kill_switch_stops", "counter", labels, float(told.kill_switch_stops))


def _numbers_in(told: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a record, `True` as 1, by the path to their field. Those in lists and dicts are left out: such may grow."""
    if isinstance(told, msgspec.Struct):
        for field in told.__struct_fields__:
            yield from _numbers_in(getattr(told, field), f"{path}.{field}" if path else field)
    elif isinstance(told, bool | int | float):
        yield path, float(told)


assert all(name in {field.name for field in fields(LinkStatistics)} for name in _LINK_COUNTERS)
