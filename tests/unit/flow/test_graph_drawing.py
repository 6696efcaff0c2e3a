"""Drawings of flows: everything is in them, nothing lies over anything else, and what is written is text."""

from __future__ import annotations

from itertools import combinations, pairwise
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from mycelia.flow import Engine, FlowPlan, count, source, tumbling
from mycelia.flow.flow_graph import (
    FlowGraph,
    GraphEdge,
    GraphNode,
    NodeNote,
    graph_text,
    output_id,
)
from mycelia.flow.graph_layout import Box, laid_out
from mycelia.flow.graph_svg import graph_svg

SVG = "{http://www.w3.org/2000/svg}"


def plan() -> FlowPlan:
    flights = source("flights", dict)
    slow, others = flights.branch(lambda one: one["delay"] > 60)
    counts = flights.key_by("origin").window(tumbling("1h")).aggregate(count()).named("hourly")
    merged = slow.merge(others)
    return FlowPlan({"counts": counts.port, "late": counts.late.port, "all": merged.port})


@st.composite
def graphs(draw: st.DrawFn) -> FlowGraph:
    """Any graph without cycles, up to some dozen nodes."""
    number = draw(st.integers(1, 14))
    nodes = [
        GraphNode(
            id=f"n{one}",
            name=draw(st.text(max_size=30)),
            kind=draw(st.sampled_from(["source", "map", "window", "output"])),
            label=draw(st.text(max_size=80)),
        )
        for one in range(number)
    ]
    edges = [
        GraphEdge(source=f"n{begin}", target=f"n{end}", port=draw(st.integers(0, 1)))
        for end in range(1, number)
        for begin in draw(st.lists(st.integers(0, end - 1), max_size=3))
    ]
    return FlowGraph(nodes=nodes, edges=edges)


def overlap(one: Box, other: Box) -> bool:
    return (
        one.x < other.x + other.width
        and other.x < one.x + one.width
        and one.y < other.y + other.height
        and other.y < one.y + one.height
    )


@given(graphs(), st.data())
def test_boxes_are_apart_and_lines_go_from_box_to_box(
    graph: FlowGraph, data: st.DataObject
) -> None:
    sizes = {
        node.id: (data.draw(st.floats(20, 400)), data.draw(st.floats(20, 100)))
        for node in graph.nodes
    }

    layout = laid_out(graph, sizes)

    assert set(layout.boxes) == set(sizes)
    assert [line.edge for line in layout.lines] == graph.edges
    for one, other in combinations(layout.boxes.values(), 2):
        assert not overlap(one, other)
    for name, box in layout.boxes.items():
        assert (box.width, box.height) == sizes[name]
        assert box.x >= 0
        assert box.y >= 0
        assert box.x + box.width <= layout.width + 1e-6
        assert box.y + box.height <= layout.height + 1e-6
    for edge, points in layout.lines:
        begin, end = layout.boxes[edge.source], layout.boxes[edge.target]
        assert points[0][1] == begin.y + begin.height
        assert points[-1][1] == end.y
        assert abs(points[0][0] - begin.middle) < 50
        assert all(upper[1] <= lower[1] for upper, lower in pairwise(points))


@given(graphs())
def test_a_layout_is_the_same_each_time(graph: FlowGraph) -> None:
    sizes = {node.id: (100.0, 40.0) for node in graph.nodes}
    assert laid_out(graph, sizes) == laid_out(graph, sizes)


def test_lines_that_need_not_cross_do_not() -> None:
    nodes = [GraphNode(id=name, name=name, kind="map") for name in ("a", "b", "x", "y")]
    crossed = [GraphEdge(source="a", target="y"), GraphEdge(source="b", target="x")]

    boxes = laid_out(FlowGraph(nodes=nodes, edges=crossed), dict.fromkeys("abxy", (50, 20))).boxes

    assert (boxes["a"].x < boxes["b"].x) == (boxes["y"].x < boxes["x"].x)


def test_a_line_past_a_layer_goes_around_its_boxes() -> None:
    nodes = [GraphNode(id=name, name=name, kind="map") for name in ("a", "b", "c")]
    edges = [
        GraphEdge(source="a", target="b"),
        GraphEdge(source="b", target="c"),
        GraphEdge(source="a", target="c"),
    ]

    layout = laid_out(FlowGraph(nodes=nodes, edges=edges), dict.fromkeys("abc", (200, 40)))

    box = layout.boxes["b"]
    bends = [x for x, y in layout.lines[2].points if box.y <= y <= box.y + box.height]
    assert bends
    assert not any(box.x <= x <= box.x + box.width for x in bends)


