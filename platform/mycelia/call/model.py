"""`Call` and `Outcome`: what is asked, and what came of it. One type for both directions.

A call that arrived (an RPC request, an event, a timer tick, an HTTP request) and a call that leaves (a proxy's
request) are the same thing seen from two sides; middleware has one shape for both.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar
from enum import Enum
from typing import Any

from mycelia.wire import CALL_ID_STACK, call_id, decode_context, encode_context, extend_call_stack

__all__ = ["Call", "CallKind", "Outcome", "Settle", "current_call", "get_current_call"]


class CallKind(Enum):
    """How a call travels."""

    RPC = "rpc"
    EVENT = "event"
    MESSAGE = "message"
    TIMER = "timer"
    HTTP = "http"
    OTHER = "other"


class Settle(Enum):
    """What becomes of the message behind a call, when a middleware decides it instead of the entrypoint."""

    ACK = "ack"
    REQUEUE = "requeue"
    DEAD_LETTER = "dead_letter"


class Outcome:
    """What came of a call: a value or an error, never both.

    Attributes:
        value: what the method returned; `None` with an error.
        error: what it raised. Any `BaseException`: a cancelled worker is an outcome too.
        settle: how to settle the message; `None` leaves it to the entrypoint's own rule.
        body: the encoded reply where the entrypoint encodes in the worker (RPC); otherwise `None`.
    """

    __slots__ = ("body", "error", "settle", "value")

    def __init__(
        self,
        value: Any = None,
        error: BaseException | None = None,
        settle: Settle | None = None,
        body: bytes | None = None,
    ) -> None:
        self.value = value
        self.error = error
        self.settle = settle
        self.body = body

    def unwrap(self) -> Any:
        """The value, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value

    def __repr__(self) -> str:
        if self.error is not None:
            return f"Outcome(error={self.error!r})"
        return f"Outcome({self.value!r})"


class Call:
    """One call, arrived or leaving.

    Context data (the `nameko.*` headers) and call ids are worked out when first asked for, because most calls
    never ask. Not thread-safe while that happens; a call is used by one worker at a time.

    Attributes:
        kind: how it travels.
        service: the service called.
        method: the method called.
        args, kwargs: as the method receives them.
        deadline: on the monotonic clock, seconds; `None` for none. Nested calls inherit it.
        attempt: 1 for the first delivery of a message, one more for each retry.
        message: what carried it (`amqp.Delivery`, an HTTP request); `None` for a timer or a local call.
    """

    __slots__ = (
        "_call_id",
        "_context",
        "_headers",
        "args",
        "attempt",
        "deadline",
        "kind",
        "kwargs",
        "message",
        "method",
        "parent_calls_tracked",
        "service",
    )

    def __init__(
        self,
        kind: CallKind,
        service: str,
        method: str,
        args: tuple[Any, ...] | list[Any] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        headers: Mapping[str, Any] | None = None,
        context: dict[str, Any] | None = None,
        deadline: float | None = None,
        attempt: int = 1,
        message: Any = None,
        parent_calls_tracked: int = 10,
    ) -> None:
        self.kind = kind
        self.service = service
        self.method = method
        self.args = args
        self.kwargs = {} if kwargs is None else kwargs
        self.deadline = deadline
        self.attempt = attempt
        self.message = message
        self.parent_calls_tracked = parent_calls_tracked
        self._headers = headers
        self._context = context
        self._call_id: str | None = None

    @property
    def context(self) -> dict[str, Any]:
        """Context data by name without the `nameko.` prefix; nested calls inherit it. Free to change."""
        context = self._context
        if context is None:
            context = self._context = decode_context(self._headers)
        return context

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
        """Headers for a call that leaves, with what middleware put into `context`."""
        headers = dict(self._headers or {})
        if self._context is not None:
            headers |= encode_context(self._context)
        return headers

    @property
    def target(self) -> str:
        """`service.method`, as messages and logs name it."""
        return f"{self.service}.{self.method}"

    def remaining(self) -> float | None:
        """Seconds until the deadline, below zero once it has passed; `None` without a deadline."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    def __repr__(self) -> str:
        return f"Call({self.kind.value} {self.target}, attempt={self.attempt})"


current_call: ContextVar[Call | None] = ContextVar("mycelia_current_call", default=None)
"""The call that the running worker is handling."""


def get_current_call() -> Call | None:
    """The call being handled here, in a task or in a worker thread; `None` outside a worker."""
    return current_call.get()
