"""What lies in an outbox comes to its sinks in order, however often they fail, and no more waits than fits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest

from mycelia.errors import RetryLater
from mycelia.flow import delivery as delivery_module
from mycelia.flow.delivery import SinkDelivery, sink_message
from mycelia.flow.sinks.sink import (
    FlowSink,
    OwnSink,
    SinkPlace,
    SinkRecord,
    SinkRefused,
    pack_records,
)
from mycelia.policies.retry import exponential
from mycelia.testing import eventually


class Taking(FlowSink[int]):
    """Takes what comes, fails as often as it is told to, and waits while it is closed."""

    def __init__(self, failures: int = 0) -> None:
        self.name = "taking"
        self.failures = failures
        self.opened = asyncio.Event()
        self.opened.set()
        self.taken: list[tuple[int, int]] = []
        self.refuses: set[str] = set()

    async def deliver(self, body: bytes, place: SinkPlace, done: set[str]) -> None:
        await self.opened.wait()
        if self.failures:
            self.failures -= 1
            raise ConnectionError("away")
        for record in self.told_of(body):
            if record.id in done:
                continue
            if record.id in self.refuses:
                raise SinkRefused("no", record.id)
            self.taken.append((place.number, record.value))
            done.add(record.id)


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "_PAUSES", exponential("1ms", max="2ms", jitter=False))


def body(*values: int) -> bytes:
    return pack_records([SinkRecord(f"id{value}", None, 0, value) for value in values])


async def test_bodies_of_an_output_come_in_order_through_failures() -> None:
    sink = Taking(failures=3)
    delivery = SinkDelivery({"a": sink}, "g/1/0", "s.m")
    for number in range(10):
        delivery.put(number + 1, sink_message("a", number, body(number)))

    await eventually(lambda: len(sink.taken) == 10, 5)

    assert sink.taken == [(number, number) for number in range(10)]
    assert delivery.done_up_to() == 0, (
        "what is no sink's may have lower numbers, and is not published yet"
    )
    delivery.published_up_to = 10
    assert delivery.done_up_to() == 10
    assert delivery.waiting_bytes == 0
    await delivery.aclose()


async def test_sink_that_is_away_holds_up_no_other_and_what_it_has_not_had_is_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    away, there = Taking(failures=10**9), Taking()
    delivery = SinkDelivery({"away": away, "there": there}, "g/1/0", "s.m")
    delivery.put(1, sink_message("there", 0, body(0)))
    delivery.put(2, sink_message("away", 0, body(0)))
    for number in range(1, 5):
        delivery.put(number + 2, sink_message("there", number, body(number)))

    delivery.published_up_to = 6

    await eventually(lambda: len(there.taken) == 5 and delivery.standing_still, 5)

    assert delivery.done_up_to() == 1, "all from the second on may be needed again"
    assert delivery.standing_still == {"away": "ConnectionError: away"}
    (told,) = [r for r in caplog.records if "flow_sink_waiting" in r.getMessage()]
    assert told.levelno == logging.WARNING, "once, and not for each attempt"
    await delivery.aclose()


async def test_there_is_no_room_while_too_much_waits() -> None:
    sink = Taking()
    sink.opened.clear()
    delivery = SinkDelivery({"a": sink}, "g/1/0", "s.m", max_bytes=3 * len(body(1)))

    delivery.put(1, sink_message("a", 0, body(1)))
    delivery.put(2, sink_message("a", 1, body(2)))
    assert delivery.has_room
    delivery.put(3, sink_message("a", 2, body(3)))
    assert not delivery.has_room
    await delivery.wait(0.01)
    sink.opened.set()
    await delivery.wait(5)

    assert delivery.has_room
    await delivery.aclose(5)
    assert [value for _, value in sink.taken] == [1, 2, 3], "a partition that is left lets it end"


async def test_refused_record_is_buried_and_the_others_of_its_body_are_delivered() -> None:
    sink = Taking()
    sink.refuses = {"id2", "id3"}
    buried: list[int] = []

    async def bury(records: list[SinkRecord[Any]], output: str, refused: SinkRefused) -> bool:
        buried.extend(record.value for record in records)
        return True

    delivery = SinkDelivery({"a": sink}, "g/1/0", "s.m", bury)
    delivery.put(1, sink_message("a", 0, body(1, 2, 3, 4)))
    await eventually(lambda: not delivery.waiting_bytes, 5)

    assert buried == [2, 3]
    assert [value for _, value in sink.taken] == [1, 4]
    await delivery.aclose()


async def test_refused_record_is_asked_again_where_the_flow_is_to_stand_still() -> None:
    sink = Taking()
    sink.refuses = {"id1"}
    delivery = SinkDelivery({"a": sink}, "g/1/0", "s.m")
    delivery.put(1, sink_message("a", 0, body(1)))
    await eventually(lambda: bool(delivery.standing_still), 5)
    assert sink.taken == []

    sink.refuses = set()
    await eventually(lambda: bool(sink.taken), 5)
    await eventually(lambda: not delivery.standing_still, 5)
    await delivery.aclose()


async def test_writer_of_a_users_own_gets_records_again_until_it_has_them() -> None:
    class Store:
        def __init__(self) -> None:
            self.calls: list[list[SinkRecord[int]]] = []
            self.events: list[str] = []

        async def open(self) -> None:
            self.events.append("open")

        async def write(self, records: Sequence[SinkRecord[int]]) -> None:
            self.calls.append(list(records))
            if len(self.calls) == 1:
                raise RetryLater(0.001, "not yet")

        async def aclose(self) -> None:
            self.events.append("aclose")

    store = Store()
    sink = OwnSink(store)
    nowhere: Any = None
    await sink.open(nowhere)
    delivery = SinkDelivery({"a": sink}, "g/1/0", "s.m")
    (packed,) = sink.pack([SinkRecord("x", "k", 5, 7)], {}, 0, "g/1/0")
    delivery.put(1, sink_message("a", 0, packed))
    await eventually(lambda: len(store.calls) == 2, 5)
    await delivery.aclose(5)
    await sink.aclose()

    assert store.calls == [[SinkRecord("x", "k", 5, 7)]] * 2
    assert store.events == ["open", "aclose"]


@pytest.mark.parametrize("raised", [SystemExit(3), asyncio.CancelledError(), KeyboardInterrupt()])
async def test_writer_that_ends_its_task_is_one_that_raises(raised: BaseException) -> None:
    """Not the process, and not the output without a word."""

    class Odd:
        async def write(self, records: Sequence[SinkRecord[int]]) -> None:
            if raising:
                raise raising.pop()
            had.extend(one.value for one in records)

    raising, had = [raised], list[int]()
    delivery = SinkDelivery({"a": OwnSink(Odd())}, "g/1/0", "s.m")
    delivery.put(1, sink_message("a", 0, body(1, 2)))
    await eventually(lambda: had == [1, 2], 5)
    await delivery.aclose()
