"""Where the boxes and lines of a drawing stand: layers from top to bottom, few crossings, no box over another. Pure.

The usual four steps for a graph without cycles, each in its simple form:

1. **Layers.** A node stands below all that feed it. A line that passes a layer has a *bend* there, which takes part as a narrow box.
2. **Order.** In each layer by the mean place of the neighbours above, then below, a few times; the order with the fewest crossings is kept.
3. **Places.** Each box is drawn towards the middle of its neighbours, as far as those beside it let it.
4. **Lines** go from the lower edge of a box through its bends to the upper edge of another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from mycelia.flow.flow_graph import FlowGraph, GraphEdge

__all__ = ["Box", "GraphLayout", "Line", "laid_out"]

BESIDE: Final = 28.0
"""Between two boxes of a layer."""
BELOW: Final = 46.0
"""Between two layers: room for what is written at a line."""
MARGIN: Final = 20.0
_BEND_WIDTH: Final = 12.0
_SWEEPS: Final = 8
"""Of ordering, and of placing; a flow of dozens of steps has settled by then."""


class Box(NamedTuple):
    """Where a node stands; `x` and `y` are its left upper corner."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        return self.x + self.width / 2


class Line(NamedTuple):
    """An edge, as points from box to box."""

    edge: GraphEdge
    points: list[tuple[float, float]]


class GraphLayout(NamedTuple):
    width: float
    height: float
    boxes: dict[str, Box]
    """By node."""
    lines: list[Line]
    """One for each edge."""


class _Spot:
    """A node in its layer, or the bend of a line there."""

    __slots__ = ("above", "below", "height", "layer", "place", "width", "x")

    def __init__(self, layer: int, width: float, height: float) -> None:
        self.layer = layer
        self.width = width
        self.height = height
        self.above: list[_Spot] = []
        self.below: list[_Spot] = []
        self.place = 0
        """Among those of its layer."""
        self.x = 0.0
        """Of its middle."""


def laid_out(graph: FlowGraph, sizes: Mapping[str, tuple[float, float]]) -> GraphLayout:
    """The layout of a graph whose nodes stand behind those that feed them.

    Args:
        sizes: width and height of each node's box.
    """
    spots = {
        node.id: _Spot(layer, *sizes[node.id])
        for node, layer in zip(graph.nodes, _layers(graph), strict=True)
    }
    paths: dict[tuple[str, str], list[_Spot]] = {}
    everything = list(spots.values())
    for edge in graph.edges:
        if (edge.source, edge.target) in paths:
            continue
        begin, end = spots[edge.source], spots[edge.target]
        bends = [_Spot(layer, _BEND_WIDTH, 0.0) for layer in range(begin.layer + 1, end.layer)]
        everything += bends
        path = paths[edge.source, edge.target] = [begin, *bends, end]
        for upper, lower in pairwise(path):
            upper.below.append(lower)
            lower.above.append(upper)
    layers: list[list[_Spot]] = [
        [] for _ in range(max((one.layer for one in everything), default=-1) + 1)
    ]
    for spot in everything:
        layers[spot.layer].append(spot)
    layers = _ordered(layers)
    _place(layers)
    return _drawn(graph, spots, paths, layers)


def _layers(graph: FlowGraph) -> list[int]:
    """Of each node the number of its layer: one more than the lowest of those that feed it."""
    feeding: dict[str, list[str]] = {node.id: [] for node in graph.nodes}
    for edge in graph.edges:
        feeding[edge.target].append(edge.source)
    found: dict[str, int] = {}
    for node in graph.nodes:
        found[node.id] = 1 + max((found[one] for one in feeding[node.id]), default=-1)
    return list(found.values())


# --- order -------------------------------------------------------------------------------------------


def _ordered(layers: list[list[_Spot]]) -> list[list[_Spot]]:
    best, fewest = layers, _number(layers)
    for sweep in range(_SWEEPS):
        if not fewest:
            break
        goes_down = sweep % 2 == 0
        layers = [list(layer) for layer in layers]
        for layer in layers if goes_down else reversed(layers):
            layer.sort(key=lambda spot: _mean_place(spot, spot.above if goes_down else spot.below))
            for place, spot in enumerate(layer):
                spot.place = place
        crossings = _number(layers)
        if crossings < fewest:
            best, fewest = layers, crossings
    _number(best)
    return best


