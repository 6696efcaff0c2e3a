"""Dead letters are sent again, each to where it came from, and none is lost, however it ends."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path
from random import Random
from unittest.mock import AsyncMock, Mock

import pytest
from tests.control.letters import AT_ONCE, HANDLER_QUEUE, bodies_in, bury, fate
from tests.processes import Process

from mycelia import BROADCAST, consume, event_handler, get_current_call
from mycelia.amqp import ConsumeOptions, Delivery, Link, Message, Properties, Queue, connect
from mycelia.broker.management_api import ManagementApi
from mycelia.control.dead_letters import (
    IN_FLIGHT,
    LetterFilter,
    Router,
    WalkInterrupted,
    purge,
    redrive,
)
from mycelia.control.dead_letters.redrive import _Run
from mycelia.errors import BrokerUnavailable, TopologyError
from mycelia.testing import eventually, run_services

ALL = LetterFilter()
QUORUM = Queue(HANDLER_QUEUE, arguments={"x-queue-type": "quorum"})


async def test_each_goes_where_it_came_from_as_a_new_message_in_its_trace(link: Link) -> None:
    await link.declare(QUORUM)
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    headers = {
        **fate(attempt=5, returns=2, trace_id="4bf9", left_out="x", expiration="60000"),
        "own": 1,
        "traceparent": trace,
        "x-death": [{"queue": HANDLER_QUEUE, "reason": "expired", "count": 1}],
        "x-first-death-queue": HANDLER_QUEUE,
    }
    dead = await bury(link, 7, headers=headers, message_id="m-1", correlation_id="c")

    report = await redrive(link, dead, Router(link, unattended=True), ALL)

    assert (report.sent, report.looked_at, report.is_complete) == (1, 1, True)
    assert await link.message_count(dead) == 0
    again = await link.get(HANDLER_QUEUE)
    assert again is not None
    again.ack()
    assert (again.body, again.properties.message_id) == (b"7", "m-1")
    assert again.properties.correlation_id == "c"
    headers = again.properties.headers or {}
    assert headers.pop("x-delivery-count", 0) == 0  # RabbitMQ 3.10's
    assert headers == {
        "own": 1,
        "traceparent": trace,
        "x-mycelia-exchange": "feed.events",
        "x-mycelia-routing-key": "departed",
        "x-mycelia-expiration": "60000",
    }


async def test_what_is_not_meant_stays_in_its_order(link: Link) -> None:
    await link.declare(QUORUM)
    for number in range(30):
        dead = await bury(
            link, number, headers=fate(error_type=("KeyError", "OSError")[number % 2])
        )

    report = await redrive(
        link, dead, Router(link, unattended=True), LetterFilter(error="OSError"), limit=10
    )

    assert (report.sent, report.chosen) == (10, 10)
    assert await bodies_in(link, HANDLER_QUEUE) == [str(n) for n in range(20) if n % 2]
    assert await bodies_in(link, dead) == [str(n) for n in range(30) if not (n % 2 and n < 20)]


async def test_dry_run_sends_nothing(link: Link) -> None:
    await link.declare(QUORUM)
    dead = await bury(link, 1, 2, 3)

    report = await redrive(link, dead, Router(link, unattended=True), ALL, dry_run=True)

    assert report.destinations == {f'queue "{HANDLER_QUEUE}"': 3}
    assert report.sent == 0
    assert await bodies_in(link, HANDLER_QUEUE) == []
    assert await bodies_in(link, dead) == ["1", "2", "3"]


async def test_rate_is_kept(link: Link) -> None:
    await link.declare(QUORUM)
    dead = await bury(link, *range(6))
    loop = asyncio.get_running_loop()
    began = loop.time()

    await redrive(link, dead, Router(link, unattended=True), ALL, rate=20)

    assert loop.time() - began >= 0.25


@pytest.mark.parametrize("there", [False, True], ids=["no queue", "no consumer"])
async def test_handler_that_is_gone_keeps_its_dead_letters_and_is_named(
    link: Link, there: bool
) -> None:
    if there:
        await link.declare(QUORUM)
    dead = await bury(link, 1, 2)

    report = await redrive(link, dead, Router(link), ALL)

    (stranded,) = report.stranded
    assert (stranded.queue, report.stranded[stranded], report.sent) == (HANDLER_QUEUE, 2, 0)
    assert ("nobody consumes" if there else "does not exist") in stranded.why
    assert not report.is_complete
    assert await bodies_in(link, dead) == ["1", "2"]


async def test_handler_that_goes_in_the_middle_strands_the_rest(link: Link) -> None:
    await link.declare(QUORUM)
    dead = await bury(link, *range(10))
    router = Router(link, unattended=True)
    await redrive(link, dead, router, ALL, limit=3)
    link.forget(QUORUM)
    await link.delete_queue(HANDLER_QUEUE)

    report = await redrive(link, dead, router, ALL)  # it has asked before

    assert (report.sent, report.stranded.total()) == (0, 7)
    assert await bodies_in(link, dead) == [str(n) for n in range(3, 10)]


async def test_they_can_go_to_another_queue_or_the_exchange_they_came_from(link: Link) -> None:
    await link.declare(Queue("elsewhere"))
    dead = await bury(link, 1, headers={"foreign": 1})
    await bury(link, 2)

    with pytest.raises(TopologyError):
        await redrive(link, dead, Router(link, to="nowhere"), ALL)
    report = await redrive(link, dead, Router(link, to="elsewhere"), ALL)

    assert report.sent == 2
    assert await bodies_in(link, "elsewhere") == ["1", "2"]


async def test_run_that_cannot_go_on_after_a_cut_reports_what_it_has_done(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker does not come back in time, or somebody else is at work on the queue by then."""
    await link.declare(QUORUM)
    dead = await bury(link, *range(10))
    real_walk, walks = _Run._walk, list[int | None]()

    async def walk(run: _Run, count: int | None) -> None:
        walks.append(count)
        if len(walks) > 1:
            raise TopologyError("somebody else consumes from it")
        await real_walk(run, count)
        raise WalkInterrupted("the connection was lost")

    monkeypatch.setattr(_Run, "_walk", walk)
    report = await redrive(link, dead, Router(link, unattended=True), ALL)
    assert (report.sent, report.error) == (10, "TopologyError: somebody else consumes from it")

    await bury(link, *range(10))
    walks.clear()
    gone = BrokerUnavailable("no connection within 30 s")
    monkeypatch.setattr(type(link), "ready", AsyncMock(side_effect=gone))
    report = await redrive(link, dead, Router(link, unattended=True), ALL)
    assert (report.sent, report.error) == (10, str(gone))


