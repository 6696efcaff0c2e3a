"""A broker that does not take dead letters: the messages stay where they are, and the others are handled."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

import pytest

from mycelia import Queue, consume
from mycelia.amqp import ConsumeOptions, Delivery, Link, Message, Properties, connect
from mycelia.log_event import LogEvent
from mycelia.testing import eventually, run_services

JSON = Properties("application/json")
COUNT = 40


@pytest.fixture
async def link(broker: str) -> AsyncIterator[Link]:
    link = connect(broker)
    await link.open(15)
    yield link
    await link.aclose()


class Failing:
    name = "failing"
    runs: Counter[int] = Counter()  # noqa: RUF012  shared on purpose

    @consume(Queue("classic-async"), prefetch=2 * COUNT)
    async def classic_async(self, number: int) -> None:
        self.handle(number)

    @consume("quorum-def", prefetch=2 * COUNT)
    def quorum_def(self, number: int) -> None:
        self.handle(number)

    def handle(self, number: int) -> None:
        self.runs[number] += 1
        if number % 2:
            raise LookupError("no")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("queue", ["classic-async", "quorum-def"])
async def test_message_that_cannot_be_buried_goes_back_and_is_buried_when_there_is_room(
    broker: str,
    link: Link,
    queue: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At least once: with so short a timeout for the broker, one that it took may be published again."""
    pauses = (0.1, 0.2, 0.4)
    monkeypatch.setattr("mycelia.entrypoints.dead_letters.GIVE_UP_PAUSES_S", pauses)
    Failing.runs.clear()
    odd = range(1, COUNT, 2)
    full = Queue(f"{queue}.dead", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    await link.declare(full)
    await link.publish(Message("", full.name, b"0", JSON))

    def steps() -> list[float | None]:
        lines = [record.msg for record in caplog.records if isinstance(record.msg, LogEvent)]
        return [dict(x.fields).get("retry_in_s") for x in lines if x.name == "dead_letter_failed"]

    config = {"mycelia": {"publish_timeout": 0.3}}
    async with run_services(Failing, broker=broker, config=config, timeout=15):
        for number in range(COUNT):
            await link.publish(Message("", queue, str(number).encode(), JSON))
        await eventually(lambda: len(Failing.runs) == COUNT, 20)
        await eventually(lambda: steps().count(None) >= COUNT // 2, 40)
        letters: list[Delivery] = []
        await link.consume(full.name, letters.extend, ConsumeOptions(no_ack=True))
        await eventually(lambda: {int(one.body) for one in letters} == {0, *odd}, 40)

        async def is_empty() -> bool:
            return await link.message_count(queue) == 0

        await eventually(is_empty, 30)

    assert {n: Failing.runs[n] for n in range(0, COUNT, 2)} == dict.fromkeys(range(0, COUNT, 2), 1)
    assert all(2 <= Failing.runs[n] <= 10 for n in odd), "a hot loop"
    assert set(steps()) == {*pauses, None}
