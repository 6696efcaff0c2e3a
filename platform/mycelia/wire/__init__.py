"""What travels: Nameko's wire protocol as pure functions and data. No socket, no clock, no AMQP type.

serializers    values ⇄ bodies, by content type; what a service accepts
  json_codec, msgpack_codec, tagged, unserializable
  bounds, compression, encodings                      what a body may make of itself
context        context data ⇄ headers
baggage        W3C baggage ⇄ a map
reply_context  context data that travels back
call_ids       call ids and the stack of them
rpc            names, requests, replies
remote_errors  errors ⇄ the error in a reply
events         names of exchanges and queues
"""

from mycelia.wire.baggage import (
    BAGGAGE,
    MAX_BAGGAGE_LENGTH,
    MAX_BAGGAGE_MEMBERS,
    format_baggage,
    is_baggage,
    parse_baggage,
)
from mycelia.wire.bounds import OFF_LOOP_BYTES
from mycelia.wire.call_ids import (
    DEFAULT_PARENT_CALLS_TRACKED,
    call_id,
    extend_call_stack,
    new_uuid,
)
from mycelia.wire.compression import COMPRESSION_HEADER, compressor_of
from mycelia.wire.context import (
    ATTEMPT_HEADER,
    AUTH_TOKEN,
    CALL_ID_STACK,
    DEADLINE_HEADER,
    HEADER_PREFIX,
    LANGUAGE,
    MAX_ATTEMPT,
    MAX_CONTEXT_ITEMS,
    PUBLISHED_HEADER,
    RETURNS_HEADER,
    TRACEPARENT,
    TRACESTATE,
    USER_AGENT,
    USER_ID,
    carried_item,
    decode_context,
    encode_context,
    read_attempt,
    read_deadline_ms,
    read_published_ms,
    read_returns,
    trace_id_of,
)
from mycelia.wire.events import (
    BROADCAST,
    SERVICE_POOL,
    SINGLETON,
    event_exchange_name,
    handler_queue_name,
)
from mycelia.wire.remote_errors import (
    MAX_TRACEBACK_BYTES,
    deserialize_exception,
    nameko_twin,
    register_remote_error,
    serialize_exception,
)
from mycelia.wire.reply_context import (
    MAX_REPLY_CONTEXT_BYTES,
    MAX_REPLY_CONTEXT_ITEMS,
    REPLY_CONTEXT_PREFIX,
    decode_reply_context,
    encode_reply_context,
)
from mycelia.wire.rpc import (
    REPLY_QUEUE_ARGUMENTS,
    RPC_EXCHANGE,
    decode_reply,
    decode_request,
    encode_error,
    encode_request,
    encode_result,
    reply_queue_name,
    rpc_routing_key,
    service_binding_key,
    service_queue_name,
)
from mycelia.wire.serializers import (
    DEFAULT_MAX_BODY_BYTES,
    JSON,
    MSGPACK,
    Serializer,
    SerializerRegistry,
    compressed,
    raw_body,
)

__all__ = [
    "ATTEMPT_HEADER",
    "AUTH_TOKEN",
    "BAGGAGE",
    "BROADCAST",
    "CALL_ID_STACK",
    "COMPRESSION_HEADER",
    "DEADLINE_HEADER",
    "DEFAULT_MAX_BODY_BYTES",
    "DEFAULT_PARENT_CALLS_TRACKED",
    "HEADER_PREFIX",
    "JSON",
    "LANGUAGE",
    "MAX_ATTEMPT",
    "MAX_BAGGAGE_LENGTH",
    "MAX_BAGGAGE_MEMBERS",
    "MAX_CONTEXT_ITEMS",
    "MAX_REPLY_CONTEXT_BYTES",
    "MAX_REPLY_CONTEXT_ITEMS",
    "MAX_TRACEBACK_BYTES",
    "MSGPACK",
    "OFF_LOOP_BYTES",
    "PUBLISHED_HEADER",
    "REPLY_CONTEXT_PREFIX",
    "REPLY_QUEUE_ARGUMENTS",
    "RETURNS_HEADER",
    "RPC_EXCHANGE",
    "SERVICE_POOL",
    "SINGLETON",
    "TRACEPARENT",
    "TRACESTATE",
    "USER_AGENT",
    "USER_ID",
    "Serializer",
    "SerializerRegistry",
    "call_id",
    "carried_item",
    "compressed",
    "compressor_of",
    "decode_context",
    "decode_reply",
    "decode_reply_context",
    "decode_request",
    "deserialize_exception",
    "encode_context",
    "encode_error",
    "encode_reply_context",
    "encode_request",
    "encode_result",
    "event_exchange_name",
    "extend_call_stack",
    "format_baggage",
    "handler_queue_name",
    "is_baggage",
    "nameko_twin",
    "new_uuid",
    "parse_baggage",
    "raw_body",
    "read_attempt",
    "read_deadline_ms",
    "read_published_ms",
    "read_returns",
    "register_remote_error",
    "reply_queue_name",
    "rpc_routing_key",
    "serialize_exception",
    "service_binding_key",
    "service_queue_name",
    "trace_id_of",
]
