"""A flow as its method describes it, without a broker: what a service makes as it starts, and what is drawn of a class."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mycelia.errors import ConfigError, describe, text_of
from mycelia.flow.flow_graph import FlowGraph
from mycelia.flow.graph import FlowNode, FlowPlan
from mycelia.flow.outputs import FlowOutput, checked_outputs
from mycelia.flow.sources.events import QueueSource
from mycelia.flow.sources.single import SingleSource
from mycelia.flow.stream import source as stream_of
from mycelia.logs import Log

__all__ = ["AnySource", "DescribedFlow", "ReadsLogs", "described_flow"]


AnySource = Log[Any] | SingleSource[Any]
"""What a flow reads."""


class ReadsLogs(Protocol):
    """The declaration of a flow: `FlowHandler`."""

    @property
    def sources(self) -> tuple[AnySource, ...]: ...


class DescribedFlow(NamedTuple):
    plan: FlowPlan
    """All of it, uncut."""
    outputs: tuple[FlowOutput, ...]

    @property
    def asked(self) -> list[str]:
        """What it may be asked for."""
        return [one.asked_as for one in self.outputs if one.asked_as is not None]

    @property
    def graph(self) -> FlowGraph:
        """To be drawn."""
        return self.plan.graph({one.name: _where(one) for one in self.outputs})


def described_flow(service: object, method: str, declared: ReadsLogs) -> DescribedFlow:
    """What method `method` says when it is called on an instance of the service's class.

    Raises:
        ConfigError: it describes no flow.
    """
    cls = type(service)
    name = f"{getattr(cls, 'name', cls.__qualname__)}.{method}"
    function = getattr(cls, method)
    if inspect.iscoroutinefunction(function):
        raise ConfigError(
            f"{name}: the method under @flow describes the flow, once; make it `def`, not `async def`."
        )
    _check_arguments(function, declared.sources, name)
    streams = [
        stream_of(one.name, object if (of := one.shape.codec.of) is None else of)
        for one in declared.sources
    ]
    outputs = checked_outputs(_said(function, name, service, *streams), name)
    plan = FlowPlan({one.name: one.port for one in outputs})
    named = [one.name for one in declared.sources]
    if others := [one for one in plan.sources if one not in named]:
        raise ConfigError(
            f'{name}: it reads "{others[0]}", which @flow does not name ({", ".join(named)}). Name it there; the method gets its stream as an argument.'
        )
    for output in outputs:
        _check_loop(output, service, declared.sources, name)
    return DescribedFlow(plan, outputs)


def _said(function: Any, name: str, *given: Any) -> Any:
    """What the method returns. All that it ends with is the user's: also a `sys.exit()`, which must not end the process without a word.

    Raises:
        ConfigError: it raises, with the flow's name and the place.
    """
    try:
        return function(*given)
    except KeyboardInterrupt:
        raise
    except BaseException as exc:
        error = text_of(exc) if isinstance(exc, ConfigError) else describe(exc)
        raise ConfigError(
            f"{name}: the description of the flow ended with an error{_place(exc, function)}: {error}"
        ) from exc


def _check_loop(
    output: FlowOutput, service: object, sources: Iterable[AnySource], where: str
) -> None:
    """
    Raises:
        ConfigError: the flow reads what it gives there, and does not say that this is meant: each record would come again, for ever.
    """
    if output.feeds_back:
        return
    own = getattr(type(service), "name", type(service).__qualname__)
    for one in sources:
        if isinstance(one, Log):
            is_read, told = output.log is not None and output.log.name == one.name, "to(…"
        else:
            is_event = isinstance(one, QueueSource) and one.is_of_events
            is_read = is_event and one.name == f"{own}.{output.event_type}"
            told = f'emit("{output.event_type}"'
        if is_read and one.name in _giving(output.port[0]):
            raise ConfigError(
                f'{where}: it reads "{one.name}" and gives to "{one.name}", so each record that it gives comes to it again, for ever. Give to '
                f"another; or, where something on the way lets fewer and fewer through, say that it is meant: {told}, feeds_back=True)."
            )


def _giving(node: FlowNode) -> set[str | None]:
    """The sources of which a record may make this step give one. The side of a join that is a table gives nothing by itself."""
    found: set[str | None] = set()
    seen, waiting = {node}, [node]
    while waiting:
        one = waiting.pop()
        if one.kind == "source":
            found.add(one.name)
        inputs = one.inputs[:1] if one.kind == "join_table" else one.inputs
        before = {feeding for feeding, _ in inputs} - seen
        seen |= before
        waiting += before
    return found


def _place(error: BaseException, function: Any) -> str:
    """Where in the file of the method; the innermost, as a description may call others there."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    lines = [
        number
        for frame, number in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == file
    ]
    return f" at {Path(file).name}:{lines[-1]}" if file is not None and lines else ""


def _check_arguments(function: Any, sources: Iterable[AnySource], name: str) -> None:
    names = [one.name for one in sources]
    taken = [
        one
        for one in list(inspect.signature(function).parameters.values())[1:]
        if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    if len(taken) != len(names):
        raise ConfigError(
            f"{name}: the method takes {len(taken)} streams, and @flow names {len(names)} logs ({', '.join(names)}): one argument for each."
        )


def _where(output: FlowOutput) -> str:
    if output.asked_as is not None:
        return f"get_{output.asked_as}(key)"
    if output.sink is not None:
        return repr(output.sink)
    return f"log {output.log.name}" if output.log is not None else f"event {output.event_type}"
