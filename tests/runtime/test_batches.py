"""Handlers of lists: each message has an outcome of its own, whatever happens to the others."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from tests.progress import until
from tests.runtime.bodies import QUORUM, publish
from tests.runtime.dead_letter_box import read_dead_letters
from tests.runtime.test_order_by_key import _cut

from mycelia import (
    Batch,
    DeadLetter,
    KillSwitch,
    Queue,
    Redeliver,
    Retry,
    consume,
    event_handler,
    fixed,
    get_current_call,
)
from mycelia.amqp import Link
from mycelia.call import Call, Middleware, Next, Outcome
from mycelia.errors import ConfigError
from mycelia.testing import eventually, run_services


def numbers(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


def reason(letter: Any) -> str:
    return str((letter.properties.headers or {})["x-mycelia-reason"])


async def _is_empty(link: Link, queue: str) -> bool:
    return await link.message_count(queue) == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_thousands_are_handled_in_lists_once_each(broker: str, bare: Link, kind: str) -> None:
    seen: Counter[int] = Counter()
    sizes: list[int] = []

    def take(items: list[int]) -> None:
        sizes.append(len(items))
        seen.update(items)

    class Lists:
        name = "lists"

        if kind == "async":

            @consume("lists", batch=Batch(size=100, within=0.05), concurrency=2)
            async def work(self, items: list[int]) -> None:
                take(items)
        else:

            @consume("lists", batch=Batch(size=100, within="50ms"), concurrency=2)
            def work(self, items: list[int]) -> None:
                take(items)

    await bare.declare(Queue("lists", arguments=QUORUM))
    await publish(bare, "lists", numbers(5010))
    async with run_services(Lists, broker=broker, timeout=15):
        await until(lambda: seen.total() == 5010, seen.total, what="5010 items")
    assert await _is_empty(bare, "lists")

    assert seen == Counter(range(5010))
    assert max(sizes) == 100
    assert len(sizes) < 500


@pytest.mark.timeout(120)
async def test_list_that_does_not_fill_up_is_handled_within_its_time(
    broker: str, bare: Link
) -> None:
    lists: list[list[int]] = []

    class Few:
        name = "few"

        @consume("few", batch=Batch(size=500, within=0.1))
        async def work(self, items: list[int]) -> None:
            lists.append(items)

    async with run_services(Few, broker=broker, timeout=15):
        await publish(bare, "few", numbers(3))
        await eventually(lambda: sorted(n for items in lists for n in items) == [0, 1, 2], 30)


@pytest.mark.timeout(120)
async def test_each_item_has_the_outcome_that_the_method_gives_it(broker: str, bare: Link) -> None:
    runs: Counter[int] = Counter()
    attempts: dict[int, list[int]] = {}

    class Each:
        name = "each"

        @consume("each", batch=Batch(size=10, within=0.1), retry=Retry(3, fixed("50ms")))
        async def work(self, items: list[int]) -> list[Any]:
            runs.update(items)
            call = get_current_call()
            assert call is not None
            for item, own in zip(items, call.items, strict=True):
                attempts.setdefault(item, []).append(own.attempt)
            outcomes: dict[int, Any] = {
                0: "done",
                1: "retry" if runs[1] < 3 else "done",
                2: "dead",
                3: LookupError("never"),
                4: DeadLetter("odd"),
                5: Redeliver(0.01) if runs[5] < 2 else None,
            }
            return [outcomes.get(item) for item in items]

    async with run_services(Each, broker=broker, timeout=15):
        await publish(bare, "each", numbers(10))
        dead = await read_dead_letters(bare, "each", 3, 20)
        await eventually(lambda: runs[1] == 3 and runs[5] == 2 and runs[3] == 3, 30)
    assert await _is_empty(bare, "each")

    assert {int(letter.body): reason(letter) for letter in dead} == {
        2: "rejected",
        3: "too_many_attempts",
        4: "odd",
    }
    assert attempts[1] == [1, 2, 3]
    assert all(runs[n] == 1 for n in (0, 2, 4, 6, 7, 8, 9))


@pytest.mark.timeout(120)
async def test_error_of_the_method_is_each_item_s(broker: str, bare: Link) -> None:
    runs: Counter[int] = Counter()

    class All:
        name = "all"

        @consume("all", batch=Batch(size=5, within=0.1), retry=Retry(2, fixed("50ms")))
        async def work(self, items: list[int]) -> None:
            runs.update(items)
            raise LookupError("never")

    async with run_services(All, broker=broker, timeout=15):
        await publish(bare, "all", numbers(5))
        dead = await read_dead_letters(bare, "all", 5, 20)

    assert sorted(int(letter.body) for letter in dead) == list(range(5))
    assert {(letter.properties.headers or {})["x-mycelia-attempts"] for letter in dead} == {2}
    assert set(runs.values()) == {2}


@pytest.mark.timeout(120)
async def test_what_cannot_be_read_is_dead_lettered_alone(broker: str, bare: Link) -> None:
    seen: list[int] = []

    class Reads:
        name = "reads"

        @consume("reads", batch=Batch(size=6, within=0.1), retry=None)
        async def work(self, items: list[int]) -> list[str]:
            seen.extend(items)
            return ["done"] * len(items)

    async with run_services(Reads, broker=broker, timeout=15):
        await publish(bare, "reads", [b"0", b"{", b"2", b"\xff", b"4", b"5"])
        dead = await read_dead_letters(bare, "reads", 2, 20)
        await eventually(lambda: len(seen) == 4, 30)
        await publish(bare, "reads", [b"{"])  # a list of nothing but that
        (last,) = await read_dead_letters(bare, "reads", 1, 20)
    assert await _is_empty(bare, "reads")

    assert sorted(letter.body for letter in dead) == [b"{", b"\xff"]
    assert {reason(letter) for letter in [*dead, last]} == {"undecodable"}
    assert sorted(seen) == [0, 2, 4, 5]


class AskedInVain:
    """What cannot be compared, as an array of several numbers."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value of an array is ambiguous")

    def __repr__(self) -> str:
        return "AskedInVain()"


