"""A described flow as the stages that a service runs: cut where it has to be, with the logs between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from mycelia.flow.cuts import cuts_of
from mycelia.flow.graph import FlowNode, FlowPlan
from mycelia.flow.inflow import FlowSource
from mycelia.flow.outputs import FlowOutput
from mycelia.flow.partition_run import StageDescription
from mycelia.flow.relay_log import Relay, RelayLog
from mycelia.flow.stages import stages_of
from mycelia.logs import Log
from mycelia.wire import Serializer

__all__ = ["BETWEEN", "LogsBetween", "descriptions_of"]


class LogsBetween(msgspec.Struct, frozen=True, kw_only=True):
    """How the logs between stages are kept. Nothing deletes what has been read: the broker does, by these."""

    retain_s: float = 3 * 86_400.0
    retain_bytes: int | None = 8 * 1024 * 1024 * 1024
    """Of a partition."""


BETWEEN: Final = LogsBetween()


def descriptions_of(
    group: str,
    outputs: Sequence[FlowOutput],
    sources: Mapping[str, FlowSource],
    exchange: str,
    serializer: Serializer,
    between: LogsBetween = BETWEEN,
    dropped: Collection[str] = (),
) -> list[StageDescription]:
    """The stages of a flow, those that feed others first.

    Raises:
        ConfigError: something in the flow cannot be.
    """
    whole = FlowPlan({one.name: one.port for one in outputs})
    cuts = cuts_of(whole, sources)
    plans = stages_of(whole, cuts)
    writers = {
        name: max(_partitions(plan, sources, cuts))
        for plan in plans
        for name in plan.outputs
        if name in cuts
    }
    nodes = {name: node for node, name in whole.names.items()}
    relays = {
        name: _relay(
            f"{group}.{name}", nodes[name], name, partitions, writers[name], sources, between
        )
        for name, partitions in cuts.items()
    }
    labels = _labels(plans, sources, relays)
    by_source = [label for label, plan in zip(labels, plans, strict=True) if _own(plan, sources)]

    def name_of(label: str) -> str:
        if label == by_source[0]:
            return group  # the first stage has the flow's own name
        if label in by_source:
            return f"{group}.{label}"
        return label  # of a log between stages, whose name begins with the group

    return [
        StageDescription(
            group,
            plan,
            {name: sources[name] for name in plan.sources if name in sources},
            [one for one in outputs if one.name in plan.outputs],
            exchange,
            serializer,
            name=name_of(label),
            leased_as=label,
            relays={name: relays[name] for name in plan.sources if name in relays},
            gives=[relays[name] for name in plan.outputs if name in relays],
            dropped=dropped,
        )
        for label, plan in zip(labels, plans, strict=True)
    ]


def _relay(
    log_name: str,
    node: FlowNode,
    name: str,
    partitions: int,
    writers: int,
    sources: Mapping[str, FlowSource],
    between: LogsBetween,
) -> Relay:
    """What is between the two sides of a cut."""
    source = sources.get(_records_of(node))
    own = source.shape.codec if isinstance(source, Log) else None
    log = RelayLog(log_name, partitions, between.retain_s, between.retain_bytes, own)
    key_of = None if own is None or node.step is None else node.step.function
    return Relay(name, log, writers, key_of)


def _records_of(node: FlowNode) -> str:
    """The source whose records a cut has as they were read; empty where they are others."""
    while node.kind in ("key_by", "filter", "branch", "event_time"):
        ((node, _),) = node.inputs
    return (node.name or "") if node.kind == "source" else ""


def _partitions(
    plan: FlowPlan, sources: Mapping[str, FlowSource], cuts: Mapping[str, int]
) -> list[int]:
    return [sources[name].partitions if name in sources else cuts[name] for name in plan.sources]


def _own(plan: FlowPlan, sources: Mapping[str, FlowSource]) -> list[str]:
    """The sources of a part that are no cuts."""
    return sorted(name for name in plan.sources if name in sources)


def _labels(
    plans: Sequence[FlowPlan], sources: Mapping[str, FlowSource], relays: Mapping[str, Relay]
) -> list[str]:
    """Of each part what its leases and state are called by: a log that it reads, with its first step where others read that too."""
    found = [
        own[0] if (own := _own(plan, sources)) else relays[min(plan.sources)].log.name
        for plan in plans
    ]
    shared = Counter(found)
    return [
        label if shared[label] == 1 else f"{label}.{_first_step(plan)}"
        for label, plan in zip(found, plans, strict=True)
    ]


def _first_step(plan: FlowPlan) -> str:
    return next(plan.names[node] for node in plan.nodes if node.kind != "source")
