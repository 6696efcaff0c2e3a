"""What foreign extensions hold: each sub-extension gets its life cycle, once a container, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mycelia.errors import ConfigError
from mycelia.nameko.bridge import BridgedExtension
from mycelia.nameko.face import ContainerFace
from mycelia.nameko.recognise import class_names, dotted_name
from mycelia.nameko.web import NamekoWebSite
from mycelia.runtime import Extension

__all__ = ["adopt_sub_extensions"]

COUNTERPARTS: dict[str, Callable[[Any], Extension]] = {
    "nameko.web.server.WebServer": NamekoWebSite,
}
"""Counterparts of stock extensions that others share, by the stock class, and called with the bound one."""

NEED_EVENTLET = {
    "nameko.messaging.QueueConsumer",
    "nameko.rpc.ReplyListener",
    "nameko.rpc.RpcConsumer",
}
"""Stock extensions whose kombu channels are used by many greenthreads, and may not be by many threads."""


def adopt_sub_extensions(foreign: Any, face: ContainerFace) -> list[Any]:
    """Give each extension that `foreign` holds a counterpart in the container; return the counterparts.

    Raises:
        ConfigError: one of them only works under eventlet.
    """
    from nameko.extensions import iter_extensions

    adopted: list[Any] = []
    for held in iter_extensions(foreign):
        counterpart = face.counterparts.get(id(held))
        if counterpart is None:
            _refuse_what_needs_eventlet(held, foreign, face)
            counterpart = face.counterparts[id(held)] = _counterpart_of(held).bind(face.native)
            face.introduce(counterpart, held)
        adopted.append(counterpart)
    return adopted


def _counterpart_of(held: Any) -> Extension:
    makers = [COUNTERPARTS[name] for name in class_names(held) if name in COUNTERPARTS]
    return makers[0](held) if makers else BridgedExtension(held)


def _refuse_what_needs_eventlet(held: Any, foreign: Any, face: ContainerFace) -> None:
    refused = NEED_EVENTLET.intersection(class_names(held))
    if refused:
        raise ConfigError(
            f"{dotted_name(type(foreign))} of service {face.service_name} builds on {refused.pop()}, whose AMQP "
            "connection only works under eventlet. Derive it from Mycelia's own extension of the same kind, or run "
            "this service on stock Nameko beside the others."
        )