class ListThatBreaks(list[str]):
    def __iter__(self) -> Any:
        raise ValueError("it was read before")

    def __repr__(self) -> str:
        return "ListThatBreaks()"


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "value",
    [
        [],
        ["done"] * 9,
        {"a": 1},
        "done",
        3,
        ["perhaps"] * 3,
        [LookupError, "done", "done"],
        ["done", Redeliver("5s"), "done"],  # type: ignore[arg-type]
        ["done", "done", Redeliver(float("nan"))],
        [Redeliver(float("inf")), "done", "done"],
        ["done", AskedInVain(), "done"],
        ListThatBreaks(["done", "done", "done"]),
    ],
    ids=repr,
)
async def test_value_that_is_no_list_of_outcomes_is_an_error_of_the_whole(value: Any) -> None:
    runs: Counter[int] = Counter()

    class Says:
        name = "says"

        @event_handler("feed", "said", batch=Batch(size=3, within=0.1), retry=None)
        async def said(self, items: list[int]) -> Any:
            runs.update(items)
            return value

    async with run_services(Says) as bed:
        for n in range(3):
            await bed.client.publish("feed", "said", n)
        link = bed.container(Says).host.link
        dead = await read_dead_letters(link, "evt-feed-said--says.said", 3, 10)

    assert {(letter.properties.headers or {})["x-mycelia-error-type"] for letter in dead} == {
        "RuntimeStateError"
    }
    assert runs == {0: 1, 1: 1, 2: 1}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
async def test_connection_that_is_cut_in_the_middle_loses_none(
    request: pytest.FixtureRequest, broker: str, bare: Link, queue_type: str
) -> None:
    done: Counter[int] = Counter()

    class Cut:
        name = "cut"

        @consume(
            Queue("cut", arguments={"x-queue-type": queue_type}),
            batch=Batch(size=50, within=0.05),
            concurrency=2,
        )
        async def work(self, items: list[int]) -> None:
            await asyncio.sleep(0.02)
            done.update(items)

    async with run_services(Cut, broker=broker, timeout=15) as bed:
        await publish(bare, "cut", numbers(3000))
        link = bed.container(Cut).host.link
        for share in (300, 900, 1500):
            await until(lambda share=share: len(done) >= share, lambda: len(done), what="some")
            await _cut(request, broker, link)
        await until(lambda: len(done) == 3000, lambda: len(done), what="all 3000")

    assert done == Counter(range(3000))
    assert await _is_empty(bare, "cut")


