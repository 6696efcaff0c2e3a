"""A call, what came of it, its deadline, and the shape of middleware."""

from mycelia.call.current_context import Baggage, CurrentContext, context
from mycelia.call.deadline import (
    DEFAULT_TIMEOUT,
    DeadlineWheel,
    deadline_to_wire,
    monotonic_from_wall,
    tighter,
)
from mycelia.call.middleware import (
    Middleware,
    MiddlewareSource,
    Next,
    Observer,
    Unless,
    compose,
    middleware_for,
)
from mycelia.call.model import Arguments, Call, current_call, get_current_call
from mycelia.call.options import (
    DEFAULT_CALL_OPTIONS,
    DEFAULT_PUBLISH_OPTIONS,
    DELIVERY_MODES,
    CallArguments,
    CallOptions,
    PublishArguments,
    PublishOptions,
    unknown_option,
    with_options,
)
from mycelia.call.outcome import (
    Ack,
    DeadLetter,
    GiveBack,
    Outcome,
    Redeliver,
    Reply,
    Requeue,
    Settlement,
    outcome_of,
)
from mycelia.call.redacted import redacted_arguments
from mycelia.call.target import CallKind, Declaration, Direction, Target

__all__ = [
    "DEFAULT_CALL_OPTIONS",
    "DEFAULT_PUBLISH_OPTIONS",
    "DEFAULT_TIMEOUT",
    "DELIVERY_MODES",
    "Ack",
    "Arguments",
    "Baggage",
    "Call",
    "CallArguments",
    "CallKind",
    "CallOptions",
    "CurrentContext",
    "DeadLetter",
    "DeadlineWheel",
    "Declaration",
    "Direction",
    "GiveBack",
    "Middleware",
    "MiddlewareSource",
    "Next",
    "Observer",
    "Outcome",
    "PublishArguments",
    "PublishOptions",
    "Redeliver",
    "Reply",
    "Requeue",
    "Settlement",
    "Target",
    "Unless",
    "compose",
    "context",
    "current_call",
    "deadline_to_wire",
    "get_current_call",
    "middleware_for",
    "monotonic_from_wall",
    "outcome_of",
    "redacted_arguments",
    "tighter",
    "unknown_option",
    "with_options",
]
