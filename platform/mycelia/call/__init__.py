"""A call, what came of it, its deadline, and the shape of middleware."""

from mycelia.call.deadline import (
    DEFAULT_TIMEOUT,
    DeadlineWheel,
    deadline_from_wire,
    deadline_to_wire,
    tighter,
)
from mycelia.call.middleware import Middleware, Next, compose
from mycelia.call.model import Call, CallKind, Outcome, Settle, current_call, get_current_call

__all__ = [
    "DEFAULT_TIMEOUT",
    "Call",
    "CallKind",
    "DeadlineWheel",
    "Middleware",
    "Next",
    "Outcome",
    "Settle",
    "compose",
    "current_call",
    "deadline_from_wire",
    "deadline_to_wire",
    "get_current_call",
    "tighter",
]
