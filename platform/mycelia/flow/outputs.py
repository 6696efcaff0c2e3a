"""Where what a flow gives goes to: data, made at the end of a description by `Stream.to()` and `Stream.emit()`."""

from __future__ import annotations

from typing import Any

from mycelia.errors import ConfigError
from mycelia.flow.graph import NodePort
from mycelia.flow.sinks.sink import FlowSink
from mycelia.logs import Log

__all__ = ["FlowOutput", "checked_outputs"]


class FlowOutput:
    """A stream that leaves a flow. What a method under `@flow` returns: one, or several in a tuple.

    Attributes:
        name: unique in its flow; part of the ids of what leaves by it.
        port: the stream's step, and which of its ports.
        log: the log that its records are appended to; or
        event_type: the type of the service's event that each of them is; or
        sink: what else has them; or
        table: the name under which each key's last record is kept: nothing leaves; or
        state: the name under which the step before tells what it knows of a key: nothing leaves.
        feeds_back: whether it is meant that the flow reads these records again.
    """

    __slots__ = ("event_type", "feeds_back", "log", "name", "port", "sink", "state", "table")

    def __init__(
        self,
        name: str,
        port: NodePort,
        *,
        log: Log[Any] | None = None,
        event_type: str | None = None,
        sink: FlowSink[Any] | None = None,
        table: str | None = None,
        state: str | None = None,
        feeds_back: bool = False,
    ) -> None:
        self.name = name
        self.port = port
        self.log = log
        self.event_type = event_type
        self.sink = sink
        self.table = table
        self.state = state
        self.feeds_back = feeds_back

    @property
    def asked_as(self) -> str | None:
        """The name by which it is asked for, `get_<name>(key)`, if it is."""
        return self.state if self.table is None else self.table

    def __repr__(self) -> str:
        if self.sink is not None:
            return f"<FlowOutput {self.name!r} to {self.sink!r}>"
        if self.table is not None:
            return f"<FlowOutput to table {self.table!r}>"
        if self.state is not None:
            return f"<FlowOutput of state {self.state!r}>"
        where = f"log {self.name!r}" if self.log is not None else f"event {self.event_type!r}"
        return f"<FlowOutput to {where}>"


def checked_outputs(described: object, where: str) -> tuple[FlowOutput, ...]:
    """What a description has returned, as outputs.

    Raises:
        ConfigError: it is something else, or two of them have one name.
    """
    found = tuple(described) if isinstance(described, tuple | list) else (described,)
    outputs = tuple(one for one in found if isinstance(one, FlowOutput))
    if not outputs or len(outputs) != len(found):
        (wrong, *_) = [one for one in found if not isinstance(one, FlowOutput)] or [found]
        raise ConfigError(
            f"{where} returned {wrong!r:.80}. A flow says where its streams go: return stream.to(LOG), or "
            'stream.emit("event_type"), or several of them in a tuple.'
        )
    names = [one.name for one in outputs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f'{where}: two streams go to "{name}". Merge them before, or give one another name, to(…, name=…).'
            )
    return outputs