@given(graphs(), st.text(max_size=60), st.text(max_size=60))
def test_svg_is_xml_with_every_node_whatever_is_written_in_it(
    graph: FlowGraph, title: str, word: str
) -> None:
    notes = {node.id: NodeNote(lines=[word], tooltip=word, is_bad=True) for node in graph.nodes}

    root = ElementTree.fromstring(graph_svg(graph, title, notes, {("n0", 0): word}))

    boxes = root.findall(f".//{SVG}rect[@class='box']")
    assert len(boxes) == len(graph.nodes)
    assert len(root.findall(f".//{SVG}path[@marker-end]")) == len(graph.edges)
    assert not root.findall(f".//{SVG}script")


def test_what_is_written_stays_in_its_box_and_is_whole_in_the_tooltip() -> None:
    label = "tumbling(1h): " + "count(), " * 20
    node = GraphNode(id="a", name="a", kind="window", label=label)

    root = ElementTree.fromstring(graph_svg(FlowGraph(nodes=[node], edges=[]), "t"))

    (box,) = root.findall(f".//{SVG}rect[@class='box']")
    (cut,) = root.findall(f".//{SVG}text[@class='label']")
    (tooltip,) = root.findall(f".//{SVG}title")
    assert cut.text is not None
    assert len(cut.text) * 7.3 < float(box.get("width", 0))
    assert label in (tooltip.text or "")


def test_markup_in_names_is_text() -> None:
    node = GraphNode(id="a", name='<b onload="x">&', kind="source")

    drawn = graph_svg(FlowGraph(nodes=[node], edges=[]), '"><script>alert(1)</script>')

    root = ElementTree.fromstring(drawn)
    assert "<script>" not in drawn
    assert root.get("aria-label") == '"><script>alert(1)</script>'
    (name,) = root.findall(f".//{SVG}text[@class='name']")
    assert name.text == '<b onload="x">&'


def test_svg_is_for_light_and_dark_and_needs_nothing_else() -> None:
    drawn = graph_svg(plan().graph(), "flights")

    assert "prefers-color-scheme: dark" in drawn
    assert "href" not in drawn
    assert "url(" not in drawn.replace("url(#arrow)", "")


def test_a_plan_is_drawn_with_its_sources_steps_and_outputs() -> None:
    graph = plan().graph({"counts": "log counts"})

    assert [node.name for node in graph.nodes if node.kind == "source"] == ["flights"]
    assert {node.name: node.label for node in graph.nodes if node.kind == "output"} == {
        "counts": "log counts",
        "late": "",
        "all": "",
    }
    assert GraphEdge(source="hourly", target=output_id("late"), port=1) in graph.edges
    assert [node.name for node in graph.nodes if node.has_state] == ["hourly"]


def test_text_has_each_step_once_and_what_is_noted() -> None:
    drawn = graph_text(plan().graph(), {"hourly": NodeNote(lines=["late 3", "watermark 12:00"])})

    assert drawn.splitlines() == [
        "flights",
        "├─ key_by-1: key_by(origin)",
        "│  └─ hourly: tumbling(1h): count()   [late 3 · watermark 12:00]",
        "│     ├─ → counts",
        "│     └─ beside: → late",
        "└─ branch-1: branch(lambda test_graph_drawing.py:28)",
        "   ├─ merge-1: merge()",
        "   │  └─ → all",
        "   └─ beside: ↪ merge-1",
    ]


def test_an_engine_tells_how_many_records_have_left_each_step_by_port() -> None:
    engine = Engine(plan(), {"flights": [0]})
    flights = [
        {"origin": "JFK", "delay": 90},
        {"origin": "JFK", "delay": 0},
        {"origin": "EWR", "delay": 0},
    ]
    engine.feed("flights", 0, flights, [0, 0, 0])
    engine.end("flights", 0)

    gave = engine.gave()

    assert gave["flights"] == [3]
    assert gave["branch-1"] == [1, 2]
    assert gave["merge-1"] == [3]
    assert gave["hourly"] == [2]
