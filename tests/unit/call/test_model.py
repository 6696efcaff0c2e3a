"""`Call`: identity, inherited context, time left."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.amqp import Delivery, Properties
from mycelia.call import Call, CallKind, Direction, Outcome, Requeue, Target
from mycelia.wire import HEADER_PREFIX, OFF_LOOP_BYTES


class NoSettler:
    is_lost = False

    def ack(self, delivery_tag: int) -> None: ...

    def nack(self, delivery_tag: int, requeue: bool) -> None: ...


def target(service: str, method: str, kind: CallKind = CallKind.RPC) -> Target:
    return Target(Direction.INBOUND, kind, service, method)


def test_context_is_the_headers_without_prefix() -> None:
    call = Call(target("s", "m"), headers={"nameko.user_id": 7, "x-death": []})

    assert call.context == {"user_id": 7}


def test_call_id_stack_ends_with_the_own_id_and_stays_the_same() -> None:
    call = Call(target("planes", "get"), headers={"nameko.call_id_stack": ["a.b.1"]})

    assert call.call_id_stack == ["a.b.1", call.call_id]
    assert call.call_id.startswith("planes.get.")
    assert call.call_id_stack == call.call_id_stack


def test_call_id_stack_keeps_no_more_parents_than_configured() -> None:
    headers = {"nameko.call_id_stack": [f"a.b.{n}" for n in range(20)]}
    call = Call(target("s", "m"), headers=headers, parent_calls_tracked=3)

    assert call.call_id_stack[:-1] == ["a.b.17", "a.b.18", "a.b.19"]


def test_outbound_headers_carry_what_middleware_put_into_the_context() -> None:
    call = Call(target("s", "m"), headers={"nameko.language": "en"})
    call.context["user_id"] = 7

    assert call.outbound_headers() == {"nameko.language": "en", "nameko.user_id": 7}


def test_remaining_time_is_none_without_a_deadline_and_negative_after_it() -> None:
    assert Call(target("s", "m", CallKind.TIMER)).remaining() is None
    late = Call(target("s", "m"), deadline=time.monotonic() - 1.0).remaining()
    assert late is not None
    assert late < 0


def test_unwrap_raises_the_error_of_an_outcome() -> None:
    with pytest.raises(KeyError):
        Outcome(error=KeyError("x")).unwrap()


def test_an_outcome_cannot_be_changed_in_place() -> None:
    with pytest.raises(AttributeError):
        Outcome("password").value = "***"  # type: ignore[misc]


def test_a_replaced_value_takes_the_encoded_body_with_it() -> None:
    outcome = Outcome("password", body=b'"password"')

    assert outcome.replace(value="***") == Outcome("***")
    assert outcome.replace(settlement=Requeue()).body == b'"password"'
    error = ValueError("no")
    assert outcome.replace(error=error) == Outcome(error=error)
    assert outcome.replace(error=error).replace(value=1) == Outcome(1)


def test_arguments_are_decoded_when_first_asked_for_and_once() -> None:
    reads = []

    def decode(call: Call) -> tuple[list[int], dict[str, int]]:
        reads.append(call)
        return [1], {"b": 2}

    call = Call(target("s", "m"), read=decode)
    assert call.arguments is None
    assert (call.args, call.kwargs, call.args) == ([1], {"b": 2}, [1])
    assert reads == [call]
    assert call.arguments == ([1], {"b": 2})


def test_arguments_given_before_they_are_decoded_stay() -> None:
    call = Call(target("s", "m"), read=lambda _: ([1], {}))
    call.kwargs = {"c": 3}

    assert (call.args, call.kwargs) == ([1], {"c": 3})


def call_with(body: bytes, headers: dict[str, Any] | None) -> Call:
    delivery = Delivery(NoSettler(), "c", 1, False, "", "q", Properties(headers=headers), body)
    return Call(target("s", "m"), headers=headers, message=delivery, read=lambda _: ([], {}))


def test_long_bodies_and_compressed_ones_are_not_read_where_that_would_hold_others() -> None:
    assert call_with(bytes(OFF_LOOP_BYTES), None).decode_if_small() == ([], {})
    assert call_with(b"[]", {"nameko.language": "de"}).decode_if_small() == ([], {})
    assert call_with(bytes(OFF_LOOP_BYTES + 1), None).decode_if_small() is None
    assert call_with(b"[]", {"compression": "application/x-gzip"}).decode_if_small() is None
    assert Call(target("s", "m")).decode_if_small() == ((), {})


def test_what_has_been_read_is_given_however_long_it_was() -> None:
    call = call_with(bytes(OFF_LOOP_BYTES + 1), None)
    assert call.decode() is call.decode_if_small()


_NAMES = ["traceparent", "tracestate", "call_id_stack", "user_id", "x-own"]


@given(
    st.dictionaries(
        st.sampled_from([prefix + name for name in _NAMES for prefix in ("", HEADER_PREFIX)]),
        st.sampled_from([None, "", "00-a", ["one"], 0]),
    )
    | st.none()
)
def test_what_is_carried_is_what_the_context_has_read_without_decoding_it(
    headers: dict[str, object] | None,
) -> None:
    call = Call(Target(Direction.INBOUND, CallKind.EVENT, "service", "method"), headers=headers)

    carried = {name: call.carried(name) for name in _NAMES}

    assert call.given_context is None
    assert carried == {name: call.context.get(name) for name in _NAMES}
    assert carried == {name: call.carried(name) for name in _NAMES}, "and when it is decoded"
