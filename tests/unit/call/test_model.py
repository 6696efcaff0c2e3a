"""`Call`: identity, inherited context, time left."""

import time

import pytest

from mycelia.call import Call, CallKind, Outcome


def test_context_is_the_headers_without_prefix() -> None:
    call = Call(CallKind.RPC, "s", "m", headers={"nameko.user_id": 7, "x-death": []})

    assert call.context == {"user_id": 7}


def test_call_id_stack_ends_with_the_own_id_and_stays_the_same() -> None:
    call = Call(CallKind.RPC, "planes", "get", headers={"nameko.call_id_stack": ["a.b.1"]})

    assert call.call_id_stack == ["a.b.1", call.call_id]
    assert call.call_id.startswith("planes.get.")
    assert call.call_id_stack == call.call_id_stack


def test_call_id_stack_keeps_no_more_parents_than_configured() -> None:
    headers = {"nameko.call_id_stack": [f"a.b.{n}" for n in range(20)]}
    call = Call(CallKind.RPC, "s", "m", headers=headers, parent_calls_tracked=3)

    assert call.call_id_stack[:-1] == ["a.b.17", "a.b.18", "a.b.19"]


def test_outbound_headers_carry_what_middleware_put_into_the_context() -> None:
    call = Call(CallKind.RPC, "s", "m", headers={"nameko.language": "en"})
    call.context["user_id"] = 7

    assert call.outbound_headers() == {"nameko.language": "en", "nameko.user_id": 7}


def test_remaining_time_is_none_without_a_deadline_and_negative_after_it() -> None:
    assert Call(CallKind.TIMER, "s", "m").remaining() is None
    late = Call(CallKind.RPC, "s", "m", deadline=time.monotonic() - 1.0).remaining()
    assert late is not None
    assert late < 0


def test_unwrap_raises_the_error_of_an_outcome() -> None:
    with pytest.raises(KeyError):
        Outcome(error=KeyError("x")).unwrap()
