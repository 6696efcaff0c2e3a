"""Counterparts of the stock extensions: which of Mycelia's does the work of which of Nameko's.

A table by the stock class's dotted name. A counterpart also serves subclasses that override nothing of the stock
class but `__init__` and what the counterpart reads; for others, see `declarations.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import getattr_static
from typing import Any

from mycelia.clients import EventDispatcher, Publisher, RpcProxy
from mycelia.entrypoints import Consumer, EventHandler, Rpc, Timer
from mycelia.errors import ConfigError
from mycelia.nameko.context import ContextData
from mycelia.nameko.hub import HubProvider
from mycelia.nameko.recognise import dotted_name
from mycelia.runtime import Container, DependencyProvider, Entrypoint

__all__ = ["Stock", "find_stock", "options_of"]


@dataclass(frozen=True, slots=True)
class Stock:
    """A stock class with a counterpart.

    Attributes:
        make: makes the counterpart of a declaration, unbound.
        reads: what subclasses may override because the counterpart reads it.
    """

    make: Callable[[Any], Any]
    reads: frozenset[str] = frozenset()

    def overridden(self, declared: object, stock_cls: type[Any]) -> set[str]:
        """What the declaration does in its own way and the counterpart would pass over.

        By what would be called, so that a base beside the stock class counts as well as one below it.
        """
        known = {name for cls in stock_cls.__mro__[:-1] for name in vars(cls)}
        changed = {
            name
            for name in known
            if not name.startswith("__")
            and getattr_static(type(declared), name) is not getattr_static(stock_cls, name)
        }
        return changed - _HARMLESS - self.reads


_HARMLESS = frozenset({"decorator", "attr_name", "method_name", "container"})
"""Attributes that a subclass may override without changing what the extension does."""


def find_stock(declared: object) -> tuple[type[Any], Stock] | None:
    """The nearest stock class of a declaration that has a counterpart."""
    for cls in type(declared).__mro__:
        stock = STOCK.get(dotted_name(cls))
        if stock is not None:
            return cls, stock
    return None


# --- entrypoints -----------------------------------------------------------------------------------


def options_of(declared: Any) -> dict[str, Any]:
    """The options that every entrypoint of Nameko's has, if its `__init__` has called `super()`'s."""
    return {
        "expected_exceptions": getattr(declared, "expected_exceptions", ()),
        "sensitive_arguments": getattr(declared, "sensitive_arguments", ()),
    }


def _rpc(declared: Any) -> Entrypoint:
    return Rpc(**options_of(declared))


def _consumer(declared: Any) -> Entrypoint:
    return Consumer(declared.queue, declared.requeue_on_error, **options_of(declared))


def _timer(declared: Any) -> Entrypoint:
    return Timer(declared.interval, declared.eager, **options_of(declared))


def _event_handler(declared: Any) -> Entrypoint:
    """Existing services keep Nameko's own queue declaration: stock instances may consume beside this one."""
    handler_cls = _with_identifier(_own_broadcast_identifier(declared))
    return handler_cls(
        declared.source_service,
        declared.event_type,
        declared.handler_type,
        declared.reliable_delivery,
        declared.requeue_on_error,
        queue_type="classic",
        **options_of(declared),
    )


def _with_identifier(identifier: Any) -> type[EventHandler]:
    """The handler class whose instances are told apart by `identifier`, a user's property; `None` for the usual."""
    if identifier is None:
        return EventHandler

    class IdentifiedEventHandler(EventHandler):
        broadcast_identifier = identifier

    return IdentifiedEventHandler


def _own_broadcast_identifier(declared: Any) -> Any:
    """The override of a user's subclass of Nameko's handler, if there is one."""
    for cls in type(declared).__mro__:
        if cls.__module__ == "nameko.events":
            return None
        if "broadcast_identifier" in vars(cls):
            return vars(cls)["broadcast_identifier"]
    return None


# --- dependency providers --------------------------------------------------------------------------


NEEDLESS_FOR_REQUESTS = frozenset(
    {
        *("retry", "retry_policy", "transport_options", "immediate", "timeout", "confirm_timeout"),
        *("use_confirms", "mandatory", "delivery_mode", "expiration", "content_encoding"),
        *("exchange", "routing_key", "correlation_id", "reply_to"),
    }
)
"""Options of Nameko's publisher that a request has no use for: it is always mandatory, transient, gone at its deadline, and sent
again where the connection was lost; `timeout` bounds kombu's writing to the socket. The last four Nameko sets itself."""


def _rpc_proxy(declared: Any) -> DependencyProvider:
    """What changes a request is taken over or refused; what only changes how kombu sends it means nothing here."""
    options = {k: v for k, v in declared.options.items() if k not in NEEDLESS_FOR_REQUESTS}
    headers = {**(options.pop("headers", None) or {}), **(options.pop("extra_headers", None) or {})}
    taken = {name: options.pop(name, None) for name in ("serializer", "priority", "compression")}
    if options:
        raise ConfigError(
            f'RpcProxy("{declared.target_service}", {next(iter(options))}=…): requests carry no such property here. '
            f"Leave it out, or send it as a header: headers={{…}}. Taken: headers, {', '.join(taken)}."
        )
    return RpcProxy(declared.target_service, headers=headers or None, **taken)


def _event_dispatcher(declared: Any) -> DependencyProvider:
    options = {
        name: value
        for name, value in declared.options.items()
        if name not in ("exchange", "routing_key")  # Nameko sets them itself
    }
    # A `queue=` is in `declare` by now (nameko/messaging.py:120).
    return EventDispatcher(list(declared.declare), **options)


def _publisher(declared: Any) -> DependencyProvider:
    # A `queue=` is in `declare` by now, and its exchange in `exchange` (nameko/messaging.py:111-130).
    options = dict(declared.options)
    return Publisher(
        declared.exchange,
        None,
        list(declared.declare),
        options.pop("routing_key", None),
        **options,
    )


class _Config(DependencyProvider):
    """A plain copy of the configuration for each worker, as Nameko gives it."""

    container: Container

    def get_dependency(self, worker_ctx: object) -> dict[str, Any]:
        return dict(self.container.config)


def _config(declared: Any) -> DependencyProvider:
    return _Config()


def _context_data(declared: Any) -> DependencyProvider:
    key = declared.context_key
    if not isinstance(key, str):
        raise ConfigError(
            f"{type(declared).__qualname__}: context_key={key!r}; give the class the name of an item of context data."
        )
    return ContextData(key)


_HUB_READS = frozenset(
    {
        *("setup", "start", "stop", "kill", "bind", "sharing_key", "hub", "server"),
        *("get_dependency", "worker_setup", "worker_result", "worker_teardown"),
        "cleanup_websocket",
    }
)
"""The hub's counterpart calls the hub itself, overridden or not."""

STOCK = {
    "nameko.rpc.Rpc": Stock(_rpc),
    "nameko.events.EventHandler": Stock(_event_handler, frozenset({"broadcast_identifier"})),
    "nameko.messaging.Consumer": Stock(_consumer),
    "nameko.timer.Timer": Stock(_timer),
    "nameko.rpc.RpcProxy": Stock(_rpc_proxy),
    "nameko.events.EventDispatcher": Stock(_event_dispatcher),
    "nameko.messaging.Publisher": Stock(_publisher),
    "nameko.dependency_providers.Config": Stock(_config),
    "nameko.contextdata.ContextDataProvider": Stock(_context_data, frozenset({"context_key"})),
    "nameko.web.websocket.WebSocketHubProvider": Stock(HubProvider, _HUB_READS),
}