def _mean_place(spot: _Spot, neighbours: list[_Spot]) -> float:
    """One without neighbours stays where it is."""
    if not neighbours:
        return float(spot.place)
    return sum(one.place for one in neighbours) / len(neighbours)


def _number(layers: list[list[_Spot]]) -> int:
    """Number the places, and count crossings."""
    for layer in layers:
        for place, spot in enumerate(layer):
            spot.place = place
    crossings = 0
    for layer in layers:
        lines = [(spot.place, one.place) for spot in layer for one in spot.below]
        for number, (upper, lower) in enumerate(lines):
            crossings += sum(
                (upper - other_upper) * (lower - other_lower) < 0
                for other_upper, other_lower in lines[:number]
            )
    return crossings


# --- places ------------------------------------------------------------------------------------------


def _place(layers: list[list[_Spot]]) -> None:
    for layer in layers:
        right = 0.0
        for spot in layer:
            spot.x = right + spot.width / 2
            right += spot.width + BESIDE
    for sweep in range(_SWEEPS):
        goes_down = sweep % 2 == 0
        for layer in layers if goes_down else reversed(layers):
            _settle(
                layer, [_wanted(spot, spot.above if goes_down else spot.below) for spot in layer]
            )


def _wanted(spot: _Spot, neighbours: list[_Spot]) -> float:
    if not neighbours:
        return spot.x
    return sum(one.x for one in neighbours) / len(neighbours)


def _settle(layer: Sequence[_Spot], wanted: Sequence[float]) -> None:
    """Put each as near as may be to where it wants to be, in order and apart.

    Those that would overlap become a block, which stands where its members want to be in the mean (pool adjacent violators: the
    least squares there are).
    """
    offsets: list[float] = []  # of each from the first, if all stood side by side
    offset = 0.0
    for number, spot in enumerate(layer):
        if number:
            offset += layer[number - 1].width / 2 + BESIDE + spot.width / 2
        offsets.append(offset)
    blocks: list[tuple[float, int]] = []  # where, and how many
    for want, off in zip(wanted, offsets, strict=True):
        at, count = want - off, 1
        while blocks and blocks[-1][0] > at:
            before, members = blocks.pop()
            at = (before * members + at * count) / (members + count)
            count += members
        blocks.append((at, count))
    places = [at for at, count in blocks for _ in range(count)]
    for spot, at, off in zip(layer, places, offsets, strict=True):
        spot.x = at + off


# --- lines -------------------------------------------------------------------------------------------


def _drawn(
    graph: FlowGraph,
    spots: Mapping[str, _Spot],
    paths: Mapping[tuple[str, str], list[_Spot]],
    layers: list[list[_Spot]],
) -> GraphLayout:
    left = min((spot.x - spot.width / 2 for layer in layers for spot in layer), default=0.0)
    right = max((spot.x + spot.width / 2 for layer in layers for spot in layer), default=0.0)
    tops: list[float] = []
    lower = MARGIN
    for layer in layers:
        tops.append(lower)
        lower += max(spot.height for spot in layer) + BELOW
    heights = [max(spot.height for spot in layer) for layer in layers]
    shift = MARGIN - left
    boxes = {
        name: Box(
            spot.x - spot.width / 2 + shift,
            tops[spot.layer],
            spot.width,
            spot.height,
        )
        for name, spot in spots.items()
    }
    lines: list[Line] = []
    seen: dict[tuple[str, str], int] = {}
    for edge in graph.edges:
        ends = edge.source, edge.target
        aside = 10.0 * seen.get(ends, 0)  # a second edge between the same two
        seen[ends] = seen.get(ends, 0) + 1
        begin, end = boxes[edge.source], boxes[edge.target]
        points = [(begin.middle + aside, begin.y + begin.height)]
        for bend in paths[ends][1:-1]:
            x, top = bend.x + shift + aside, tops[bend.layer]
            points += [(x, top), (x, top + heights[bend.layer])]
        points.append((end.middle + aside, end.y))
        lines.append(Line(edge, points))
    height = lower - BELOW + MARGIN if layers else 2 * MARGIN
    return GraphLayout(right - left + 2 * MARGIN, height, boxes, lines)
