"""A flow drawn as SVG: one file without scripts, fonts or other files, for a dark screen and a light one. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Final
from xml.sax.saxutils import escape

from mycelia.flow.flow_graph import FlowGraph, GraphNode, NodeNote
from mycelia.flow.graph_layout import Box, Line, laid_out

__all__ = ["graph_svg"]

_CHAR: Final = 7.3
"""Of a monospace font of 12 pixels, the widest of those that browsers take: so nothing has to be measured."""
_ROW: Final = 16.0
_PADDING: Final = 12.0
_MAX_CHARS: Final = 44
"""Of a row; what is longer is cut, and whole in the tooltip."""
_MIN_WIDTH: Final = 120.0
_TITLE_ROW: Final = 26.0

_STYLE: Final = """\
text { font: 12px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #1f2328 }
.page { fill: #ffffff } .title, .name { font-weight: bold } .label { fill: #59636e }
.box { fill: #f6f8fa; stroke: #818b98 } .source .box, .output .box { fill: #ddf4ff; stroke: #0969da }
.state .box { fill: #fff8c5; stroke: #9a6700 } .bad .box { fill: #ffebe9; stroke: #cf222e; stroke-width: 2 }
.live { fill: #116329 } .bad .live { fill: #a40e26 }
.line { fill: none; stroke: #818b98; stroke-width: 1.5 } .beside { stroke-dasharray: 5 4 } .arrow { fill: #818b98 }
.flow { paint-order: stroke; stroke: #ffffff; stroke-width: 4px }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc } .page { fill: #0d1117 } .label { fill: #9198a1 }
.box { fill: #151b23; stroke: #656c76 } .source .box, .output .box { fill: #121d2f; stroke: #4493f8 }
.state .box { fill: #272115; stroke: #d29922 } .bad .box { fill: #25171c; stroke: #f85149 }
.live { fill: #7ee787 } .bad .live { fill: #ffa198 }
.line { stroke: #656c76 } .arrow { fill: #656c76 } .flow { stroke: #0d1117 }
}"""


def graph_svg(
    graph: FlowGraph,
    title: str,
    notes: Mapping[str, NodeNote] | None = None,
    flows: Mapping[tuple[str, int], str] | None = None,
) -> str:
    """The drawing.

    Args:
        title: what is written above it.
        notes: what is written at nodes, by their ids.
        flows: what is written at the lines that leave a port, by node and port: `1.2k/s`.
    """
    notes, flows = notes or {}, flows or {}
    rows = {node.id: _rows(node, notes.get(node.id)) for node in graph.nodes}
    layout = laid_out(graph, {name: _size(some) for name, some in rows.items()})
    width = max(layout.width, len(title) * _CHAR + 2 * _PADDING)
    height = layout.height + _TITLE_ROW
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{_attribute(title)}">',
        f"<style>{_STYLE}</style>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerUnits="userSpaceOnUse" markerWidth="9" markerHeight="9" orient="auto">'
        '<path class="arrow" d="M0 0 8 4 0 8z"/></marker></defs>',
        f'<rect class="page" width="{width:.0f}" height="{height:.0f}"/>',
        f'<text class="title" x="{_PADDING}" y="{_ROW + 4}">{_text(title)}</text>',
        f'<g transform="translate({(width - layout.width) / 2:.1f} {_TITLE_ROW})">',
    ]
    drawn += [
        _line(line, flows.get((line.edge.source, line.edge.port), "")) for line in layout.lines
    ]
    drawn += [
        _node(node, layout.boxes[node.id], rows[node.id], notes.get(node.id))
        for node in graph.nodes
    ]
    return "\n".join([*drawn, "</g>", "</svg>", ""])


def _rows(node: GraphNode, note: NodeNote | None) -> list[tuple[str, str]]:
    """What stands in a box: a class and a text for each row."""
    name = f"→ {node.name}" if node.kind == "output" else node.name
    rows = [("name", name)]
    if node.label:
        rows.append(("label", node.label))
    if note is not None:
        rows += [("live", line) for line in note.lines]
    return [(kind, _cut(text)) for kind, text in rows]


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_CHARS else f"{text[: _MAX_CHARS - 1]}…"


def _size(rows: list[tuple[str, str]]) -> tuple[float, float]:
    longest = max(len(text) for _, text in rows)
    return max(longest * _CHAR + 2 * _PADDING, _MIN_WIDTH), len(rows) * _ROW + _PADDING


def _node(node: GraphNode, box: Box, rows: list[tuple[str, str]], note: NodeNote | None) -> str:
    classes = [node.kind if node.kind in ("source", "output") else "step"]
    if node.has_state:
        classes.append("state")
    if note is not None and note.is_bad:
        classes.append("bad")
    tooltip = "\n".join(filter(None, (node.name, node.label, "" if note is None else note.tooltip)))
    round_ends = 14 if node.kind in ("source", "output") else 4
    drawn = [
        f'<g class="{" ".join(classes)}"><title>{_text(tooltip)}</title>',
        f'<rect class="box" x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="{round_ends}"/>',
    ]
    for number, (kind, text) in enumerate(rows):
        y = box.y + _PADDING / 2 + (number + 0.75) * _ROW
        drawn.append(
            f'<text class="{kind}" x="{box.x + _PADDING:.1f}" y="{y:.1f}">{_text(text)}</text>'
        )
    return "".join([*drawn, "</g>"])


def _line(line: Line, flow: str) -> str:
    path = f"M{_point(line.points[0])}"
    for (x, y), (next_x, next_y) in pairwise(line.points):
        middle = (y + next_y) / 2
        path += f"C{_point((x, middle))} {_point((next_x, middle))} {_point((next_x, next_y))}"
    kind = "line beside" if line.edge.port else "line"
    drawn = f'<path class="{kind}" d="{path}" marker-end="url(#arrow)"/>'
    if flow:
        (x, y), (next_x, next_y) = line.points[0], line.points[1]
        at = _point(((x + next_x) / 2 + 6, (y + next_y) / 2 + 4))
        x_text, y_text = at.split()
        drawn += f'<text class="flow" x="{x_text}" y="{y_text}">{_text(flow)}</text>'
    return drawn


def _point(point: tuple[float, float]) -> str:
    return f"{point[0]:.1f} {point[1]:.1f}"


def _text(text: str) -> str:
    """As text of XML, without what XML cannot hold."""
    kept = "".join(one if one in "\n\t" or one.isprintable() else "�" for one in text)
    return escape(kept)


def _attribute(text: str) -> str:
    return _text(text).replace('"', "&quot;")
