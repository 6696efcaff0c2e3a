"""What foreign extensions hold: each sub-extension gets its life cycle, once a container, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from inspect import getattr_static
from typing import Any

from mycelia.errors import ConfigError
from mycelia.nameko.bridge import BridgedExtension
from mycelia.nameko.face import ContainerFace
from mycelia.nameko.queue_consumer import QueueConsumerCounterpart
from mycelia.nameko.recognise import class_names, dotted_name
from mycelia.nameko.reply_listener import ReplyListenerCounterpart
from mycelia.nameko.web import NamekoWebSite
from mycelia.runtime import Extension

__all__ = ["adopt_sub_extensions"]

COUNTERPARTS: dict[str, Callable[[Any], Extension]] = {
    "nameko.web.server.WebServer": NamekoWebSite,
    "nameko.messaging.QueueConsumer": QueueConsumerCounterpart,
    "nameko.rpc.ReplyListener": ReplyListenerCounterpart,
}
"""Counterparts of stock extensions that others share, by the stock class, and called with the bound one."""


def adopt_sub_extensions(foreign: Any, face: ContainerFace) -> list[Any]:
    """Give each extension that `foreign` holds a counterpart in the container; return the counterparts.

    Raises:
        ConfigError: one of them overrides what would not be asked for here.
    """
    from nameko.extensions import iter_extensions

    adopted: list[Any] = []
    for held in iter_extensions(foreign):
        counterpart = face.counterparts.get(id(held))
        if counterpart is None:
            _refuse_what_has_no_socket(held, face)
            counterpart = face.counterparts[id(held)] = _counterpart_of(held).bind(face.native)
            face.introduce(counterpart, held)
        adopted.append(counterpart)
    return adopted


def _counterpart_of(held: Any) -> Extension:
    makers = [COUNTERPARTS[name] for name in class_names(held) if name in COUNTERPARTS]
    return makers[0](held) if makers else BridgedExtension(held)


SERVED_HERE = frozenset(
    {
        *("setup", "start", "stop", "kill"),
        *("run", "process_request", "bind_addr", "get_wsgi_server"),
    }
)
"""What of Nameko's `WebServer` nobody calls: sockets and their server are Mycelia's."""


def _refuse_what_has_no_socket(held: Any, face: ContainerFace) -> None:
    stock = next(
        (cls for cls in type(held).__mro__ if dotted_name(cls) == "nameko.web.server.WebServer"),
        None,
    )
    overridden = [
        name
        for name in SERVED_HERE
        if stock is not None and getattr_static(type(held), name) is not getattr_static(stock, name)
    ]
    if overridden:
        raise ConfigError(
            f"{dotted_name(type(held))} of service {face.service_name} overrides {', '.join(sorted(overridden))} of "
            "Nameko's WebServer, which is not asked for here: requests come in at Mycelia's own server. Wrap the "
            "application in get_wsgi_app() instead, or run this service on stock Nameko beside the others."
        )
