"""A flow as it is drawn: its steps and what goes from one to the other, as plain data that travels; and drawn as text. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

__all__ = ["FlowGraph", "GraphEdge", "GraphNode", "NodeNote", "graph_text", "output_id"]


class GraphNode(msgspec.Struct, frozen=True, kw_only=True):
    """A source, a step, or where something leaves."""

    id: str
    """Its name, but for outputs: `output_id()`."""
    name: str
    kind: str
    """`source`, `output`, or that of the step: `map`, `window`."""
    label: str = ""
    """What it does, as it was written."""
    has_state: bool = False


class GraphEdge(msgspec.Struct, frozen=True, kw_only=True):
    """What goes from a port of one node to another node."""

    source: str
    target: str
    port: int = 0
    """0 is what a step gives; the others are what leaves beside it: late records, the other branch."""


class FlowGraph(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. Nodes stand behind those that feed them; edges of a node in the order of its ports."""

    nodes: list[GraphNode]
    edges: list[GraphEdge]


class NodeNote(msgspec.Struct, frozen=True, kw_only=True):
    """What is written at a node: how it stands now."""

    lines: list[str] = []
    is_bad: bool = False
    """It is drawn as something that wants to be looked at."""
    tooltip: str = ""


def output_id(name: str) -> str:
    """The id of an output's node. No step has it: their names have no `~`."""
    return f"~{name}"


def graph_text(graph: FlowGraph, notes: Mapping[str, NodeNote] | None = None) -> str:
    """The flow as a tree of text, from its sources; a step with several inputs stands below the first of them.

    `→ name` is an output, `↪ name` a step that is drawn elsewhere, `beside:` what leaves by the other port.
    """
    by_id = {node.id: node for node in graph.nodes}
    below: dict[str, list[GraphEdge]] = {}
    for edge in graph.edges:
        below.setdefault(edge.source, []).append(edge)
    for edges in below.values():  # steps first, then what leaves, port by port; the sort is stable
        edges.sort(key=lambda edge: (edge.port, by_id[edge.target].kind == "output"))
    lines: list[str] = []
    drawn: set[str] = set()

    def noted(node: GraphNode, text: str) -> str:
        note = None if notes is None else notes.get(node.id)
        return text if note is None or not note.lines else f"{text}   [{' · '.join(note.lines)}]"

    # Without recursion: a chain of steps may be long.
    for source in graph.nodes:
        if source.kind != "source":
            continue
        lines.append(noted(source, source.name))
        waiting = _children(below.get(source.id, ()), "")
        while waiting:
            edge, indent, is_last = waiting.pop()
            node = by_id[edge.target]
            branch, deeper = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
            begin = f"{indent}{branch}{'beside: ' if edge.port else ''}"
            if node.kind == "output":
                lines.append(noted(node, f"{begin}→ {node.name}"))
            elif node.id in drawn:
                lines.append(f"{begin}↪ {node.name}")
            else:
                drawn.add(node.id)
                lines.append(noted(node, f"{begin}{node.name}: {node.label}"))
                waiting += _children(below.get(node.id, ()), indent + deeper)
    return "\n".join(lines)


def _children(edges: list[GraphEdge] | tuple[()], indent: str) -> list[tuple[GraphEdge, str, bool]]:
    """The last first, as they are taken from the end."""
    return [(edge, indent, number == 0) for number, edge in enumerate(reversed(edges))]
