"""How a call or a message leaves: each option declared once, carried as its record.

Beside each record stands the same list as keyword arguments (`…Arguments`), by which type checkers know the options
of whatever takes them; a test holds the two together.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypedDict, TypeVar

import msgspec

from mycelia.errors import ConfigError

__all__ = [
    "DEFAULT_CALL_OPTIONS",
    "DEFAULT_PUBLISH_OPTIONS",
    "CallArguments",
    "CallOptions",
    "DispatchArguments",
    "PublishArguments",
    "PublishOptions",
    "unknown_option",
    "with_options",
]


class CallOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a remote method is called."""

    timeout: float | None = None
    """Seconds; the setting `mycelia.rpc_timeout` (30) if `None`. A call inside a worker that has less time left takes
    no longer than the worker may. To middleware it bounds each request that is sent, `Call.deadline` all of them."""
    serializer: str | None = None
    """Name of the serializer for the request; the configured one if `None`. The reply comes in the same format."""
    priority: int | None = None
    """Of the request, on queues that have priorities."""


class CallArguments(TypedDict, total=False):
    """`CallOptions` as keyword arguments."""

    timeout: float | None
    serializer: str | None
    priority: int | None


class PublishOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a message is published. Names are those of Nameko's publisher (nameko/amqp/publish.py:53)."""

    serializer: str | None = None
    """Name of the serializer; the configured one if `None`."""
    delivery_mode: int = 2
    """2 persistent, 1 transient."""
    mandatory: bool = False
    """Raise `Unroutable` when no queue is bound, instead of letting the message go nowhere."""
    priority: int | None = None
    expiration: float | None = None
    """Seconds after which the broker drops the message if nobody took it."""
    use_confirms: bool = True
    """Wait until the broker has the message. Without, it is published at most once."""
    headers: Mapping[str, Any] | None = None
    extra_headers: Mapping[str, Any] | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    message_id: str | None = None
    """Made where `None`; the same for every repetition of one publishing."""
    type: str | None = None
    app_id: str | None = None
    timeout: float | None = None
    """Seconds to wait for the broker; the setting `mycelia.publish_timeout` (30) if `None`."""


class PublishArguments(TypedDict, total=False):
    """`PublishOptions` as keyword arguments, and those of Nameko's that are taken and mean nothing here."""

    serializer: str | None
    delivery_mode: int
    mandatory: bool
    priority: int | None
    expiration: float | None
    use_confirms: bool
    headers: Mapping[str, Any] | None
    extra_headers: Mapping[str, Any] | None
    correlation_id: str | None
    reply_to: str | None
    message_id: str | None
    type: str | None
    app_id: str | None
    timeout: float | None
    retry: Any
    retry_policy: Any
    transport_options: Any
    immediate: Any


class DispatchArguments(PublishArguments, total=False):
    """`PublishArguments`, with the one of Nameko's that `Publisher` has a use for and `EventDispatcher` has not."""

    declare: Any


DEFAULT_CALL_OPTIONS = CallOptions()
DEFAULT_PUBLISH_OPTIONS = PublishOptions()

NEEDLESS = frozenset({"retry", "retry_policy", "transport_options", "declare", "immediate"})
"""Options of Nameko's that the link makes needless: it always reconnects, repeats, and declares."""

Options = TypeVar("Options", bound=CallOptions | PublishOptions)


def with_options(base: Options, given: Mapping[str, Any], where: str) -> Options:
    """`base` with `given` over it.

    Raises:
        ConfigError: an option that does not exist; it names it, and `where` it was given.
    """
    known = base.__struct_fields__
    needless: Collection[str] = NEEDLESS if isinstance(base, PublishOptions) else ()
    for name in given:
        if name not in known and name not in needless:
            raise ConfigError(f"{where}: {unknown_option(name, known)}")
    changes = {name: value for name, value in given.items() if name in known}
    if not changes:
        return base
    return msgspec.structs.replace(base, **changes)


def unknown_option(name: str, known: Iterable[str]) -> str:
    """`unknown option concurency; did you mean concurrency?`, or with all that there are."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"unknown option {name}; did you mean {close[0]}?"
    if not known:
        return f"unknown option {name}; it takes none."
    return f"unknown option {name}. Known: {', '.join(sorted(known))}."
