from __future__ import annotations

import contextlib
import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.wire import stock

from mycelia.errors import (
    MalformedRequest,
    RemoteError,
    UndecodableMessage,
    UnserializableValueError,
)
from mycelia.wire import (
    JSON,
    MSGPACK,
    REPLY_QUEUE_ARGUMENTS,
    RPC_EXCHANGE,
    Serializer,
    decode_reply,
    decode_request,
    encode_error,
    encode_request,
    encode_result,
    reply_queue_name,
    rpc_routing_key,
    serialize_exception,
    service_binding_key,
    service_queue_name,
)

both_formats = pytest.mark.parametrize("serializer", [JSON, MSGPACK], ids=lambda s: s.name)

text = st.text('abc_é漢🛩\x00"\\/ 0')
whole_numbers = st.integers(-(2**63), 2**63 - 1)
scalars = st.none() | st.booleans() | whole_numbers | text | st.floats(allow_nan=False)
plain = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)


# --- names ---------------------------------------------------------------------------------------


def test_names_are_those_of_stock_nameko() -> None:
    theirs = stock.nameko.rpc
    exchange = theirs.get_rpc_exchange({})

    assert (exchange.name, exchange.type) == (RPC_EXCHANGE, "topic")
    assert service_queue_name("planes") == theirs.RPC_QUEUE_TEMPLATE.format("planes")
    assert reply_queue_name("planes", "u") == theirs.RPC_REPLY_QUEUE_TEMPLATE.format("planes", "u")
    assert dict(REPLY_QUEUE_ARGUMENTS) == {"x-expires": theirs.RPC_REPLY_QUEUE_TTL}
    assert service_binding_key("planes") == "planes.*"
    assert rpc_routing_key("planes", "get") == "planes.get"


# --- requests ------------------------------------------------------------------------------------


@both_formats
@given(args=st.lists(plain, max_size=2), kwargs=st.dictionaries(text, plain, max_size=2))
def test_request_survives_the_way_also_from_and_to_stock_peers(
    serializer: Serializer, args: list[Any], kwargs: dict[str, Any]
) -> None:
    body = encode_request(args, kwargs, serializer)
    request = {"args": args, "kwargs": kwargs}

    assert decode_request(serializer.decode(body)) == (args, kwargs)
    assert stock.decode(body, serializer.content_type, serializer.content_encoding) == request
    from_stock = stock.encode(request, serializer.name)[2]
    assert decode_request(serializer.decode(from_stock)) == (args, kwargs)


def test_request_as_captured() -> None:
    assert encode_request((1, "é"), {"n": None}, JSON) == (
        '{"args":[1,"é"],"kwargs":{"n":null}}'.encode()
    )


def stock_answer(body: Any) -> Exception | None:
    """What a stock entrypoint raises for a request's decoded body."""

    class Accepted(Exception):
        pass

    def check_signature(args: Any, kwargs: Any) -> None:
        raise Accepted

    entrypoint = SimpleNamespace(check_signature=check_signature)
    try:
        stock.nameko.rpc.Rpc.handle_message(entrypoint, body, None)
    except Accepted:
        return None
    except Exception as exc:  # noqa: BLE001  # whatever it is
        return exc
    return None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "Message missing `args` and `kwargs`"),
        ({"args": []}, "Message missing `kwargs`"),
        ({"kwargs": {}}, "Message missing `args`"),
    ],
)
def test_request_that_stock_nameko_calls_malformed_is_malformed(
    body: dict[str, Any], message: str
) -> None:
    assert isinstance(stock_answer(body), stock.nameko.exceptions.MalformedRequest)

    with pytest.raises(MalformedRequest) as raised:
        decode_request(body)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (None, "a request must be a map with `args` and `kwargs`, got NoneType"),
        ([], "got list"),
        ("args", "got str"),
        (b"", "got bytes"),
        (3, "got int"),
    ],
)
def test_request_that_is_not_a_map_is_malformed(body: Any, message: str) -> None:
    """Where stock Nameko answers with a `TypeError` from inside itself."""
    assert isinstance(stock_answer(body), TypeError)

    with pytest.raises(MalformedRequest, match=message):
        decode_request(body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"args": None, "kwargs": {}}, "`args` must be a list, got NoneType"),
        ({"args": "ab", "kwargs": {}}, "`args` must be a list, got str"),
        ({"args": {}, "kwargs": {}}, "`args` must be a list, got dict"),
        ({"args": [], "kwargs": []}, "`kwargs` must be a map, got list"),
        ({"args": [], "kwargs": None}, "`kwargs` must be a map, got NoneType"),
        (
            {"args": [], "kwargs": {1: 2}},
            "`kwargs` must be a map with text keys, got a key of type int",
        ),
    ],
)
def test_request_with_arguments_of_a_wrong_shape_is_malformed(
    body: dict[str, Any], message: str
) -> None:
    with pytest.raises(MalformedRequest, match=message):
        decode_request(body)