@pytest.mark.timeout(120)
async def test_list_that_runs_while_the_connection_is_cut_runs_once(
    request: pytest.FixtureRequest, broker: str, bare: Link
) -> None:
    """Its messages are settled as they come again; those of the list that waits behind it have not begun."""
    begun: Counter[int] = Counter()
    gate = asyncio.Event()

    class Runs:
        name = "runs"

        @consume("runs", batch=Batch(size=10, within=0.1))
        async def work(self, items: list[int]) -> None:
            begun.update(items)
            await gate.wait()

    async with run_services(Runs, broker=broker, timeout=15) as bed:
        await publish(bare, "runs", numbers(20))
        await eventually(lambda: begun.total() == 10, 30)
        await _cut(request, broker, bed.container(Runs).host.link)
        gate.set()
        await eventually(lambda: len(begun) == 20, 20)
    assert await _is_empty(bare, "runs")

    assert begun == Counter(range(20))


@pytest.mark.long_variants("memory")
@pytest.mark.timeout(240)
async def test_stop_in_the_middle_of_lists_gives_back_what_is_not_done(
    broker: str, bare: Link
) -> None:
    done: Counter[int] = Counter()
    begun = asyncio.Event()

    class Stops:
        name = "stops"

        @consume("stops", batch=Batch(size=50, within=5), concurrency=2)
        async def work(self, items: list[int]) -> None:
            begun.set()
            await asyncio.sleep(0.02 if done.total() < 500 else 0)
            done.update(items)

    await bare.declare(Queue("stops", arguments=QUORUM))
    await publish(bare, "stops", numbers(1020))  # the last list never fills up
    for _ in range(4):
        begun.clear()
        config = {"mycelia": {"grace": 0.01}}
        async with run_services(Stops, broker=broker, timeout=15, config=config):
            # A stop takes a while to come about on a busy machine: the lives before may have left nothing to begin.
            await eventually(lambda: begun.is_set() or len(done) == 1020, 30)
    async with run_services(Stops, broker=broker, timeout=15):
        await until(lambda: len(done) == 1020, lambda: len(done), what="all 1020")

    assert done == Counter(range(1020))  # a list that is cancelled has done nothing


@pytest.mark.timeout(120)
async def test_middleware_sees_the_list_as_one_call_and_can_settle_it(broker: str) -> None:
    seen: list[tuple[int, int]] = []

    async def rejects(call: Call, next: Next) -> Outcome:
        outcome = await next(call)
        seen.append((len(call.items), len(call.args[0])))
        return outcome.replace(settlement=DeadLetter("held")) if call.items else outcome

    class Source:
        def middleware(self, direction: Any, target: Any) -> Middleware | None:
            return rejects if target.name == "watched.said" else None

    class Watched:
        name = "watched"

        @event_handler("feed", "said", batch=Batch(size=3, within=0.2))
        async def said(self, items: list[int]) -> None: ...

    async with run_services(Watched, broker=broker, timeout=15, middleware=[Source()]) as bed:
        for n in range(3):
            await bed.client.publish("feed", "said", n)
        link = bed.container(Watched).host.link
        dead = await read_dead_letters(link, "evt-feed-said--watched.said", 3, 10)

    assert sum(size for size, _ in seen) == 3
    assert {reason(letter) for letter in dead} == {"held"}


def test_prefetch_is_never_less_than_a_list() -> None:
    class Wide:
        name = "wide"

        @event_handler("feed", "said", batch=Batch(size=500), prefetch=10)
        async def said(self, items: list[int]) -> None: ...

    async def run() -> int:
        async with run_services(Wide) as bed:
            (entrypoint,) = bed.container(Wide).entrypoints
            return int(entrypoint.statistics().prefetch)

    assert asyncio.run(run()) == 500


@pytest.mark.parametrize(
    "options",
    [
        {"batch": 500},
        {"batch": Batch(), "key": "tail"},
        {"batch": Batch(), "kill_switch": KillSwitch()},
    ],
)
def test_what_does_not_go_together_is_said_where_it_is_written(options: Any) -> None:
    with pytest.raises(ConfigError, match="batch="):

        class Wrong:
            name = "wrong"

            @consume("wrong", **options)
            def work(self, payload: object) -> None: ...


@pytest.mark.parametrize(
    "values", [{"size": 0}, {"size": 70000}, {"within": "soon"}, {"within": -1}]
)
def test_batch_that_cannot_be_is_said_where_it_is_written(values: Any) -> None:
    with pytest.raises(ConfigError):
        Batch(**values)
