"""Packages that replace methods of Nameko's own classes at run time, tracing packages above all.

What stands in such a class's place here would pass the replacement over. So a declaration whose class has been patched by
the time the service is bound runs on Nameko's own code; who patches later is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FunctionType
from typing import Any

__all__ = ["is_patched", "patches"]

FAMILIES: dict[str, tuple[str, ...]] = {
    "nameko.rpc.RpcProxy": (
        "nameko.rpc.RpcProxy",
        "nameko.rpc.ServiceProxy",
        "nameko.rpc.MethodProxy",
        "nameko.rpc.RpcReply",
        "nameko.rpc.ReplyListener",
        "nameko.amqp.publish.Publisher",
    ),
    "nameko.events.EventDispatcher": (
        "nameko.events.EventDispatcher",
        "nameko.messaging.Publisher",
        "nameko.messaging.HeaderEncoder",
        "nameko.amqp.publish.Publisher",
    ),
    "nameko.messaging.Publisher": (
        "nameko.messaging.Publisher",
        "nameko.messaging.HeaderEncoder",
        "nameko.amqp.publish.Publisher",
    ),
    "nameko.rpc.Rpc": (
        "nameko.rpc.Rpc",
        "nameko.rpc.RpcConsumer",
        "nameko.rpc.Responder",
        "nameko.messaging.HeaderDecoder",
    ),
    "nameko.events.EventHandler": (
        "nameko.events.EventHandler",
        "nameko.messaging.Consumer",
        "nameko.messaging.HeaderDecoder",
    ),
    "nameko.messaging.Consumer": (
        "nameko.messaging.Consumer",
        "nameko.messaging.HeaderDecoder",
    ),
    "nameko.timer.Timer": ("nameko.timer.Timer",),
    "nameko.containers.ServiceContainer": (
        "nameko.containers.ServiceContainer",
        "nameko.containers.WorkerContext",
    ),
}
"""For each stock class with a counterpart: the classes that do its work, and that do none where the counterpart does."""


def is_patched(stock: str) -> bool:
    """Whether a method of the classes behind a stock one, given by its dotted name, is somebody else's."""
    return any(True for name in FAMILIES.get(stock, ()) for _ in _foreign_methods(name))


def patches() -> frozenset[str]:
    """All methods of Nameko's classes that are somebody else's, as `nameko.rpc.MethodProxy._call`."""
    names = {name for family in FAMILIES.values() for name in family}
    return frozenset(
        f"{name}.{method}" for name in sorted(names) for method in _foreign_methods(name)
    )


def _foreign_methods(name: str) -> Iterator[str]:
    module_name, _, cls_name = name.rpartition(".")
    module = sys.modules.get(module_name)
    cls = getattr(module, cls_name, None)
    if module is None or not isinstance(cls, type):
        return
    for method, value in vars(cls).items():
        if _is_foreign(value, vars(module)):
            yield method


def _is_foreign(value: Any, module_globals: dict[str, Any]) -> bool:
    if isinstance(value, FunctionType):
        return (
            value.__globals__ is not module_globals
        )  # wherever it has been put, this is where it was written
    return callable(value) and hasattr(value, "__wrapped__")  # wrapt's kind of wrapper
