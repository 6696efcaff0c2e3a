"""How a call or a message leaves: each option declared once, carried as its record.

Beside each record stands the same list as keyword arguments (`…Arguments`), by which type checkers know the options
of whatever takes them; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypedDict, TypeVar

import msgspec

from mycelia.durations import seconds_of
from mycelia.errors import ConfigError
from mycelia.nearest import nearest
from mycelia.wire import compressor_of

__all__ = [
    "DEFAULT_CALL_OPTIONS",
    "DEFAULT_PUBLISH_OPTIONS",
    "DELIVERY_MODES",
    "CallArguments",
    "CallOptions",
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
    headers: Mapping[str, Any] | None = None
    """Of the request, beside those that carry the context."""
    compression: str | None = None
    """How the request's body is compressed, as in `PublishOptions`."""
    context: Mapping[str, Any] | None = None
    """Context data by name, beside that which is inherited from the call being handled; what stands here goes before it."""


class CallArguments(TypedDict, total=False):
    """`CallOptions` as keyword arguments."""

    timeout: float | None
    serializer: str | None
    priority: int | None
    headers: Mapping[str, Any] | None
    compression: str | None
    context: Mapping[str, Any] | None


class PublishOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a message is published. Names are those of Nameko's publisher (nameko/amqp/publish.py:53) and kombu's."""

    serializer: str | None = None
    """Name of the serializer; the configured one if `None`."""
    compression: str | None = None
    """"gzip", "bzip2", "lzma" or "zstd" (where it is installed), in kombu's way: what it is, is in the header `compression`."""
    content_type: str | None = None
    """Of a payload that is text or bytes and goes as it is, by no serializer."""
    content_encoding: str | None = None
    """Of such a payload: what text is encoded in (utf-8 if `None`), what bytes are said to be (binary if `None`)."""
    delivery_mode: int | str = 2
    """2 or "persistent", 1 or "transient"."""
    mandatory: bool = False
    """Raise `Unroutable` when no queue is bound, instead of letting the message go nowhere."""
    priority: int | None = None
    expiration: float | None = None
    """Seconds after which the broker drops the message if nobody took it."""
    use_confirms: bool = True
    """Wait until the broker has the message. Without, it is published at most once."""
    headers: Mapping[str, Any] | None = None
    extra_headers: Mapping[str, Any] | None = None
    context: Mapping[str, Any] | None = None
    """Context data, as in `CallOptions`."""
    correlation_id: str | None = None
    reply_to: str | None = None
    message_id: str | None = None
    """Made where `None`; the same for every repetition of one publishing."""
    timestamp: float | None = None
    """Seconds since the epoch; now if `None`."""
    type: str | None = None
    user_id: str | None = None
    """RabbitMQ refuses any other than the user of the connection."""
    app_id: str | None = None
    cluster_id: str | None = None
    after: float | str | None = None
    """Seconds, or text such as "5m", after which the message is to arrive; the broker keeps it meanwhile. Up to 45 days."""
    timeout: float | None = None
    """Seconds to wait for the broker; the setting `mycelia.publish_timeout` (30) if `None`."""


class PublishArguments(TypedDict, total=False):
    """`PublishOptions` as keyword arguments, and those of Nameko's that are taken and mean nothing here."""

    serializer: str | None
    compression: str | None
    content_type: str | None
    content_encoding: str | None
    delivery_mode: int | str
    mandatory: bool
    priority: int | None
    expiration: float | None
    use_confirms: bool
    headers: Mapping[str, Any] | None
    extra_headers: Mapping[str, Any] | None
    context: Mapping[str, Any] | None
    correlation_id: str | None
    reply_to: str | None
    message_id: str | None
    timestamp: float | None
    type: str | None
    user_id: str | None
    app_id: str | None
    cluster_id: str | None
    after: float | str | None
    timeout: float | None
    confirm_timeout: float | None
    retry: Any
    retry_policy: Any
    transport_options: Any
    immediate: Any


DEFAULT_CALL_OPTIONS = CallOptions()
DEFAULT_PUBLISH_OPTIONS = PublishOptions()

NEEDLESS = frozenset({"retry", "retry_policy", "transport_options", "immediate", "confirm_timeout"})
"""Options of Nameko's and kombu's that are taken and have no field: the link always reconnects and repeats, `confirm_timeout`
is what `timeout` is here, and `immediate` no RabbitMQ since 3.0 can do."""

DELIVERY_MODES: Mapping[object, int] = {1: 1, 2: 2, "transient": 1, "persistent": 2}

Options = TypeVar("Options", bound=CallOptions | PublishOptions)


def with_options(base: Options, given: Mapping[str, Any], where: str) -> Options:
    """`base` with `given` over it.

    Raises:
        ConfigError: an option that does not exist or has a wrong value; it names it, and `where` it was given.
    """
    known = base.__struct_fields__
    is_publishing = isinstance(base, PublishOptions)
    needless: Collection[str] = NEEDLESS if is_publishing else ()
    for name in given:
        if name not in known and name not in needless:
            raise ConfigError(f"{where}: {unknown_option(name, known)}")
    changes = {name: value for name, value in given.items() if name in known}
    if is_publishing:
        _settle(changes, given, where)
    if changes.get("compression") is not None:
        try:
            compressor_of(changes["compression"])
        except ConfigError as exc:
            raise ConfigError(f"{where}: {exc}") from None
    if not changes:
        return base
    chosen = msgspec.structs.replace(base, **changes)
    if isinstance(chosen, PublishOptions) and chosen.after is not None and chosen.mandatory:
        raise ConfigError(
            f"{where}: after= and mandatory=True: who will be there then is not known now. Leave mandatory out."
        )
    return chosen


def _settle(changes: dict[str, Any], given: Mapping[str, Any], where: str) -> None:
    """Bring kombu's ways to say something to ours, and refuse what no broker would take."""
    if changes.get("timeout") is None and given.get("confirm_timeout") is not None:
        changes["timeout"] = given["confirm_timeout"]
    if given.get("immediate"):
        raise ConfigError(
            f"{where}: immediate={given['immediate']!r}: RabbitMQ has not had it since 3.0, and closes the connection over "
            "it. Leave it out; `expiration` drops what nobody takes in time."
        )
    if changes.get("after") is not None:
        changes["after"] = seconds_of(changes["after"], f"{where}: after=")
    if "delivery_mode" in changes:
        mode = changes["delivery_mode"]
        known = 2 if mode is None else DELIVERY_MODES.get(mode)
        if known is None:
            raise ConfigError(
                f'{where}: delivery_mode={mode!r}: expected 2 or "persistent", 1 or "transient".'
            )
        changes["delivery_mode"] = known


def unknown_option(name: str, known: Iterable[str]) -> str:
    """`unknown option concurency; did you mean concurrency?`, or with all that there are."""
    known = list(known)
    meant = nearest(name, known)
    if meant is not None:
        return f"unknown option {name}; did you mean {meant}?"
    if not known:
        return f"unknown option {name}; it takes none."
    return f"unknown option {name}. Known: {', '.join(sorted(known))}."
