"""Where a flow has to be cut: where state follows a key by which its records are not split. Pure.

Of each stream it is known into how many partitions its records are split, and whether all of one key are in one of them. That is so
- where there is one partition;
- of a log with `key=`, for a `key_by()` of that key, or of one that holds it among others, as long as the records are those of the log;
- behind a cut, for its key;
- where `key_by(repartition=False)` promises it.
Steps that keep keys keep it. Streams that meet have to be split alike: by the key itself, into as many partitions, or be one log's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from mycelia.errors import ConfigError
from mycelia.flow.graph import FlowNode, FlowPlan
from mycelia.flow.key_names import KeyName, key_name
from mycelia.flow.stages import stages_of

__all__ = ["SplitSource", "cuts_of"]


class SplitSource(Protocol):
    """What has to be known of a source."""

    @property
    def partitions(self) -> int: ...

    @property
    def split_by(self) -> object:
        """What its records are split by: a field's name, a function; `None` where it cannot be said."""


@dataclass(frozen=True, slots=True)
class _Split:
    """How the records of a stream are split into partitions."""

    partitions: int
    base: str
    """The source, or the cut, that they were split in; empty where they are of several."""
    by: KeyName | None
    """What they were split by, as long as the records are those that were split."""
    key: KeyName | None = None
    """Their key, as far as it is known."""
    is_whole: bool = False
    """Whether all records of a key are in one partition."""
    is_exact: bool = False
    """Whether that is the partition that the key itself says, as it is of any stream that is split by it."""


def cuts_of(plan: FlowPlan, sources: Mapping[str, SplitSource]) -> dict[str, int]:
    """The `key_by()` steps after which records have to be split anew, and into how many partitions. For `stages_of()`.

    Raises:
        ConfigError: the flow cannot be cut there.
    """
    cuts: dict[FlowNode, int] = {}
    while _add_cuts(plan, sources, cuts):
        pass
    if not cuts:
        return {}
    try:
        stages_of(plan, [plan.names[node] for node in cuts])
    except ConfigError:
        # What is before and behind a cut is joined past it: then all that comes to state is split anew.
        partitions = max(cuts.values())
        for node in plan.nodes:
            if _has_state(node):
                cuts.update(dict.fromkeys(_key_bys_behind(node), partitions))
        stages_of(plan, [plan.names[node] for node in cuts])
    return {plan.names[node]: cuts[node] for node in plan.nodes if node in cuts}


def _add_cuts(
    plan: FlowPlan, sources: Mapping[str, SplitSource], cuts: dict[FlowNode, int]
) -> bool:
    """Add the cuts that the first step needs whose records are not together. Returns whether there was such a step."""
    splits: dict[FlowNode, _Split] = {}
    for node in plan.nodes:
        if node.kind == "source":
            source = sources[plan.names[node]]
            by = None if source.split_by is None else key_name(source.split_by)
            splits[node] = _Split(source.partitions, plan.names[node], by)
            continue
        together = _met([splits[feeding] for feeding, _ in node.inputs])
        if _has_state(node) and not together.is_whole and together.partitions > 1:
            chosen = _cuts_before(node, splits, cuts)
            if not chosen:
                raise ConfigError(
                    f'step "{plan.names[node]}" ({node.label}) needs all records of a key in one partition, and no key_by() is before it.'
                )
            cuts.update(chosen)
            return True
        if node in cuts:
            key = key_name(node.key)
            splits[node] = _Split(cuts[node], plan.names[node], key, key, True, True)
        else:
            splits[node] = _behind(node, together)
    return False


def _has_state(node: FlowNode) -> bool:
    return bool(node.signature) and node.kind != "event_time"


def _met(splits: list[_Split]) -> _Split:
    """Of streams that meet in a step."""
    first, *others = splits
    for other in others:
        partitions = max(first.partitions, other.partitions)
        is_one = first.base != "" and first.base == other.base
        is_alike = first.partitions == other.partitions and (
            (first.is_exact and other.is_exact) or (is_one and first.key == other.key)
        )
        first = _Split(
            partitions,
            first.base if is_one else "",
            first.by if is_one and first.by == other.by else None,
            first.key if first.key == other.key else None,
            first.is_whole and other.is_whole and is_alike,
            first.is_exact and other.is_exact and is_alike,
        )
    return first


def _behind(node: FlowNode, split: _Split) -> _Split:
    """Of what a step gives."""
    if node.kind == "key_by":
        key = key_name(node.key)
        if not node.may_repartition:
            return replace(split, key=key, is_whole=True, is_exact=True)
        by = split.by
        is_whole = by is not None and key.tells(by)
        return replace(split, key=key, is_whole=is_whole, is_exact=is_whole and key == by)
    if node.kind in ("filter", "branch", "event_time", "merge", "dedup"):
        return split
    return replace(split, by=None)


def _cuts_before(
    node: FlowNode, splits: Mapping[FlowNode, _Split], cuts: Mapping[FlowNode, int]
) -> dict[FlowNode, int]:
    """The cuts that bring a step's records together. Streams that are split by their key already, into as many partitions, stay."""
    behind = _key_bys_behind(node)
    exact = [splits[one].partitions for one in behind if splits[one].is_exact]
    partitions = max(exact or [splits[one].partitions for one in behind], default=1)
    return {
        one: partitions
        for one in behind
        if not splits[one].is_exact or splits[one].partitions != partitions
    }


def _key_bys_behind(node: FlowNode) -> list[FlowNode]:
    """The steps that gave a step's records the keys that they have."""
    found: dict[FlowNode, None] = {}
    waiting = [feeding for feeding, _ in node.inputs]
    seen: set[FlowNode] = set()
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        if one.kind == "key_by":
            found[one] = None
        else:
            waiting += [feeding for feeding, _ in one.inputs]
    return list(found)
