"""Which sources are nothing but tables: all that comes from them is what records are joined with, by `join_table()`. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from mycelia.flow.graph import FlowNode, FlowPlan, NodePort

__all__ = ["table_sources"]


def table_sources(plan: FlowPlan) -> frozenset[str]:
    """The names of the sources from which all ways lead, over steps without state, to the table's side of a `join_table()`.

    They are read first, up to where they end, and from their beginning: a record must not miss a row that was there long before it.
    """
    consumers = plan.consumers()
    leaving = set(plan.outputs.values())
    return frozenset(
        plan.names[node]
        for node in plan.nodes
        if node.kind == "source" and not node.is_relay and _is_table(node, consumers, leaving)
    )


def _is_table(
    source: FlowNode,
    consumers: Mapping[NodePort, list[tuple[FlowNode, int]]],
    leaving: set[NodePort],
) -> bool:
    waiting: list[FlowNode] = [source]
    is_joined = False
    while waiting:
        node = waiting.pop()
        if any(feeding is node for feeding, _ in leaving):
            return False
        for (feeding, _), found in consumers.items():
            if feeding is not node:
                continue
            for consumer, port in found:
                if consumer.kind == "join_table" and port > 0:
                    is_joined = True
                elif consumer.step is None and consumer.kind != "branch":
                    return False
                else:
                    waiting.append(consumer)
    return is_joined
