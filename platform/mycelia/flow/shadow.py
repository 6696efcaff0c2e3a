"""A flow made its own shadow: the same steps over the same logs, as a group of its own, whose results go to logs of their own and nowhere else."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from mycelia.errors import ConfigError
from mycelia.flow.described_flow import described_flow
from mycelia.flow.flow_decorator import flow
from mycelia.flow.flow_handler import FlowHandler
from mycelia.flow.graph import FlowPlan
from mycelia.flow.outputs import FlowOutput
from mycelia.flow.sinks.sink import FlowSink, SinkRecord
from mycelia.logs import Log
from mycelia.logs.position import StartAt
from mycelia.runtime.declarations import get_service_name

__all__ = ["CaughtOutput", "FlowShadow", "shadow_of"]


class CaughtOutput(FlowSink[Any]):
    """Stands where a flow gives something to others that a shadow must not give them: counts it, and lets it go.

    Attributes:
        instead_of: what it stands for, for people.
        records: how many it has caught.
    """

    def __init__(self, name: str, instead_of: str) -> None:
        self.name = name
        self.instead_of = instead_of
        self.records = 0
        self._lock = threading.Lock()  # partitions are in threads of their own

    def pack(
        self, records: list[SinkRecord[Any]], kept: dict[str, int], now_ms: int, flow: str
    ) -> list[bytes]:
        with self._lock:
            self.records += len(records)
        return []


class FlowShadow(NamedTuple):
    """A service that has the shadow and nothing else, and what it does differently from the flow."""

    service: type
    of: str
    """`service.method` of the flow."""
    group: str
    sources: tuple[Log[Any], ...]
    plan: FlowPlan
    logs: list[tuple[Log[Any], Log[Any]]]
    """Those that the flow's results go to, each with that of the shadow's."""
    caught: list[CaughtOutput]


def shadow_of(
    cls: type, method: str, declared: FlowHandler, start: StartAt, name: str
) -> FlowShadow:
    """The shadow of a flow. No dependency of its service is set up, and none of its other methods is there.

    Args:
        start: where it begins, in all logs.
        name: part of the names of all that it makes at the broker.

    Raises:
        ConfigError: it reads what is taken from others by being read, or awaits others, or gives nothing to a log.
    """
    of = f"{get_service_name(cls)}.{method}"
    sources = tuple(one for one in declared.sources if isinstance(one, Log))
    if len(sources) < len(declared.sources):
        others = ", ".join(one.name for one in declared.sources if not isinstance(one, Log))
        raise ConfigError(
            f"{of}: a shadow reads logs, which everybody may read as often as they like. {others} is none, and what a shadow took from it, the flow "
            "would not get."
        )
    described = described_flow(cls(), method, declared)
    if described.plan.awaits:
        raise ConfigError(
            f"{of}: it has steps that await (map_async(), flat_map_async()), and a shadow would make their calls once more. Run it as a service of "
            "another name, with what its calls go to replaced, and compare the logs: mycelia log diff."
        )
    logs: list[tuple[Log[Any], Log[Any]]] = []
    caught: list[CaughtOutput] = []
    outputs: list[FlowOutput] = []
    for one in described.outputs:
        if one.log is not None:
            own = _log_like(one.log, f"{one.log.name}.{name}")
            logs.append((one.log, own))
            outputs.append(FlowOutput(one.name, one.port, log=own))
        elif one.asked_as is None:  # what is only asked for leaves nothing
            instead_of = repr(one.sink) if one.sink is not None else f"event {one.event_type!r}"
            caught.append(CaughtOutput(one.name, instead_of))
            outputs.append(FlowOutput(one.name, one.port, sink=caught[-1]))
    if not logs:
        raise ConfigError(
            f"{of} gives nothing to a log, so that there is nothing to compare a shadow by."
        )
    options = declared.options
    group = f"{name}.{declared.group or of}"
    marks = flow(
        *sources,
        group=group,
        start=start,
        commit_every=options.commit_every,
        commit_records=options.commit_records,
        on_error="dead-letter" if options.buries else "fail",
        retry=options.retry if options.buries else None,
        retain_between=declared.between.retain_s,
        retain_between_bytes=declared.between.retain_bytes,
    )
    members = {"name": name, "shadow": marks(_describing(outputs, len(sources)))}
    plan = FlowPlan({one.name: one.port for one in outputs})
    return FlowShadow(
        type(f"{cls.__name__}Shadow", (), members), of, group, sources, plan, logs, caught
    )


def _describing(outputs: Sequence[FlowOutput], streams: int) -> Any:
    """A method that takes so many streams and returns these outputs, which are of streams of the same names."""

    def shadow(self: object, *given: object) -> tuple[FlowOutput, ...]:
        return tuple(outputs)

    names = ["self", *(f"stream_{number}" for number in range(streams))]
    parameters = [inspect.Parameter(one, inspect.Parameter.POSITIONAL_OR_KEYWORD) for one in names]
    shadow.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what `inspect.signature()` looks for first
    return shadow


def _log_like(log: Log[Any], name: str) -> Log[Any]:
    """A log that is laid out and written as another."""
    made = copy.copy(log)
    made.name = name
    made.layout = replace(log.layout, name=name)
    return made