@both_formats
def test_argument_that_cannot_be_carried_is_named(serializer: Serializer) -> None:
    with pytest.raises(
        UnserializableValueError, match=r"^\$\.kwargs\.on\[1\]: object of type object"
    ):
        encode_request([1], {"on": [2, object()]}, serializer)


# --- replies -------------------------------------------------------------------------------------


@both_formats
@given(value=plain)
def test_result_survives_the_way_and_is_read_by_a_stock_caller(
    serializer: Serializer, value: Any
) -> None:
    body = encode_result(value, serializer)

    assert decode_reply(serializer.decode(body)) == value
    assert stock.decode(body, serializer.content_type, serializer.content_encoding) == {
        "result": value,
        "error": None,
    }


@both_formats
@given(value=plain)
def test_result_of_a_stock_service_is_read(serializer: Serializer, value: Any) -> None:
    body = stock.encode({"result": value, "error": None}, serializer.name)[2]

    assert decode_reply(serializer.decode(body)) == value


def test_replies_as_captured() -> None:
    assert encode_result([1, None], JSON) == b'{"result":[1,null],"error":null}'
    error = serialize_exception(ValueError("no"), traceback=False)
    assert encode_error(error, JSON) == (
        b'{"result":null,"error":{"exc_type":"ValueError","exc_path":"builtins.ValueError",'
        b'"exc_args":["no"],"value":"no"}}'
    )


@both_formats
def test_result_with_nan_stays_nan(serializer: Serializer) -> None:
    result = decode_reply(serializer.decode(encode_result({"x": [None, math.nan]}, serializer)))

    assert result["x"][0] is None
    assert math.isnan(result["x"][1])


@both_formats
def test_stock_caller_understands_that_a_result_could_not_be_carried(
    serializer: Serializer,
) -> None:
    with pytest.raises(UnserializableValueError) as raised:
        encode_result([{"s": object()}], serializer)
    body = encode_error(serialize_exception(raised.value, traceback=False), serializer)

    reply = stock.decode(body, serializer.content_type, serializer.content_encoding)
    theirs = stock.nameko.exceptions.deserialize(reply["error"])

    assert reply["result"] is None
    assert isinstance(theirs, stock.nameko.exceptions.RemoteError)
    assert theirs.exc_type == "UnserializableValueError"
    assert theirs.value.startswith("$.result[0].s: object of type object cannot be carried by")
    with pytest.raises(UnserializableValueError, match=r"\$\.result\[0\]\.s"):
        decode_reply(serializer.decode(body))


@both_formats
def test_error_in_a_reply_is_raised(serializer: Serializer) -> None:
    error = serialize_exception(ValueError("no plane N1"), traceback=True)

    with pytest.raises(RemoteError, match=r"^ValueError no plane N1") as raised:
        decode_reply(serializer.decode(encode_error(error, serializer)))

    assert raised.value.exc_type == "ValueError"
    assert raised.value.remote_traceback == error["traceback"]


@pytest.mark.parametrize("reply", [None, [], "result", b"", 3, {}, {"error": None}])
def test_what_is_not_a_reply_is_undecodable(reply: Any) -> None:
    with pytest.raises(UndecodableMessage, match="a reply must be a map with `result`"):
        decode_reply(reply)


@given(reply=plain)
def test_garbage_gives_a_result_or_one_of_our_errors(reply: Any) -> None:
    with contextlib.suppress(UndecodableMessage, RemoteError):
        decode_reply(reply)
    with contextlib.suppress(MalformedRequest):
        decode_request(reply)
