"""`Call`: what is asked. One type for all directions.

A call that arrived (an RPC request, an event, a message, a timer tick, an HTTP request) and one that leaves (a proxy's
request, an event, a message) are the same thing seen from two sides; middleware has one shape for all.
"""

from __future__ import annotations

import logging
import time
from asyncio import CancelledError
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import msgspec

from mycelia.amqp import Delivery
from mycelia.call.options import CallOptions, PublishOptions
from mycelia.call.outcome import Settlement
from mycelia.call.target import CallKind, Target
from mycelia.log_event import event
from mycelia.wire import (
    CALL_ID_STACK,
    COMPRESSION_HEADER,
    HEADER_PREFIX,
    OFF_LOOP_BYTES,
    Serializer,
    call_id,
    carried_item,
    decode_context,
    encode_context,
    extend_call_stack,
)

__all__ = ["Arguments", "Call", "current_call", "get_current_call"]

log = logging.getLogger("mycelia.call")

Arguments = tuple[Sequence[Any], dict[str, Any]]
"""Positional and keyword arguments, as the method receives them."""


class Call(msgspec.Struct, eq=False):
    """One call, arrived or leaving.

    Arguments of a message are read in the worker, or earlier if a middleware asks for them; context data (the
    `nameko.*` headers) and call ids are worked out when first asked for. Not thread-safe while that happens; a call is
    used by one worker at a time. A `msgspec.Struct` because one is made for each message.
    """

    target: Target
    """Where it goes; made once and shared. A middleware may replace it."""
    arguments: Arguments | None = None
    """Positional and keyword; `None` while they have not been read. `args` and `kwargs` read them."""
    headers: Mapping[str, Any] | None = None
    """Of the message or request that carried it, as they came; `None` for none."""
    deadline: float | None = None
    """On the monotonic clock, seconds; `None` for none. Nested calls inherit it."""
    attempt: int = 1
    """1 for the first delivery of a message, one more for each retry."""
    arrived_at: float = msgspec.field(default_factory=lambda: time.monotonic())
    """On the monotonic clock, seconds: when this process received or made it."""
    message: Delivery | None = None
    """The delivery that carried it, with properties, exchange and routing key; `None` where there is none."""
    serializer: Serializer | None = None
    """What the answer is written with; `None` where nothing is answered."""
    read: Callable[[Call], Arguments] | None = None
    """Reads the arguments of the message; `None` where there are none to be read."""
    parent_calls_tracked: int = 10
    """Length of the call id stack (Nameko's setting of that name)."""
    options: CallOptions | PublishOptions | None = None
    """Of a call that leaves: how; `None` on one that arrived."""
    started_at: float = 0.0
    """On the monotonic clock, seconds: when its worker began; 0.0 before."""
    refusal: BaseException | None = None
    """Why its method is not going to run (it came too late, fits no method, …); `None` for a call that is."""
    interruption: BaseException | None = None
    """Why its worker has been cancelled (it ran too long); `None` while nobody has."""
    settlement: Settlement | None = None
    """Of one that arrived: how it was settled, where it has failed or a middleware decided; `None` before, and for all else."""
    on_settled: Callable[[Call], None] | None = None
    """Told on the event loop when it has been settled, with `settlement` there; `when_settled()` sets it."""
    items: tuple[Call, ...] = ()
    """Of a batch: the calls of its messages, in the order of the list that the method is given; empty for all else."""
    given_context: dict[str, Any] | None = None
    """Context data that is not in the headers: `context` once somebody has asked for it, or whoever made the call gave it."""
    reply_context: dict[str, Any] | None = None
    """Context data that travels back, `None` for none: of a call that arrived, what goes with its answer (`context.reply` sets
    it); of one that leaves, what has come with the answer. One hop: who wants it to go further sets it again."""
    _context_names: tuple[str, ...] = ()
    _call_id: str | None = None

    def when_settled(self, told: Callable[[Call], None]) -> None:
        """Have `told` called when this call has been settled; at once, if it has failed and been settled. One for each call."""
        if self.settlement is None:
            self.on_settled = told
        else:
            told(self)

    @property
    def item_count(self) -> int:
        """Of a batch: how many messages or records it has; 0 for all else."""
        return len(self.items)

    @property
    def span_attributes(self) -> Mapping[str, str | int]:
        """What a span of it says besides what every call's says, where its own kind has something to say."""
        return {}

    def linked(self) -> Sequence[Call]:
        """Of a batch: the calls whose spans its own links to, because it cannot have them all as its parent."""
        return self.items

    @property
    def kind(self) -> CallKind:
        return self.target.kind

    @property
    def service(self) -> str:
        return self.target.service

    @property
    def method(self) -> str:
        return self.target.method

    def decode_if_small(self) -> Arguments | None:
        """`decode()`, or `None` where that may take too long for the event loop: a long body, or any that is compressed.

        It raises what `decode()` raises.
        """
        arguments = self.arguments
        if arguments is None:
            message, headers = self.message, self.headers
            if message is not None and (
                len(message.body) > OFF_LOOP_BYTES
                or (headers is not None and COMPRESSION_HEADER in headers)
            ):
                return None
            if self.items and sum(map(_body_bytes, self.items)) > OFF_LOOP_BYTES:
                return None
            arguments = self.arguments = ((), {}) if self.read is None else self.read(self)
        return arguments

    def decode(self) -> Arguments:
        """Read the arguments, if that has not been done, and give them.

        Raises:
            MalformedRequest, IncorrectSignature, UndecodableMessage: they cannot be read, or do not fit.
        """
        arguments = self.arguments
        if arguments is None:
            arguments = self.arguments = ((), {}) if self.read is None else self.read(self)
        return arguments

    @property
    def args(self) -> Sequence[Any]:
        """Positional arguments; reads them when first asked for (`decode()`)."""
        return self.decode()[0]

    @args.setter
    def args(self, value: Sequence[Any]) -> None:
        self.arguments = (value, self.decode()[1])

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments; reads them when first asked for (`decode()`)."""
        return self.decode()[1]

    @kwargs.setter
    def kwargs(self, value: dict[str, Any]) -> None:
        self.arguments = (self.decode()[0], value)

    @property
    def context(self) -> dict[str, Any]:
        """Context data by name without the `nameko.` prefix; nested calls inherit it. Free to change."""
        context = self.given_context
        if context is None:
            left_out: list[str] = []
            context = self.given_context = decode_context(self.headers, left_out)
            self._context_names = tuple(context)
            if left_out:
                what = ", ".join(left_out)
                log.warning(event("context_left_out", call=self.target.name, left_out=what))
        return context

    def carried(self, name: str) -> Any:
        """What `context` has under `name`, `None` for nothing; read without decoding the rest, in any thread."""
        given = self.given_context
        return carried_item(self.headers, name) if given is None else given.get(name)

    @property
    def call_id(self) -> str:
        """`{service}.{method}.{uuid4}`, made when first asked for."""
        if self._call_id is None:
            self._call_id = call_id(self.service, self.method)
        return self._call_id

    @property
    def call_id_stack(self) -> list[str]:
        """The ids of the calls that led here, oldest first, this one last."""
        parents = self.context.get(CALL_ID_STACK) or []
        return extend_call_stack(parents, self.call_id, self.parent_calls_tracked)

    def outbound_headers(self) -> dict[str, Any]:
        """Headers for a call that leaves: `headers`, with `context` as middleware has left it."""
        headers = dict(self.headers or {})
        context = self.given_context
        if context is None:
            return headers
        for name in self._context_names:
            if context.get(name) is None:  # a middleware took it out
                headers.pop(name, None)
                headers.pop(HEADER_PREFIX + name, None)
        for header, value in encode_context(context).items():
            bare = header.removeprefix(HEADER_PREFIX)
            came_bare = bare in headers and header not in headers
            headers[bare if came_bare else header] = value
        return headers

    def reason_for(self, error: BaseException) -> BaseException:
        """What a worker's end with `error` is put down to: of a cancellation, why it was cancelled, if that is known."""
        # `isinstance` would ask the error itself for its class, which one of the application's may refuse to tell.
        if issubclass(type(error), CancelledError) and self.interruption is not None:
            return self.interruption
        return error

    def remaining(self) -> float | None:
        """Seconds until the deadline, below zero once it has passed; `None` without a deadline."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    def __repr__(self) -> str:
        return f"Call({self.kind.value} {self.target.name}, attempt={self.attempt})"


def _body_bytes(item: Call) -> int:
    """What reading it costs; of a compressed body nobody knows."""
    if item.headers is not None and COMPRESSION_HEADER in item.headers:
        return OFF_LOOP_BYTES + 1
    return 0 if item.message is None else len(item.message.body)


current_call: ContextVar[Call | None] = ContextVar("mycelia_current_call", default=None)
"""The call that the running worker is handling."""


def get_current_call() -> Call | None:
    """The call being handled here, in a task or in a worker thread; `None` outside a worker."""
    return current_call.get()
