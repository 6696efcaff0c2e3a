"""Stock Nameko and kombu, as the peer to compare with."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import kombu.compression
import kombu.serialization

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # eventlet announces its own end
    import nameko.containers
    import nameko.events
    import nameko.exceptions
    import nameko.messaging
    import nameko.rpc
    import nameko.serialization
    import nameko.standalone.events
    import nameko.utils

__all__ = [
    "call_id_stack",
    "compress",
    "decode",
    "decode_headers",
    "dumps",
    "encode",
    "encode_headers",
    "event_queue",
    "hop",
    "loads",
    "nameko",
    "prepare_accept_content",
    "redacted",
]

# Untyped, hence `Any`.
dumps: Any = kombu.serialization.dumps
loads: Any = kombu.serialization.loads
prepare_accept_content: Any = kombu.serialization.prepare_accept_content
compress: Any = kombu.compression.compress


def encode(value: Any, serializer: str = "json") -> tuple[str, str, bytes]:
    """Content type, content encoding and body, as a stock publisher makes them."""
    content_type, content_encoding, body = dumps(value, serializer)
    if isinstance(body, str):
        body = body.encode(content_encoding)
    return content_type, content_encoding, body


def decode(body: bytes, content_type: str, content_encoding: str) -> Any:
    """A body as a stock consumer that accepts its type decodes it."""
    return loads(body, content_type, content_encoding, accept=[content_type])


def decode_headers(headers: dict[str, Any]) -> dict[str, Any]:
    """Context data as a stock entrypoint takes it from headers."""
    message = SimpleNamespace(headers=headers)
    return dict(nameko.messaging.HeaderDecoder().unpack_message_headers(message))


def encode_headers(context: dict[str, Any]) -> dict[str, Any]:
    """Headers as a stock proxy makes them from context data."""
    worker_ctx = SimpleNamespace(context_data=context)
    return dict(nameko.messaging.HeaderEncoder().get_message_headers(worker_ctx))


def hop(headers: dict[str, Any]) -> dict[str, Any]:
    """What a stock service sends on when it is called with these headers."""
    return encode_headers(decode_headers(headers))


def call_id_stack(parents: list[str], parent_calls_tracked: int | None = None) -> list[str]:
    """The stack of a stock worker of `svc.method` called with these parents; its own id last."""
    config = {} if parent_calls_tracked is None else {"parent_calls_tracked": parent_calls_tracked}
    container = SimpleNamespace(config=config, service_name="svc")
    worker_ctx = nameko.containers.WorkerContext(
        container,
        service=object(),
        entrypoint=SimpleNamespace(method_name="method"),
        data={"call_id_stack": list(parents)},
    )
    return list(worker_ctx.call_id_stack)


def event_queue(
    handler_type: str, *, reliable_delivery: bool, broadcast_identifier: str = "node1"
) -> Any:
    """The kombu queue of a stock handler `svc.method` of `source`'s event `type`."""

    class Handler(nameko.events.EventHandler):  # type: ignore[misc]
        queue_consumer = SimpleNamespace(register_provider=lambda provider: None)

    Handler.broadcast_identifier = broadcast_identifier
    handler = Handler(
        "source", "type", handler_type=handler_type, reliable_delivery=reliable_delivery
    )
    handler.container = SimpleNamespace(service_name="svc", config={})
    handler.method_name = "method"
    handler.setup()
    return handler.queue


REDACTED: str = nameko.utils.REDACTED


def redacted(values: dict[str, Any], sensitive_arguments: tuple[str, ...]) -> dict[str, Any]:
    """The arguments `a`, `b` and `c` of a stock entrypoint as Nameko would have them logged."""

    class Service:
        def method(self, a: Any = None, b: Any = None, c: Any = None) -> None: ...

    entrypoint = SimpleNamespace(
        sensitive_arguments=sensitive_arguments,
        container=SimpleNamespace(service_cls=Service),
        method_name="method",
    )
    return dict(nameko.utils.get_redacted_args(entrypoint, **values))
