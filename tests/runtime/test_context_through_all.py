"""Context data, baggage and the trace go through every hop: events, retries, dead letters that are put back, RPC in between."""

from __future__ import annotations

from typing import Any

import pytest

from mycelia import (
    Client,
    EventDispatcher,
    RpcProxy,
    context,
    event_handler,
    get_current_call,
    rpc,
)
from mycelia.amqp import ConsumeOptions, Delivery, Message
from mycelia.entrypoints.dead_letters import dead_letter_queue, dead_letter_queue_name
from mycelia.testing import eventually, run_services

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
GIVEN = {
    "user_id": 7,
    "language": "de",
    "auth_token": "t0p",
    "tenant": {"name": "acme", "n": [1, 2]},
    "baggage": "plan=gold%20plus,region=eu",
    "traceparent": TRACEPARENT,
    "note": "line one\r\nline two\x1b[2J",
}


def seen() -> dict[str, Any]:
    return {key: context.get(key) for key in GIVEN}


class First:
    name = "first"
    emit = EventDispatcher()
    second = RpcProxy("second", timeout=10)
    seen: list[tuple[int, dict[str, Any]]]

    @event_handler("program", "began", requeue_on_error=True)
    def began(self, payload: Any) -> None:
        call = get_current_call()
        assert call is not None
        self.seen.append((call.attempt, seen()))
        if call.attempt < 3:
            raise LookupError("not yet")
        reply = self.second.ask.call_async()  # type: ignore[attr-defined]  # a `def` method waits for it
        self.seen.append((0, reply.result()))
        assert reply.context == {"back": "again"}
        self.emit("went_on", payload)  # type: ignore[unused-coroutine]


class Second:
    name = "second"

    @rpc
    async def ask(self) -> dict[str, Any]:
        context.reply["back"] = "again"
        return seen()


class Last:
    name = "last"
    is_mended: bool
    seen: list[dict[str, Any]]

    @event_handler("first", "went_on")
    async def went_on(self, payload: Any) -> None:
        self.seen.append(seen())
        if not self.is_mended:
            raise ValueError("broken")


@pytest.mark.timeout(120)
async def test_context_goes_through_events_retries_rpc_and_dead_letters_that_are_put_back(
    broker: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    First.seen, Last.seen, Last.is_mended = [], [], False
    queue = "evt-first-went_on--last.went_on"
    dead: list[Delivery] = []
    config = {"mycelia": {"access_log": {"arguments": True}}}

    async with run_services(First, Second, Last, broker=broker, config=config, timeout=10) as bed:
        async with Client(broker, context=GIVEN) as client:
            await client.publish("program", "began", 1)
        await eventually(lambda: len(Last.seen) >= 1, timeout=60)
        Last.is_mended = True
        link = bed.container(Last).host.link
        name = dead_letter_queue_name(queue)
        await link.declare(dead_letter_queue(name))  # whoever is first
        await link.consume(name, dead.extend, ConsumeOptions())
        await eventually(lambda: len(dead) == 1, timeout=60)
        letter = dead[0]
        again = letter.properties.republished(letter.properties.headers)
        await link.publish(Message("", queue, letter.body, again, mandatory=True))
        letter.ack()
        await eventually(lambda: len(Last.seen) == 2, timeout=60)

    assert [attempt for attempt, _ in First.seen] == [1, 2, 3, 0]
    assert [found for _, found in First.seen] == [GIVEN] * 4
    assert Last.seen == [GIVEN] * 2
    # Dead letters keep what they carry; log lines tell neither the token nor a line that is none.
    assert (letter.properties.headers or {})["nameko.auth_token"] == "t0p"
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("mycelia")]
    assert not any("t0p" in line or "\x1b" in line for line in ours)
    ended = [line for line in ours if line.startswith("call_ended")]
    assert [line.split(" outcome=")[1].split(" ")[0] for line in ended if "call=last" in line] == [
        "failed",
        "ok",
    ]


@pytest.mark.timeout(120)
async def test_what_travels_back_is_on_every_broker(broker: str) -> None:
    class Asked:
        name = "asked"

        @rpc
        def much(self, n: int) -> str:
            for i in range(n):
                context.reply[f"k{i}"] = [i, "x" * 50, {"deep": None}]
            return "answered"

        @rpc
        async def fails(self) -> None:
            context.reply["when"] = "then"
            raise ValueError

    async with run_services(Asked, broker=broker, timeout=10) as bed:
        asked = await bed.client.service("asked")
        much = asked.much.call_async(1000)
        assert await much.result() == "answered"
        fails = asked.fails.call_async()
        with pytest.raises(Exception, match="ValueError"):
            await fails.result()

    assert len(much.context) == 100
    assert much.context["k99"] == [99, "x" * 50, {"deep": None}]
    assert fails.context == {"when": "then"}