async def test_letter_that_cannot_be_sent_for_a_reason_nobody_thought_of_stays(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    await link.declare(QUORUM)
    dead = await bury(link, *range(3))
    module = sys.modules[_Run.__module__]
    monkeypatch.setattr(module, "for_a_new_life", Mock(side_effect=KeyError("x")))

    report = await redrive(link, dead, Router(link, unattended=True), ALL)

    assert report.sent == 0
    assert "KeyError" in (report.error or "")
    assert await bodies_in(link, dead) == ["0", "1", "2"]


async def test_what_is_no_dead_letter_is_left_alone(link: Link) -> None:
    await link.declare(QUORUM)
    dead = await bury(link, 1, headers={"foreign": 1})
    await bury(link, 2)

    report = await redrive(link, dead, Router(link, unattended=True), ALL)
    assert (report.sent, report.foreign) == (1, 1)
    assert (await purge(link, dead, ALL)).sent == 0
    assert (await purge(link, dead, ALL, foreign_too=True)).sent == 1
    assert await link.message_count(dead) == 0


async def test_purge_takes_what_is_meant_and_leaves_what_comes_meanwhile(link: Link) -> None:
    dead = await bury(link, 1)
    await bury(link, 2, headers=fate(error_type="OSError"))
    await bury(link, 3)

    report = await purge(link, dead, LetterFilter(error="KeyError"))

    assert (report.sent, report.looked_at) == (2, 3)
    assert await bodies_in(link, dead) == ["2"]


# --- with the services they came from ------------------------------------------------------------------


class Mended:
    """Fails until it is mended."""

    name = "mended"
    is_mended = False
    handled: list[tuple[str, int, int]]

    def handle(self, name: str, payload: int) -> None:
        call = get_current_call()
        assert call is not None
        if not Mended.is_mended:
            raise LookupError("not yet")
        Mended.handled.append((name, payload, call.attempt))

    @event_handler("source", "happened")
    def happened(self, payload: int) -> None:
        self.handle("happened", payload)

    @event_handler("source", "everywhere", BROADCAST, reliable_delivery=False)
    async def everywhere(self, payload: int) -> None:
        self.handle("everywhere", payload)

    @consume("imports")
    async def imported(self, payload: int) -> None:
        self.handle("imported", payload)


async def test_handlers_of_all_kinds_get_their_own_again(broker: str) -> None:
    """The queue of a broadcast's instance is exclusive to its connection."""
    Mended.is_mended, Mended.handled = False, []
    tool = connect(broker)
    await tool.open(30)
    async with run_services(Mended, broker=broker, timeout=30, config=AT_ONCE) as bed:
        await bed.client.publish("source", "happened", 1)
        await bed.client.publish("source", "everywhere", 2)
        properties = Properties("application/json", "utf-8")
        await tool.publish(Message("", "imports", b"3", properties, mandatory=True))
        dead = [
            "evt-source-happened--mended.happened.dead",
            "evt-source-everywhere--mended.everywhere.dead",
            "imports.dead",
        ]
        for queue in dead:
            await eventually(lambda queue=queue: _holds(tool, queue, 1), 20)  # type: ignore[misc]
        Mended.is_mended = True

        for queue in dead:
            report = await redrive(tool, queue, Router(tool), ALL)
            assert (report.sent, report.is_complete) == (1, True), report

        await eventually(lambda: len(Mended.handled) == 3, 20)
    await tool.aclose()
    assert sorted(Mended.handled) == [("everywhere", 2, 1), ("happened", 1, 1), ("imported", 3, 1)]


async def test_what_fails_again_is_not_sent_round_and_round(broker: str) -> None:
    Mended.is_mended, Mended.handled = False, []
    async with run_services(Mended, broker=broker, timeout=30, config=AT_ONCE) as bed:
        link = bed.container(Mended).host.link
        for number in range(5):
            await bed.client.publish("source", "happened", number)
        dead = "evt-source-happened--mended.happened.dead"
        await eventually(lambda: _holds(link, dead, 5), 20)

        report = await redrive(link, dead, Router(link), ALL)

        assert report.sent == 5
        await eventually(lambda: _holds(link, dead, 5), 20)


async def _holds(link: Link, queue: str, count: int) -> bool:
    try:
        return await link.message_count(queue) == count
    except TopologyError:
        return False


# --- and how it ends -------------------------------------------------------------------------------------


@pytest.mark.long
async def test_cut_connections_lose_nothing(
    rabbit_uri: str, rabbit_api: ManagementApi, rabbit_vhost: str
) -> None:
    count = 3000
    link, other = connect(rabbit_uri), connect(rabbit_uri)
    await link.open(30)
    await link.declare(QUORUM)
    dead = await bury(link, *range(count))
    run = asyncio.create_task(
        redrive(link, dead, Router(link, unattended=True), ALL, rate=600, timeout=60)
    )

    for _ in range(3):
        closed = await eventually(
            lambda: asyncio.to_thread(rabbit_api.close_connections, rabbit_vhost), 20, interval=0.3
        )
        assert closed
        await link.ready(30)
    report = await run

    await other.open(30)
    sent, left = await _all_in(other, HANDLER_QUEUE), await _all_in(other, dead)
    await link.aclose()
    await other.aclose()
    assert report.error is None
    assert set(sent) | set(left) == set(range(count))
    assert left == []


async def _all_in(link: Link, queue: str) -> list[int]:
    found: list[Delivery] = []
    count = await link.message_count(queue)
    consumer = await link.consume(queue, found.extend, ConsumeOptions(no_ack=True))
    await eventually(lambda: len(found) >= count, 30)
    await consumer.aclose()
    return [int(one.body) for one in found]


RUN = """
import asyncio, sys
from mycelia.amqp import connect
from mycelia.control.dead_letters import LetterFilter, Router, redrive

async def main(uri, queue):
    link = connect(uri)
    await link.open(30)
    def told(report):
        if report.sent and not report.sent % 50:
            print("sent", report.sent, flush=True)
    await redrive(link, queue, Router(link, unattended=True), LetterFilter(error="KeyError"), rate=1500, on_progress=told)
    print("done", flush=True)
    await link.aclose()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.long_variants("classic")
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["ours", "classic"])
async def test_killed_at_any_point_each_message_is_somewhere_and_the_others_keep_their_order(
    rabbit_uri: str, tmp_path: Path, kind: str
) -> None:
    """SIGKILL at random points, until a run comes to its end."""
    count = 4000
    random = Random(7)
    link = connect(rabbit_uri)
    await link.open(30)
    await link.declare(QUORUM)
    queue = Queue(f"{HANDLER_QUEUE}.dead") if kind == "classic" else None
    for number in range(0, count, 100):
        errors = "KeyError" if number // 100 % 4 else "OSError"
        dead = await bury(
            link, *range(number, number + 100), queue=queue, headers=fate(error_type=errors)
        )
    meant = {n for n in range(count) if n // 100 % 4}
    kills = 0

    for _ in range(12):
        with Process(sys.executable, "-c", RUN, rabbit_uri, dead, cwd=tmp_path) as process:
            lines = random.randint(1, 10)
            await asyncio.to_thread(
                process.wait_until,
                lambda said, lines=lines: len(said) >= lines or any("done" in one for one in said),
                60,
            )
            if any("done" in line for line in process.lines):
                break
            process.kill()
            kills += 1
    else:
        with Process(sys.executable, "-c", RUN, rabbit_uri, dead, cwd=tmp_path) as process:
            await asyncio.to_thread(process.wait_for, "done")

    sent, left = await _all_in(link, HANDLER_QUEUE), await _all_in(link, dead)
    await link.aclose()
    assert kills >= 2
    assert set(sent) == meant
    assert left == sorted(set(range(count)) - meant)
    assert sum(Counter(sent).values()) - len(meant) <= kills * IN_FLIGHT
