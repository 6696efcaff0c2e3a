"""A flow cut where its keys change: what is before a cut and what is after it run in engines of their own. Pure.

A step keeps state by key, so all records of a key have to come to one engine. Where `key_by()` gives them other keys than those by
which they were split into partitions, they are split anew: the part of the flow before it gives them as an output of the step's name, the
runner puts each into a partition by its new key, and the part behind it has a source of that name. How far event time has come is not to be
told from records that others have looked at: `Engine.relay()` says it, for each of those who write.
"""

from __future__ import annotations

from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter

from mycelia.errors import ConfigError
from mycelia.flow.graph import FlowNode, FlowPlan, NodePort

__all__ = ["stages_of"]


def stages_of(plan: FlowPlan, cuts: Iterable[str]) -> list[FlowPlan]:
    """The parts of a plan, those that feed others first.

    Each cut is an output of the part that it is in, and a source of those that go on from it. Names of steps, and so their state, stay.
    Of several parts that read nothing from each other each is a part of its own.

    Args:
        cuts: the names of the `key_by()` steps after which records are split anew.

    Raises:
        ConfigError: there is no such step; what goes on from a cut also needs what is before it, uncut; or event times are told behind one.
    """
    by_name = {name: node for node, name in plan.names.items()}
    chosen: dict[FlowNode, str] = {}
    for name in cuts:
        node = by_name.get(name)
        if node is None or node.kind != "key_by":
            known = ", ".join(plan.names[one] for one in plan.nodes if one.kind == "key_by")
            raise ConfigError(
                f'a flow is cut at a key_by(): "{name}" is none. There are: {known or "none"}.'
            )
        if name in plan.outputs:
            raise ConfigError(
                f'output "{name}" has the name of a step where the flow is cut. Give it another.'
            )
        chosen[node] = name
    parts = _parts(plan, chosen)
    order = _in_order(plan, chosen, parts)
    return [_plan_of(plan, chosen, parts, part) for part in order]


def _parts(plan: FlowPlan, cuts: dict[FlowNode, str]) -> dict[FlowNode, int]:
    """The number of the part that each node is in: nodes are together if records go from one to the other without a cut."""
    parts = {node: number for number, node in enumerate(plan.nodes)}
    for node in plan.nodes:
        for feeding, _ in node.inputs:
            if feeding not in cuts and parts[feeding] != parts[node]:
                old, new = parts[feeding], parts[node]
                parts = {one: new if part == old else part for one, part in parts.items()}
    return parts


def _in_order(plan: FlowPlan, cuts: dict[FlowNode, str], parts: dict[FlowNode, int]) -> list[int]:
    needs: dict[int, set[int]] = {part: set() for part in parts.values()}
    for node in plan.nodes:
        for feeding, _ in node.inputs:
            if feeding in cuts:
                if parts[feeding] == parts[node]:
                    raise ConfigError(
                        f'the flow cannot be cut at "{cuts[feeding]}": "{plan.names[node]}" goes on from it, and also has records that come '
                        "there without being split anew. Cut those as well."
                    )
                needs[parts[node]].add(parts[feeding])
    try:
        return list(TopologicalSorter(needs).static_order())
    except CycleError:
        raise ConfigError(
            f"the flow cannot be cut at {', '.join(cuts.values())} alone: its parts would need each other. Cut it at further key_by() steps."
        ) from None


def _plan_of(
    plan: FlowPlan, cuts: dict[FlowNode, str], parts: dict[FlowNode, int], part: int
) -> FlowPlan:
    copies: dict[FlowNode, FlowNode] = {}
    relays: dict[FlowNode, FlowNode] = {}

    def copied(port: NodePort) -> NodePort:
        feeding, number = port
        if feeding not in cuts:
            return copies[feeding], number
        if feeding not in relays:
            name = cuts[feeding]
            relays[feeding] = FlowNode("source", f"from {name}", (), name=name, is_relay=True)
        return relays[feeding], number

    outputs: dict[str, NodePort] = {}
    for node in plan.nodes:
        if parts[node] == part:
            inputs = tuple(copied(port) for port in node.inputs)
            copies[node] = node.copy(inputs, plan.names[node])
            if node in cuts:
                # Told by the part that is before it: a flow that is cut elsewhere has its open windows in other places.
                copies[node].signature = "key_by, and records are split anew"
                outputs[cuts[node]] = (copies[node], 0)
    for name, (node, number) in plan.outputs.items():
        if parts[node] == part:
            outputs[name] = (copies[node], number)
    made = FlowPlan(outputs)
    for node in made.nodes:
        if node.kind == "event_time" and any(one.is_relay for one in made.upstream(node)):
            raise ConfigError(
                f'"{made.names[node]}" ({node.label}) comes after a key_by() by which records are split anew, and how far event time has come in '
                "the log's partitions can be told before that alone. Put event_time() before key_by()."
            )
    return made
