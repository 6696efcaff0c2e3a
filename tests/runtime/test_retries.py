"""A handler that fails is tried again: after pauses at the broker, which hold nobody up and outlive everybody."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest
from tests.runtime.dead_letter_box import read_dead_letters

from mycelia import (
    Client,
    Queue,
    Retry,
    RetryLater,
    consume,
    event_handler,
    fixed,
    get_current_call,
    rpc,
)
from mycelia.amqp import Link, Message, Properties
from mycelia.errors import ConfigError, RemoteError
from mycelia.testing import eventually, run_services

JSON = Properties("application/json", delivery_mode=2)
QUICK = fixed("250ms", "500ms")


class Flaky:
    """Notes what it is given, and fails as often as the payload says."""

    name = "flaky"
    seen: list[tuple[int, int, float, str, str]] = []  # noqa: RUF012  shared on purpose
    headers: list[dict[str, Any]] = []  # noqa: RUF012

    @consume("flaky", retry=Retry(attempts=3, backoff=QUICK))
    async def work(self, failures: int) -> None:
        call = get_current_call()
        assert call is not None
        message = call.message
        assert message is not None
        self.seen.append(
            (failures, call.attempt, time.monotonic(), message.exchange, message.routing_key)
        )
        self.headers.append(dict(message.properties.headers or {}))
        if call.attempt <= failures:
            raise LookupError("not yet")


@pytest.fixture(autouse=True)
def _clean() -> None:
    Flaky.seen.clear()
    Flaky.headers.clear()


@pytest.mark.timeout(120)
async def test_failed_message_is_tried_again_after_each_pause(broker: str, bare: Link) -> None:
    async with run_services(Flaky, broker=broker, timeout=15):
        await bare.publish(Message("", "flaky", b"2", JSON))
        await eventually(lambda: len(Flaky.seen) == 3, 20)

    assert [seen[1] for seen in Flaky.seen] == [1, 2, 3]
    first, second, third = (seen[2] for seen in Flaky.seen)
    assert second - first >= 0.2
    assert third - second >= 0.45
    assert [seen[3:] for seen in Flaky.seen] == [("", "flaky")] * 3
    failed_at = {headers.get("x-mycelia-first-failed-at-ms") for headers in Flaky.headers[1:]}
    assert len(failed_at) == 1
    assert None not in failed_at


@pytest.mark.timeout(120)
async def test_message_that_fails_every_attempt_is_dead_lettered_with_their_number(
    broker: str, bare: Link
) -> None:
    async with run_services(Flaky, broker=broker, timeout=15):
        await bare.publish(Message("", "flaky", b"9", JSON))
        (letter,) = await read_dead_letters(bare, "flaky", 1, 20)

    headers = letter.properties.headers or {}
    assert headers["x-mycelia-reason"] == "too_many_attempts"
    assert headers["x-mycelia-attempts"] == 3
    assert headers["x-mycelia-first-failed-at-ms"] < headers["x-mycelia-failed-at-ms"]
    assert len(Flaky.seen) == 3
    assert not [name for name in headers if name.startswith(("x-death", "x-mycelia-delay"))]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("concurrency", [1, 2, 10])
async def test_two_hundred_failing_messages_hold_up_a_good_one_by_no_pause_of_theirs(
    broker: str, bare: Link, concurrency: int
) -> None:
    class Crowd:
        name = "crowd"
        good: list[int] = []  # noqa: RUF012
        attempts: Counter[int] = Counter()  # noqa: RUF012

        @consume("crowd", concurrency=concurrency, retry=Retry(2, fixed("30s")))
        async def work(self, number: int) -> None:
            self.attempts[number] += 1
            if number:
                raise LookupError("not yet")
            self.good.append(number)

    await bare.declare(Queue("crowd", arguments={"x-queue-type": "quorum"}))
    # The levels are there, as they are after the first failure on this broker.
    async with run_services(Crowd, broker=broker, timeout=15) as bed:
        await bed.container(Crowd).host.delays.publish(Message("", "crowd", b"999", JSON), 30.0)
        await asyncio.gather(
            *(bare.publish(Message("", "crowd", b"%d" % number, JSON)) for number in range(1, 201))
        )
        await bare.publish(Message("", "crowd", b"0", JSON))
        # A message takes room in the prefetch, twice the concurrency, until the broker has confirmed that it comes again: a hundred
        # round trips at most, half a second where nothing else runs. With those that keep their place through the pause it is 30 s.
        await eventually(lambda: bool(Crowd.good), 20)

    assert set(Crowd.attempts.values()) == {1}


@pytest.mark.timeout(120)
async def test_message_survives_its_service_during_the_pause_and_two_instances_count_once(
    broker: str, bare: Link
) -> None:
    async with run_services(Flaky, broker=broker, timeout=15):
        await bare.publish(Message("", "flaky", b"2", JSON))
        await eventually(lambda: len(Flaky.seen) == 1, 20)
    async with (
        run_services(Flaky, broker=broker, timeout=15),
        run_services(Flaky, broker=broker, timeout=15),
    ):
        await eventually(lambda: len(Flaky.seen) == 3, 20)

    assert [seen[1] for seen in Flaky.seen] == [1, 2, 3]


@pytest.mark.default_retry
async def test_by_default_a_handler_is_tried_again_and_a_stream_is_not(broker: str) -> None:
    class Defaults:
        name = "defaults"

        @event_handler("source", "happened")
        async def event(self, payload: int) -> None: ...

        @consume("defaults", retry=None)
        async def never(self, payload: int) -> None: ...

        @consume(Queue("defaults-stream", arguments={"x-queue-type": "stream"}))
        async def stream(self, payload: int) -> None: ...

    config = {"mycelia": {"handler_retry": {"defaults.never": ["1s"]}}}
    async with run_services(Defaults, broker=broker, timeout=15) as bed:
        policies = {e.method_name: e._policy for e in bed.container(Defaults).entrypoints}
    async with run_services(Defaults, broker=broker, config=config, timeout=15) as bed:
        said = {e.method_name: e._policy for e in bed.container(Defaults).entrypoints}

    assert policies == {"event": Retry(), "never": None, "stream": None}
    assert said["never"] == Retry(2, fixed("1s"))


async def test_mistaken_policy_is_told_at_the_start(broker: str) -> None:
    config = {"mycelia": {"handler_retry": {"flaky.work": {"attempt": 3}}}}

    with pytest.raises(ConfigError, match=r"mycelia\.handler_retry\.flaky\.work"):
        async with run_services(Flaky, broker=broker, config=config, timeout=15):
            pass


@pytest.mark.timeout(120)
async def test_handler_says_itself_when_it_is_tried_again(broker: str, bare: Link) -> None:
    class Later:
        name = "later"
        attempts: list[int] = []  # noqa: RUF012

        @consume("later", retry=None)
        async def work(self, payload: int) -> None:
            call = get_current_call()
            assert call is not None
            self.attempts.append(call.attempt)
            if call.attempt < 3:
                raise RetryLater("250ms", "the other side is not up yet")

    async with run_services(Later, broker=broker, timeout=15):
        await bare.publish(Message("", "later", b"1", JSON))
        await eventually(lambda: len(Later.attempts) == 3, 20)

    assert Later.attempts == [1, 2, 3]


class Patient:
    name = "patient"
    attempts: list[int] = []  # noqa: RUF012

    @rpc
    async def ask(self, times: int, pause: float) -> int:
        call = get_current_call()
        assert call is not None
        self.attempts.append(call.attempt)
        if call.attempt < times:
            raise RetryLater(pause)
        return call.attempt


@pytest.mark.timeout(120)
async def test_caller_of_an_rpc_sees_only_the_final_result(broker: str) -> None:
    Patient.attempts.clear()
    async with run_services(Patient, broker=broker, timeout=15), Client(broker) as client:
        answer = await client.call("patient", "ask", 3, 0.25, timeout=20)

    assert answer == 3
    assert Patient.attempts == [1, 2, 3]


@pytest.mark.timeout(120)
async def test_rpc_whose_next_attempt_would_be_too_late_is_answered_at_once(broker: str) -> None:
    Patient.attempts.clear()
    async with run_services(Patient, broker=broker, timeout=15), Client(broker) as client:
        began = time.monotonic()
        with pytest.raises(RemoteError, match="RetryLater"):
            await client.call("patient", "ask", 3, 60.0, timeout=20)

    assert time.monotonic() - began < 10
    assert Patient.attempts == [1]
