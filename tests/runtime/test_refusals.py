"""Calls whose method does not run: each is an outcome that middleware sees, answered or dead-lettered, 200 at once."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from tests.runtime import held_json
from tests.runtime.conftest import Serve
from tests.runtime.dead_letter_box import read_dead_letters

from mycelia import Binding, Call, Exchange, Middleware, Next, Outcome, Queue, consume, rpc
from mycelia.amqp import ConsumeOptions, Delivery, Link, Message, Properties
from mycelia.testing import eventually

COUNT = 200


class Service:
    name = "service"
    runs: list[int] = []  # noqa: RUF012  shared on purpose

    @rpc
    def in_thread(self, number: int) -> int:
        self.runs.append(number)
        return number

    @rpc
    async def on_loop(self, number: int) -> int:
        self.runs.append(number)
        return number

    @consume("jobs-thread")
    def job_in_thread(self, number: int) -> None:
        self.runs.append(number)

    @consume("jobs-loop")
    async def job_on_loop(self, number: int) -> None:
        self.runs.append(number)


@pytest.fixture(autouse=True)
def _no_runs() -> None:
    Service.runs.clear()


class Witness:
    """A middleware that notes what passes."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[Call, Outcome]] = []

    async def __call__(self, call: Call, next: Next) -> Outcome:
        outcome = await next(call)
        self.outcomes.append((call, outcome))
        return outcome


JSON = "application/json"
ARGUMENTS = {"args": [1], "kwargs": {}}

REFUSED_REQUESTS: dict[str, tuple[str, bytes, dict[str, Any], str | None]] = {
    # case: (method, body, headers, the error that the caller gets)
    "undecodable": ("*", b"{", {}, "MalformedRequest"),
    "unknown method": ("unknown", json.dumps(ARGUMENTS).encode(), {}, "MethodNotFound"),
    "wrong arguments": ("*", b'{"args": [], "kwargs": {}}', {}, "IncorrectSignature"),
    "expired": ("*", json.dumps(ARGUMENTS).encode(), {"nameko.deadline_ms": 1}, None),
    "too many deliveries": (
        "*",
        json.dumps(ARGUMENTS).encode(),
        {"x-mycelia-returns": 2},
        "TooManyDeliveries",
    ),
}


@pytest.mark.parametrize("has_middleware", [False, True], ids=["bare", "middleware"])
@pytest.mark.parametrize("method", ["in_thread", "on_loop"])
@pytest.mark.parametrize("case", REFUSED_REQUESTS)
async def test_refused_request_is_seen_and_answered(
    serve: Serve, link: Link, case: str, method: str, has_middleware: bool
) -> None:
    witness = Witness()
    middleware: tuple[Middleware, ...] = (witness,) if has_middleware else ()
    runner = await serve(Service, inbound=middleware)
    replies: list[Delivery] = []
    await link.declare(Exchange("nameko-rpc"), Queue("answers"))
    await link.declare(Binding("answers", "nameko-rpc", "answers"))
    await link.consume("answers", replies.extend, ConsumeOptions(no_ack=True))
    name, body, headers, expected = REFUSED_REQUESTS[case]
    key = f"service.{method if name == '*' else name}"

    for number in range(COUNT):
        properties = Properties(
            JSON, "utf-8", headers, reply_to="answers", correlation_id=str(number)
        )
        link.publish_nowait(Message("nameko-rpc", key, body, properties))

    lanes = runner.containers[0].lanes
    await eventually(lambda: sum(lane.statistics().refused for lane in lanes) == COUNT)
    if expected is None:
        assert replies == []
    else:
        await eventually(lambda: len(replies) == COUNT)
        errors = Counter(json.loads(reply.body)["error"]["exc_type"] for reply in replies)
        assert errors == Counter({expected: COUNT})
        assert len({reply.properties.correlation_id for reply in replies}) == COUNT
    assert Service.runs == []
    assert await link.message_count("rpc-service") == 0
    if has_middleware:
        assert len(witness.outcomes) == COUNT
        assert all(outcome.is_refused for _, outcome in witness.outcomes)
        assert all(
            type(outcome.error).__name__ == (expected or "DeadlinePassed")
            for _, outcome in witness.outcomes
        )
        assert {call.method for call, _ in witness.outcomes} == {key.partition(".")[2]}


REFUSED_MESSAGES: dict[str, tuple[bytes, dict[str, Any], str, str]] = {
    "undecodable": (b"{", {}, "undecodable", "UndecodableMessage"),
    "too many deliveries": (
        b"1",
        {"x-mycelia-returns": 20},
        "too_many_attempts",
        "TooManyDeliveries",
    ),
}


@pytest.mark.parametrize("has_middleware", [False, True], ids=["bare", "middleware"])
@pytest.mark.parametrize("queue", ["jobs-thread", "jobs-loop"])
@pytest.mark.parametrize("case", REFUSED_MESSAGES)
async def test_refused_message_is_seen_and_dead_lettered(
    serve: Serve, link: Link, case: str, queue: str, has_middleware: bool
) -> None:
    witness = Witness()
    middleware: tuple[Middleware, ...] = (witness,) if has_middleware else ()
    await serve(Service, inbound=middleware)
    body, headers, reason, error = REFUSED_MESSAGES[case]

    for number in range(COUNT):
        properties = Properties(JSON, "utf-8", headers, message_id=str(number))
        link.publish_nowait(Message("", queue, body, properties))

    dead = await read_dead_letters(link, queue, COUNT)
    told = [letter.properties.headers or {} for letter in dead]
    assert {one["x-mycelia-reason"] for one in told} == {reason}
    assert {one["x-mycelia-error-type"] for one in told} == {error}
    assert len({letter.properties.message_id for letter in dead}) == COUNT
    assert Service.runs == []
    if has_middleware:
        assert len(witness.outcomes) == COUNT
        assert all(outcome.is_refused for _, outcome in witness.outcomes)


# --- large bodies ---------------------------------------------------------------------------------------


HELD = {
    "content_type": "application/x-held-json",
    "content_encoding": "utf-8",
    "encoder": f"{held_json.__name__}.encode",
    "decoder": f"{held_json.__name__}.decode",
}


@pytest.mark.parametrize("method", ["in_thread", "on_loop"])
@pytest.mark.parametrize("kind", ["rpc", "message"])
async def test_loop_goes_on_while_a_large_body_is_decoded(
    serve: Serve, link: Link, kind: str, method: str
) -> None:
    held_json.entered.clear()
    held_json.go_on.clear()

    class Large:
        name = "large"
        sizes: list[int] = []  # noqa: RUF012  shared on purpose

        @rpc
        def in_thread(self, text: str) -> None:
            self.sizes.append(len(text))

        @rpc
        async def on_loop(self, text: str) -> None:
            self.sizes.append(len(text))

        @consume("large-in_thread")
        def job_in_thread(self, body: Any) -> None:
            self.sizes.append(len(body["args"][0]))

        @consume("large-on_loop")
        async def job_on_loop(self, body: Any) -> None:
            self.sizes.append(len(body["args"][0]))

    await serve(Large, config={"SERIALIZERS": {"held": HELD}, "ACCEPT": ["json", "held"]})
    size = 10_000_000
    body = json.dumps({"args": ["x" * size], "kwargs": {}}).encode()
    target = ("nameko-rpc", f"large.{method}") if kind == "rpc" else ("", f"large-{method}")
    await link.publish(Message(*target, body, Properties(HELD["content_type"], "utf-8")))

    await eventually(held_json.entered.is_set, 30)
    assert Large.sizes == []
    held_json.go_on.set()
    await eventually(lambda: Large.sizes == [size], 30)
