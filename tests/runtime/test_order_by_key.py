"""Handlers with a key: one after the other for each key, side by side for different keys, whatever happens to some of them."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from tests.progress import until
from tests.runtime.bodies import QUORUM
from tests.runtime.dead_letter_box import read_dead_letters

from mycelia import Queue, Retry, consume, event_handler, fixed, get_current_call
from mycelia.amqp import Link, Message, Properties
from mycelia.amqp.memory.broker import broker_at
from mycelia.control.dead_letters import LetterFilter, Router, redrive
from mycelia.errors import ConfigError
from mycelia.testing import eventually, run_services


class Ledger:
    """What has begun and ended, by key."""

    def __init__(self) -> None:
        self.begun: dict[Any, list[int]] = defaultdict(list)
        self.ended: dict[Any, list[int]] = defaultdict(list)
        self.running: Counter[Any] = Counter()
        self.most_at_once = 0
        self.overlaps: list[Any] = []
        self._lock = threading.Lock()

    def begin(self, key: Any, number: int) -> None:
        with self._lock:
            self.begun[key].append(number)
            self.running[key] += 1
            if self.running[key] > 1:
                self.overlaps.append((key, number))
            self.most_at_once = max(self.most_at_once, sum(self.running.values()))

    def leave(self, key: Any, number: int, *, is_done: bool = True) -> None:
        with self._lock:
            self.running[key] -= 1
            if is_done:
                self.ended[key].append(number)

    @property
    def count(self) -> int:
        return sum(len(set(ended)) for ended in self.ended.values())


def is_in_order(numbers: list[int], count: int) -> bool:
    """Whether all are there, and the first occurrences are in order."""
    return list(dict.fromkeys(numbers)) == list(range(count))


async def publish(link: Link, queue: str, payloads: list[dict[str, Any]]) -> None:
    """Published in this order; each has an id of its own, as those of our clients have."""
    for start in range(0, len(payloads), 500):
        await asyncio.gather(
            *(
                link.publish(
                    Message(
                        "",
                        queue,
                        msgspec.json.encode(payload),
                        Properties(
                            "application/json", delivery_mode=2, message_id=f"{start + place}"
                        ),
                    )
                )
                for place, payload in enumerate(payloads[start : start + 500])
            )
        )


def shuffled(keys: int, each: int, seed: int = 1) -> list[dict[str, Any]]:
    """Messages of many keys, mixed, each key's numbered in order."""
    rng = random.Random(seed)
    order = [key for key in range(keys) for _ in range(each)]
    rng.shuffle(order)
    numbers: Counter[int] = Counter()
    payloads = []
    for key in order:
        payloads.append({"tail": f"N{key}", "n": numbers[key]})
        numbers[key] += 1
    return payloads


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_thousands_over_a_hundred_keys_keep_each_key_s_order_and_run_side_by_side(
    broker: str, bare: Link, kind: str
) -> None:
    ledger = Ledger()
    rng = random.Random(2)

    class Fleet:
        name = "fleet"

        if kind == "async":

            @consume("fleet", concurrency=32, key="tail")
            async def work(self, payload: dict[str, Any]) -> None:
                ledger.begin(payload["tail"], payload["n"])
                await asyncio.sleep(rng.choice((0, 0.0005, 0.005)))
                ledger.leave(payload["tail"], payload["n"])
        else:

            @consume("fleet", concurrency=16, key=lambda payload: payload["tail"])
            def work(self, payload: dict[str, Any]) -> None:
                ledger.begin(payload["tail"], payload["n"])
                time.sleep(rng.choice((0, 0.0005, 0.005)))
                ledger.leave(payload["tail"], payload["n"])

    async with run_services(Fleet, broker=broker, timeout=15):
        await publish(bare, "fleet", shuffled(100, 40))
        await until(
            lambda: ledger.count == 4000, lambda: ledger.count, what="4000 messages handled"
        )

    assert ledger.overlaps == []
    assert all(ended == list(range(40)) for ended in ledger.ended.values())
    assert ledger.most_at_once > 8


