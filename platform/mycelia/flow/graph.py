"""A flow as it is described: nodes, and what is checked and drawn of them before anything runs. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

from mycelia.errors import ConfigError
from mycelia.flow.asked_state import ReadsWindows
from mycelia.flow.async_steps import ASYNC_KINDS, RunsCoroutines, in_own_loop
from mycelia.flow.flow_graph import FlowGraph, GraphEdge, GraphNode, graph_text, output_id
from mycelia.flow.operators import Operator
from mycelia.flow.state import StoreReader
from mycelia.flow.stateless import FlowStep

__all__ = ["Building", "FlowNode", "FlowPlan", "NodePort", "described"]


class Building:
    """What a node is given to make its operator.

    Attributes:
        name: the operator's.
        channels: the partitions whose records may come to it, as the engine calls them.
        store: where its state is, if it has been before.
        run: runs what it awaits.
    """

    __slots__ = ("channels", "name", "run", "store")

    def __init__(
        self,
        name: str,
        channels: list[Hashable],
        store: StoreReader | None,
        run: RunsCoroutines = in_own_loop,
    ) -> None:
        self.name = name
        self.channels = channels
        self.store = store
        self.run = run


class FlowNode:
    """One step of a description.

    Args:
        kind: what it is: "map", "window". Its name, unless it was given one, is that and a number.
        label: as it is drawn: `map(enrich)`.
        inputs: whose records come to it, in the order of its ports.
        make: makes the operator. None for sources, and for steps that are fused.
        step: of a step without state, its function.
        is_relay: of a source, whether its event time is told by those who write to it: `Engine.relay()`.
        signature: what must stay as it is for its state to be read again; empty for one without state.
        key: of a `key_by()`, what it was given: a function, or a field's name.
        may_repartition: of a `key_by()`, whether its records may be split anew.
        open_windows: of windows, reads what is kept of a key.
    """

    __slots__ = (
        "inputs",
        "is_relay",
        "key",
        "kind",
        "label",
        "make",
        "may_repartition",
        "migrate",
        "name",
        "open_windows",
        "signature",
        "step",
        "version",
        "was",
    )

    def __init__(
        self,
        kind: str,
        label: str,
        inputs: tuple[NodePort, ...],
        *,
        make: Callable[[Building], Operator] | None = None,
        step: FlowStep | None = None,
        signature: str = "",
        name: str | None = None,
        is_relay: bool = False,
        key: object = None,
        may_repartition: bool = True,
        open_windows: ReadsWindows | None = None,
    ) -> None:
        self.kind = kind
        self.label = label
        self.inputs = inputs
        self.make = make
        self.step = step
        self.signature = signature
        self.name = name
        self.is_relay = is_relay
        self.key = key
        self.may_repartition = may_repartition
        self.open_windows = open_windows
        self.was: str | None = None
        """What it was called before."""
        self.version = 1
        """Of its state, and how that of each version before is made into the next one."""
        self.migrate: Mapping[int, Callable[[Any], Any]] = {}

    def copy(self, inputs: tuple[NodePort, ...], name: str) -> FlowNode:
        """The same step with other inputs."""
        copied = FlowNode(
            self.kind,
            self.label,
            inputs,
            make=self.make,
            step=self.step,
            signature=self.signature,
            name=name,
            is_relay=self.is_relay,
            key=self.key,
            may_repartition=self.may_repartition,
            open_windows=self.open_windows,
        )
        copied.was, copied.version, copied.migrate = self.was, self.version, self.migrate
        return copied

    def __repr__(self) -> str:
        return self.name or self.label


NodePort = tuple[FlowNode, int]
"""A node, and which of its ports."""


def described(function: Any) -> str:
    """A function, as a person finds it again: its name, and where a lambda stands."""
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    code = getattr(function, "__code__", None)
    if name.endswith("<lambda>") and code is not None:
        file = code.co_filename.rpartition("/")[2]
        return f"lambda {file}:{code.co_firstlineno}"
    return str(name).rpartition("<locals>.")[2]


class FlowPlan:
    """A whole flow, checked: what its outputs are made of, in the order in which a batch passes through.

    Args:
        outputs: the streams that leave it, by their names; see `Stream.port`.

    Raises:
        ConfigError: something in it cannot be; the text names the step and says what to do.
    """

    def __init__(self, outputs: Mapping[str, NodePort]) -> None:
        if not outputs:
            raise ConfigError(
                "a flow without outputs does nothing. Give it a stream that leaves it."
            )
        self.outputs = dict(outputs)
        self.nodes: list[FlowNode] = []
        seen: set[FlowNode] = set()
        for node, _ in self.outputs.values():
            self._visit(node, seen)
        self.sources = [node.name or "" for node in self.nodes if node.kind == "source"]
        self.names = self._named()
        self._check_event_times()

    def _visit(self, node: FlowNode, seen: set[FlowNode]) -> None:
        """Depth first, inputs before those that they go to. Without recursion: a chain of steps may be long."""
        path: list[tuple[FlowNode, Iterator[NodePort]]] = [(node, iter(node.inputs))]
        while path:
            current, inputs = path[-1]
            if current in seen:
                path.pop()
                continue
            for feeding, _ in inputs:
                if feeding not in seen:
                    path.append((feeding, iter(feeding.inputs)))
                    break
            else:
                seen.add(current)
                self.nodes.append(current)
                path.pop()

    def _named(self) -> dict[FlowNode, str]:
        numbers: Counter[str] = Counter()
        names: dict[FlowNode, str] = {}
        for node in self.nodes:
            if node.name is None:
                numbers[node.kind] += 1
                names[node] = f"{node.kind}-{numbers[node.kind]}"
            else:
                names[node] = node.name
        taken = Counter(names.values())
        for node, name in names.items():
            if taken[name] > 1:
                what = "source" if node.kind == "source" else "step"
                hint = (
                    "Use the same stream for both"
                    if node.kind == "source"
                    else "Give one of them another, .named(…)"
                )
                raise ConfigError(f'more than one {what} of the flow is called "{name}". {hint}.')
            if "~" in name or not name:
                raise ConfigError(f'a step cannot be called "{name}": "~" and nothing are kept.')
        return names

    def _check_event_times(self) -> None:
        """`event_time()` keeps a watermark for each partition of its source, and behind a step with state they can no longer be told apart."""
        for node in self.nodes:
            if node.kind == "event_time":
                for feeding in self.upstream(node):
                    if feeding.signature and feeding.kind != "event_time":
                        raise ConfigError(
                            f'"{self.names[node]}" ({node.label}) comes after "{self.names[feeding]}" ({feeding.label}), whose '
                            "results have their event times already. Put event_time() before it."
                        )

    @property
    def awaits(self) -> bool:
        """Whether a step of it awaits."""
        return any(node.kind in ASYNC_KINDS for node in self.nodes)

    def upstream(self, node: FlowNode) -> list[FlowNode]:
        """All that records of `node` may have come through."""
        found: dict[FlowNode, None] = {}
        waiting = [feeding for feeding, _ in node.inputs]
        while waiting:
            one = waiting.pop()
            if one not in found:
                found[one] = None
                waiting += [feeding for feeding, _ in one.inputs]
        return list(found)

    def consumers(self) -> dict[NodePort, list[tuple[FlowNode, int]]]:
        """Where the records of each port go: nodes, with the number of their own port."""
        found: dict[NodePort, list[tuple[FlowNode, int]]] = {}
        for node in self.nodes:
            for port, source in enumerate(node.inputs):
                found.setdefault(source, []).append((node, port))
        return found

    def versions(self) -> dict[str, int]:
        """By step, the version of its state; only of steps whose state is not of the first."""
        return {self.names[node]: node.version for node in self.nodes if node.version != 1}

    def signatures(self) -> dict[str, str]:
        """By step with state, what must stay as it is for the state to be read again."""
        return {self.names[node]: node.signature for node in self.nodes if node.signature}

    def graph(self, leaving: Mapping[str, str] | None = None) -> FlowGraph:
        """The flow as plain data, to be drawn.

        Args:
            leaving: of outputs, by their names, what they go to: `log delays.hourly`.
        """
        nodes = [
            GraphNode(
                id=self.names[node],
                name=self.names[node],
                kind=node.kind,
                label=node.label,
                has_state=bool(node.signature) and node.kind != "event_time",
            )
            for node in self.nodes
        ]
        edges = [
            GraphEdge(source=self.names[feeding], target=self.names[node], port=port)
            for node in self.nodes
            for feeding, port in node.inputs
        ]
        for name, (node, port) in self.outputs.items():
            label = (leaving or {}).get(name, "")
            nodes.append(GraphNode(id=output_id(name), name=name, kind="output", label=label))
            edges.append(GraphEdge(source=self.names[node], target=output_id(name), port=port))
        return FlowGraph(nodes=nodes, edges=edges)

    def draw(self) -> str:
        """The flow as a tree of text: `graph_text()`."""
        return graph_text(self.graph())
