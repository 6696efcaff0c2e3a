"""Where a call goes, as data that is made once and shared by all of its calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import Enum
from typing import Any

import msgspec

from mycelia.redaction import SensitivePaths

__all__ = ["CallKind", "Declaration", "Direction", "Target"]


class CallKind(Enum):
    """How a call travels."""

    RPC = "rpc"
    EVENT = "event"
    MESSAGE = "message"
    TIMER = "timer"
    HTTP = "http"
    LOG = "log"
    """A batch of records: appended to a log, or given to a handler of one."""
    OTHER = "other"


class Direction(Enum):
    """Which way a call passes the process's border.

    With the kind it tells the five directions apart: a message arrives, time or HTTP arrives (`INBOUND`); a call
    leaves, an event or message leaves (`OUTBOUND`); a batch of records goes in or out of a log.
    """

    INBOUND = "inbound"
    OUTBOUND = "outbound"


class Declaration:
    """What a method's decorator says of its calls, for those who look on: middleware, access lines, traces.

    Args:
        method: finds the method, called with the service and the arguments.
        expected_exceptions: errors that callers may cause.
        sensitive_arguments: names of arguments, or of parts of them, that nobody may see.
    """

    __slots__ = ("_method", "_signature", "expected_exceptions", "sensitive")

    def __init__(
        self,
        method: Callable[[], Callable[..., Any]],
        expected_exceptions: type[BaseException] | tuple[type[BaseException], ...] = (),
        sensitive_arguments: str | tuple[str, ...] = (),
    ) -> None:
        self._method = method
        self._signature: inspect.Signature | None = None
        self.expected_exceptions = expected_exceptions
        self.sensitive = SensitivePaths(sensitive_arguments)

    def expects(self, error: BaseException) -> bool:
        """Whether `error` is one that callers may cause."""
        return isinstance(error, self.expected_exceptions)

    @property
    def signature(self) -> inspect.Signature:
        """The method's, `self` included; worked out when first asked for."""
        if self._signature is None:
            self._signature = inspect.signature(self._method())
        return self._signature

    def unknown_arguments(self) -> list[str]:
        """Names among the sensitive arguments that the method has no argument of: a typo, which would hide nothing."""
        parameters = list(self.signature.parameters.values())[1:]
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return []
        return sorted(self.sensitive.names - {parameter.name for parameter in parameters})

    def __repr__(self) -> str:
        return "Declaration(…)"


class Target(msgspec.Struct, frozen=True, gc=False):
    """One method of one service as middleware is asked about it, or one exchange that events and messages leave for.

    Every call has a target of its own names. Where these may be without number, a source of middleware is asked once for
    all: about events that leave by the service that they are of, and about messages by their exchange, with `*` as the
    method; about calls that leave by service and method, for the first thousand of a caller, and as `*.*` for the rest.

    Attributes:
        direction: whether the call comes in or leaves.
        kind: how it travels.
        service: the service called; of an event that leaves, the service it is of; of a message, the exchange; of records, the log.
        method: the method called; of an event that leaves, its type; of a message, the routing key; `*` for any; of records, `append`.
        name: `service.method`, as logs and errors name it.
        declared: what the method's decorator says; `None` where there is none: of what leaves, of a method that does not exist.
    """

    direction: Direction
    kind: CallKind
    service: str
    method: str
    name: str = ""
    declared: Declaration | None = None

    def __post_init__(self) -> None:
        if not self.name:
            msgspec.structs.force_setattr(self, "name", f"{self.service}.{self.method}")

    def __str__(self) -> str:
        return self.name
