"""What leaves in a call's headers: those it was made with, and the context as middleware has left it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mycelia import Call, CallKind, Direction, Target


def leaving(headers: dict[str, Any]) -> Call:
    return Call(Target(Direction.OUTBOUND, CallKind.RPC, "back", "add"), headers=headers)


HEADERS = {"nameko.user_id": 7, "traceparent": "00-1", "shard": 3}


def test_untouched_headers_leave_as_they_are() -> None:
    call = leaving(HEADERS)

    assert call.context == {"user_id": 7, "traceparent": "00-1", "shard": 3}
    assert call.outbound_headers() == HEADERS


@pytest.mark.parametrize(
    ("change", "leaves"),
    [
        (lambda c: c.update(user_id=8), {**HEADERS, "nameko.user_id": 8}),
        (lambda c: c.update(traceparent="00-2"), {**HEADERS, "traceparent": "00-2"}),
        (lambda c: c.update(shard=4), {**HEADERS, "shard": 4}),
        (lambda c: c.update(tenant="blue"), {**HEADERS, "nameko.tenant": "blue"}),
        (lambda c: c.pop("user_id"), {"traceparent": "00-1", "shard": 3}),
        (lambda c: c.update(shard=None), {"nameko.user_id": 7, "traceparent": "00-1"}),
        (lambda c: c.clear(), {}),
    ],
)
def test_changed_context_is_what_leaves(
    change: Callable[[dict[str, Any]], object], leaves: dict[str, Any]
) -> None:
    call = leaving(HEADERS)

    change(call.context)

    assert call.outbound_headers() == leaves
    assert call.outbound_headers() == leaves  # a second request, of a retry, is like the first


@pytest.mark.parametrize("in_place", [True, False])
def test_header_that_middleware_sets_leaves(in_place: bool) -> None:
    headers = dict(HEADERS)
    call = leaving(headers)
    assert call.context["shard"] == 3

    if in_place:
        headers["region"] = "north"
    else:
        call.headers = {**HEADERS, "region": "north"}

    assert call.outbound_headers() == {**HEADERS, "region": "north"}
