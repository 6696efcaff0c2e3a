"""RPC: names, requests and replies (nameko/rpc.py).

    request   exchange nameko-rpc, key {service}.{method}, mandatory; reply_to and correlation_id set
              {"args": [...], "kwargs": {...}}
    reply     exchange nameko-rpc, key <the request's reply_to>; correlation_id echoed
              {"result": <any>, "error": null}
              {"result": null, "error": {"exc_type", "exc_path", "exc_args", "value", "traceback"?}}

`reply_to` is a routing key on the RPC exchange, not a queue's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from mycelia.errors import MalformedRequest, UndecodableMessage, UnserializableValueError
from mycelia.wire.json_codec import encode_json
from mycelia.wire.remote_errors import deserialize_exception
from mycelia.wire.serializers import Serializer

__all__ = [
    "REPLY_QUEUE_ARGUMENTS",
    "RPC_EXCHANGE",
    "decode_reply",
    "decode_request",
    "encode_error",
    "encode_request",
    "encode_result",
    "reply_queue_name",
    "rpc_routing_key",
    "service_binding_key",
    "service_queue_name",
]

RPC_EXCHANGE: Final = "nameko-rpc"
"""The default; Nameko's configuration key `rpc_exchange` names another."""

REPLY_QUEUE_ARGUMENTS: Final[Mapping[str, Any]] = MappingProxyType({"x-expires": 300_000})
"""A reply queue outlives its consumer by five minutes (nameko/rpc.py:33, milliseconds)."""


def service_queue_name(service: str) -> str:
    """The queue that all instances of a service take requests from: durable, no arguments."""
    return f"rpc-{service}"


def service_binding_key(service: str) -> str:
    """What binds a service's queue to the RPC exchange."""
    return f"{service}.*"


def rpc_routing_key(service: str, method: str) -> str:
    """Where a request for a method is sent on the RPC exchange."""
    return f"{service}.{method}"


def reply_queue_name(service: str, uuid: str) -> str:
    """The queue for a caller's replies; bound with the bare `uuid`, which is the requests' `reply_to`."""
    return f"rpc.reply-{service}-{uuid}"


# --- requests ------------------------------------------------------------------------------------


def encode_request(args: Sequence[Any], kwargs: Mapping[str, Any], serializer: Serializer) -> bytes:
    """The body of a request.

    Raises:
        UnserializableValueError: naming the argument, as `$.args[0]` or `$.kwargs.name`.
    """
    return serializer.encode({"args": args, "kwargs": kwargs})


def decode_request(value: Any) -> tuple[list[Any], dict[str, Any]]:
    """The arguments in a request's decoded body.

    Raises:
        MalformedRequest: no `args` or no `kwargs`, as in Nameko; or they are not a list and a map, where Nameko
            fails with a `TypeError`.
    """
    try:
        args = value["args"]
        kwargs = value["kwargs"]
    except (KeyError, TypeError, IndexError) as exc:
        raise _malformed(value) from exc
    if type(args) is not list:
        if not isinstance(args, tuple):
            raise MalformedRequest(f"`args` must be a list, got {type(args).__name__}")
        args = list(args)
    if not isinstance(kwargs, dict):
        raise MalformedRequest(f"`kwargs` must be a map, got {type(kwargs).__name__}")
    for key in kwargs:
        if type(key) is not str:
            kind = type(key).__name__
            raise MalformedRequest(
                f"`kwargs` must be a map with text keys, got a key of type {kind}"
            )
    return args, kwargs


def _malformed(value: Any) -> MalformedRequest:
    if not isinstance(value, dict):
        return MalformedRequest(
            f"a request must be a map with `args` and `kwargs`, got {type(value).__name__}"
        )
    missing = " and ".join(f"`{key}`" for key in ("args", "kwargs") if key not in value)
    return MalformedRequest(f"Message missing {missing}")


# --- replies -------------------------------------------------------------------------------------


def encode_result(value: Any, serializer: Serializer) -> bytes:
    """The body of a reply with a result.

    Raises:
        UnserializableValueError: naming the part, as `$.result[0]`.
    """
    if serializer.encode is encode_json:
        # The envelope as text, so that its `null` does not count as one in the value (`encode_json`).
        try:
            return b'{"result":' + encode_json(value) + b',"error":null}'
        except UnserializableValueError:
            pass  # encode it as a whole: the error then names the path from the top
    return serializer.encode({"result": value, "error": None})


def encode_error(error: Mapping[str, Any], serializer: Serializer) -> bytes:
    """The body of a reply with an error, from `serialize_exception()`."""
    return serializer.encode({"result": None, "error": error})


def decode_reply(value: Any) -> Any:
    """The result in a reply's decoded body.

    Raises:
        Exception: the error in the reply: its own class where registered, else `RemoteError`.
        UndecodableMessage: it is not a reply.
    """
    try:
        error = value.get("error")
        if not error:
            return value["result"]
    except (KeyError, AttributeError) as exc:
        raise UndecodableMessage(
            f"a reply must be a map with `result` and `error`, got {type(value).__name__}. "
            "Is something other than the service publishing to the reply queue?"
        ) from exc
    raise deserialize_exception(error)