@pytest.mark.timeout(120)
async def test_key_that_fails_is_tried_again_in_its_place_and_holds_up_no_other(
    broker: str, bare: Link
) -> None:
    ledger = Ledger()
    attempts: list[tuple[int, int]] = []
    gate = asyncio.Event()

    class Stuck:
        name = "stuck"

        @consume("stuck", concurrency=4, key="tail", retry=Retry(50, fixed("50ms")))
        async def work(self, payload: dict[str, Any]) -> None:
            key, number = payload["tail"], payload["n"]
            ledger.begin(key, number)
            is_bad = key == "bad" and not gate.is_set()
            ledger.leave(key, number, is_done=not is_bad)
            if is_bad:
                call = get_current_call()
                assert call is not None
                attempts.append((number, call.attempt))
                raise LookupError("not yet")

    async with run_services(Stuck, broker=broker, timeout=15) as bed:
        payloads = [{"tail": "bad", "n": n} for n in range(5)]
        payloads += [{"tail": f"N{n % 20}", "n": n // 20} for n in range(400)]
        await publish(bare, "stuck", payloads)
        await eventually(lambda: ledger.count == 400, 30)
        await eventually(lambda: len(attempts) >= 3, 30)
        (lane,) = bed.container(Stuck).lanes
        assert lane.active <= 1  # it pauses: no slot is taken
        gate.set()
        await eventually(lambda: len(ledger.ended["bad"]) == 5, 30)

    assert {number for number, _ in attempts} == {0}
    assert [attempt for _, attempt in attempts] == list(range(1, len(attempts) + 1))
    assert ledger.ended["bad"] == list(range(5))
    assert ledger.overlaps == []


@pytest.mark.timeout(120)
async def test_key_that_goes_on_failing_ends_in_the_dead_letters_and_what_follows_is_handled(
    broker: str, bare: Link
) -> None:
    handled: list[int] = []

    class Skips:
        name = "skips"

        @consume("skips", concurrency=4, key="tail", retry=Retry(3, fixed("20ms")))
        async def work(self, payload: dict[str, Any]) -> None:
            if payload["n"] == 1:
                raise LookupError("never")
            handled.append(payload["n"])

    async with run_services(Skips, broker=broker, timeout=15):
        await publish(bare, "skips", [{"tail": "N1", "n": n} for n in range(4)])
        (letter,) = await read_dead_letters(bare, "skips", 1, 20)
        await eventually(lambda: len(handled) == 3, 30)

    headers = letter.properties.headers or {}
    assert msgspec.json.decode(letter.body)["n"] == 1
    assert headers["x-mycelia-reason"] == "too_many_attempts"
    assert headers["x-mycelia-attempts"] == 3
    assert handled == [0, 2, 3]


@pytest.mark.timeout(120)
async def test_failing_key_with_more_behind_it_than_a_quarter_of_the_prefetch_starves_nobody(
    broker: str, bare: Link
) -> None:
    """Its pause would be a minute; the prefetch is full of its messages long before."""
    good: list[int] = []

    class Hot:
        name = "hot"

        @consume("hot", concurrency=4, prefetch=40, key="tail", retry=Retry(9, fixed("60s")))
        async def work(self, payload: dict[str, Any]) -> None:
            if payload["tail"] == "hot":
                raise LookupError("never")
            good.append(payload["n"])

    await bare.declare(Queue("hot", arguments=QUORUM))
    await publish(bare, "hot", [{"tail": "hot", "n": n} for n in range(300)])
    await publish(bare, "hot", [{"tail": f"N{n}", "n": n} for n in range(10)])
    async with run_services(Hot, broker=broker, timeout=15):
        await eventually(lambda: len(good) == 10, 30)
        dead = await read_dead_letters(bare, "hot", 280, 30)

    assert {msgspec.json.decode(letter.body)["n"] for letter in dead} == set(range(280))


@pytest.mark.timeout(120)
async def test_parked_key_takes_all_that_follows_to_the_dead_letters_and_comes_back_redriven(
    broker: str, bare: Link
) -> None:
    handled: dict[str, list[int]] = defaultdict(list)
    works = False

    class Parks:
        name = "parks"

        @consume("parks", concurrency=8, key="tail", parks=True, retry=Retry(2, fixed("20ms")))
        async def work(self, payload: dict[str, Any]) -> None:
            if payload["tail"] == "bad" and payload["n"] == 2 and not works:
                raise LookupError("not yet")
            handled[payload["tail"]].append(payload["n"])

    async with run_services(Parks, broker=broker, timeout=15):
        payloads = [{"tail": key, "n": n} for n in range(30) for key in ("bad", "good")]
        await publish(bare, "parks", payloads)
        await eventually(lambda: len(handled["good"]) == 30, 20)

        async def dead() -> int:
            return await bare.message_count("parks.dead")

        await eventually(lambda: _is(dead, 28), 20)
        assert handled["bad"] == [0, 1]

        works = True
        report = await redrive(bare, "parks.dead", Router(bare, unattended=True), LetterFilter())
        await eventually(lambda: len(handled["bad"]) == 30, 20)

    assert report.sent == 28
    assert handled["good"] == list(range(30))
    assert handled["bad"] == list(range(30))


async def _is(count: Any, expected: int) -> bool:
    return bool(await count() == expected)


@pytest.mark.timeout(120)
async def test_parked_dead_letters_say_so_in_order(broker: str, bare: Link) -> None:
    class Parks:
        name = "parks"

        @consume("parks", key="tail", parks=True, retry=None)
        async def work(self, payload: dict[str, Any]) -> None:
            raise LookupError("never")

    async with run_services(Parks, broker=broker, timeout=15):
        await publish(bare, "parks", [{"tail": "N1", "n": n} for n in range(50)])
        dead = await read_dead_letters(bare, "parks", 50, 20)

    assert [msgspec.json.decode(letter.body)["n"] for letter in dead] == list(range(50))
    reasons = [(letter.properties.headers or {})["x-mycelia-reason"] for letter in dead]
    assert reasons == ["handler_error"] + ["parked"] * 49


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "bad", [b'{"n": 1}', b'{"tail": null}', b'{"tail": [1]}', b"[]", b"null", b"{"]
)
async def test_message_without_a_key_is_a_dead_letter_and_harms_no_other(
    broker: str, bare: Link, bad: bytes
) -> None:
    handled: list[int] = []

    class Keyed:
        name = "keyed"

        @consume("keyed", key="tail")
        async def work(self, payload: dict[str, Any]) -> None:
            handled.append(payload["n"])

    async with run_services(Keyed, broker=broker, timeout=15):
        await publish(bare, "keyed", [{"tail": "N1", "n": 0}])
        await bare.publish(Message("", "keyed", bad, Properties("application/json")))
        await publish(bare, "keyed", [{"tail": "N1", "n": 1}])
        (letter,) = await read_dead_letters(bare, "keyed", 1, 20)
        await eventually(lambda: handled == [0, 1], 30)

    assert letter.body == bad
    assert (letter.properties.headers or {})["x-mycelia-reason"] == "undecodable"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("raised", [LookupError, SystemExit, asyncio.CancelledError])
async def test_function_that_raises_instead_of_a_key_costs_its_message_and_nothing_else(
    broker: str, bare: Link, raised: type[BaseException]
) -> None:
    handled: list[int] = []

    def tail(payload: dict[str, Any]) -> str:
        if payload["n"] == 1:
            raise raised("no tail")
        return "N1"

    class Keyed:
        name = "keyed"

        @consume("keyed", key=tail)
        async def work(self, payload: dict[str, Any]) -> None:
            handled.append(payload["n"])

    async with run_services(Keyed, broker=broker, timeout=15) as bed:
        await publish(bare, "keyed", [{"n": n} for n in range(3)])
        (letter,) = await read_dead_letters(bare, "keyed", 1, 20)
        await eventually(lambda: handled == [0, 2], 30)
        assert bed.container(Keyed).host.link.statistics().reconnects == 0

    assert json.loads(letter.body) == {"n": 1}
    assert (letter.properties.headers or {})["x-mycelia-reason"] == "undecodable"


async def _cut(request: pytest.FixtureRequest, broker: str, link: Link) -> None:
    before = link.statistics().reconnects
    if broker.startswith("memory"):
        broker_at(broker).drop_connections()
    else:
        api = request.getfixturevalue("rabbit_api")
        vhost = request.getfixturevalue("rabbit_vhost")

        def has_cut() -> bool:
            return int(api.close_connections(vhost)) >= 2

        await eventually(lambda: asyncio.to_thread(has_cut), 30, interval=0.1)
    await eventually(lambda: link.statistics().reconnects > before and link.writable, 20)


@pytest.mark.long_variants("rabbit-classic")
@pytest.mark.timeout(240)
@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
async def test_connection_that_is_cut_three_times_changes_no_key_s_order(
    request: pytest.FixtureRequest, broker: str, bare: Link, queue_type: str
) -> None:
    ledger = Ledger()
    rng = random.Random(3)
    failures: Counter[str] = Counter()

    class Cut:
        name = "cut"

        @consume(
            Queue("cut", arguments={"x-queue-type": queue_type}),
            concurrency=16,
            key="tail",
            retry=Retry(50, fixed("20ms")),
        )
        async def work(self, payload: dict[str, Any]) -> None:
            key, number = payload["tail"], payload["n"]
            ledger.begin(key, number)
            await asyncio.sleep(rng.choice((0, 0.005, 0.03)))
            is_bad = rng.random() < 0.05
            failures[key] += is_bad
            ledger.leave(key, number, is_done=not is_bad)
            if is_bad:
                raise LookupError("not yet")

    async with run_services(Cut, broker=broker, timeout=15) as bed:
        await publish(bare, "cut", shuffled(50, 60))
        link = bed.container(Cut).host.link
        for share in (300, 900, 1500):
            await until(
                lambda share=share: ledger.count >= share, lambda: ledger.count, what="some handled"
            )
            await _cut(request, broker, link)
        await until(
            lambda: ledger.count == 3000, lambda: ledger.count, what="3000 messages handled"
        )

    assert ledger.overlaps == []
    assert failures.total() > 20
    assert [key for key, ended in ledger.ended.items() if not is_in_order(ended, 60)] == []


@pytest.mark.timeout(240)
async def test_stop_in_the_middle_gives_back_in_order(broker: str, bare: Link) -> None:
    ledger = Ledger()
    rng = random.Random(4)

    class Stops:
        name = "stops"

        @consume("stops", concurrency=16, key="tail", retry=Retry(50, fixed("100ms")))
        async def work(self, payload: dict[str, Any]) -> None:
            key, number = payload["tail"], payload["n"]
            ledger.begin(key, number)
            is_done = False
            try:
                await asyncio.sleep(rng.choice((0, 0.005, 0.03)))
                is_done = rng.random() > 0.05
            finally:
                ledger.leave(key, number, is_done=is_done)
            if not is_done:
                raise LookupError("not yet")

    await bare.declare(Queue("stops", arguments=QUORUM))
    await publish(bare, "stops", shuffled(50, 40))
    for share in (200, 600, 1000):
        config = {"mycelia": {"grace": 0.01}}
        async with run_services(Stops, broker=broker, timeout=15, config=config):
            await until(
                lambda share=share: ledger.count >= share, lambda: ledger.count, what="some handled"
            )
    async with run_services(Stops, broker=broker, timeout=15):
        await until(
            lambda: ledger.count == 2000, lambda: ledger.count, what="2000 messages handled"
        )

    assert ledger.overlaps == []
    for key, ended in ledger.ended.items():
        assert ended == list(range(40)), key
        assert all(after <= before + 1 for before, after in pairwise(ledger.begun[key])), key


@pytest.mark.timeout(120)
async def test_middleware_that_asks_for_another_attempt_gets_it_in_place(broker: str) -> None:
    seen: list[int] = []

    class Events:
        name = "events"

        @event_handler("feed", "departed", key="tail", retry=Retry(3, fixed("10ms")))
        async def departed(self, payload: dict[str, Any]) -> None:
            seen.append(payload["n"])
            if seen.count(0) < 3:
                raise LookupError("not yet")

    async with run_services(Events, broker=broker, timeout=15) as bed:
        for n in range(3):
            await bed.client.publish("feed", "departed", {"tail": "N1", "n": n})
        await eventually(lambda: len(seen) == 5, 30)

    assert seen == [0, 0, 0, 1, 2]


@pytest.mark.parametrize("key", ["", 3, ("a",)])
def test_what_is_no_key_is_said_where_it_is_written(key: Any) -> None:
    with pytest.raises(ConfigError, match="key="):

        class Wrong:
            name = "wrong"

            @consume("wrong", key=key)
            def work(self, payload: object) -> None: ...


def test_parks_without_a_key_is_said_where_it_is_written() -> None:
    with pytest.raises(ConfigError, match="say which with key="):

        class Wrong:
            name = "wrong"

            @consume("wrong", parks=True)
            def work(self, payload: object) -> None: ...
