"""A batch that leaves for a log, as a call: what middleware sees of appends. And whose appends it is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import Context, copy_context
from typing import Any, Final

import msgspec

from mycelia.amqp import Message
from mycelia.call import Call, CallKind, Direction, Target, get_current_call
from mycelia.wire import BAGGAGE, TRACEPARENT, TRACESTATE

__all__ = [
    "APPEND",
    "MAX_LINKS",
    "AppendCall",
    "Origins",
    "append_target",
    "carried_trace",
    "entry_with_headers",
]

APPEND: Final = "append"
"""The method of the target of appends; its service is the log."""

MAX_LINKS: Final = 32
"""Traces that the span of a batch links to. Arbitrary: what a person looks at, and far below OpenTelemetry's 128."""

_NOBODY: Final = object()


class AppendCall(Call, eq=False, kw_only=True):
    """A batch of records on its way to one partition of a log.

    `args` are the records, in a list, decoded when somebody asks. They are for looking at: what is changed in them is not what is
    sent. Headers, context data and the deadline may be changed. A middleware that goes on twice sends the same batch twice, and
    readers drop the second one.
    """

    entry: Message
    """As it leaves, but for the call's headers."""
    partition: int
    records: int
    """How many."""
    origins: tuple[Call, ...] = ()
    """The calls in which the records were appended, where that is known: up to 32."""
    chosen: Call | None = None
    """Which of them it inherits the trace of. It links to those of the others."""
    is_mixed: bool = False
    """Whether the records are of more than one call."""

    @property
    def item_count(self) -> int:
        return self.records

    def leaving(self) -> Message:
        """The entry with the call's headers, as middleware has left them."""
        headers = self.outbound_headers()
        if self.is_mixed:
            headers.pop(BAGGAGE, None)  # of one of the calls, and the batch is of several
        return entry_with_headers(self.entry, headers) if headers else self.entry

    def linked(self) -> Sequence[Call]:
        return [call for call in self.origins if call is not self.chosen]


def entry_with_headers(message: Message, headers: Mapping[str, Any]) -> Message:
    """An entry with `headers` beside its own, which say what it is and go before."""
    properties = message.properties
    both = {**headers, **(properties.headers or {})}
    return msgspec.structs.replace(message, properties=properties.republished(both))


def append_target(log_name: str) -> Target:
    """What middleware is asked about: all appends to one log."""
    return Target(Direction.OUTBOUND, CallKind.LOG, log_name, APPEND)


class Origins:
    """The calls in which the appends of one batch were made."""

    __slots__ = ("_contexts", "_last", "is_mixed")

    def __init__(self) -> None:
        self._contexts: dict[Call | None, Context | None] = {}
        self._last: object = _NOBODY
        self.is_mixed = False
        """Whether they are of more than one call."""

    def add(self, keeps_context: bool) -> None:
        """An append is made here and now.

        Args:
            keeps_context: whether somebody will want to know what else was set here.
        """
        call = get_current_call()
        if call is self._last:
            return
        self.is_mixed = self.is_mixed or self._last is not _NOBODY
        self._last = call
        if len(self._contexts) < MAX_LINKS and call not in self._contexts:
            self._contexts[call] = copy_context() if keeps_context else None

    @property
    def calls(self) -> tuple[Call, ...]:
        return tuple(call for call in self._contexts if call is not None)

    def chosen(self) -> tuple[Call | None, Context | None]:
        """Which of them stands for all, and its context: the first whose trace is kept, else the first."""
        for call, context in self._contexts.items():
            if call is not None and carried_trace(call).get(TRACEPARENT, "0")[-1] in "13579bdf":
                return call, context
        return next(iter(self._contexts.items()), (None, None))


def carried_trace(call: Call | None) -> dict[str, Any]:
    """The trace that a call is of, as headers; empty where it is of none. Nothing else is read."""
    if call is None:
        return {}
    found = {name: call.carried(name) for name in (TRACEPARENT, TRACESTATE)}
    return {name: value for name, value in found.items() if value and isinstance(value, str)}
