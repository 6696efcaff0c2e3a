"""The four services behind the page, on a broker: `memory://` and RabbitMQ."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from services.flights.dataset import Tables, flights_of
from services.flights.delays import Delays
from services.flights.enrich import Enrich
from services.flights.feed import Feed, Stage, between, new_run_id
from services.flights.messages import due_events
from services.flights.registry import Registry
from services.flights.replay import Replay
from services.flights.verify import Batch, compare
from tests.services.pipeline_by_hand import enriched_events
from tests.services.tables import EIGHTH, FORTNIGHT

from mycelia import Client, Runner
from mycelia.errors import RemoteError

BLIZZARD = "2013-02-08"

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(params=["memory", "rabbit"])
def broker_uri(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return f"memory://{request.node.name}"
    uri: str = request.getfixturevalue("rabbit_uri")
    return uri


@asynccontextmanager
async def running(uri: str, *services: type) -> AsyncIterator[Client]:
    async with Runner({"AMQP_URI": uri, "feed": {"in_flight": 64}}, services):
        async with Client(uri, timeout=20) as client:
            yield client


async def until(
    ask: Callable[[], Awaitable[Any]], holds: Callable[[Any], bool], within: float = 60
) -> Any:
    """Asks until what comes back holds, and returns it."""
    latest = None
    try:
        async with asyncio.timeout(within):
            while not holds(latest := await ask()):  # noqa: ASYNC110  what is asked is elsewhere
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"not within {within:g} s; the last answer was {latest!r:.500}")
    return latest


async def counted(client: Client, run: str, events: int) -> dict[str, Any]:
    """Waits until `delays` has counted so many events; returns its summary."""
    summary: dict[str, Any] = await until(
        lambda: client.call("delays", "summary", run=run), lambda s: s["counted"] >= events
    )
    return summary


async def differences(client: Client, tables: Tables, run: str) -> list[str]:
    page = await client.call("delays", "snapshot", limit=100_000, run=run)
    batch = Batch(tables)
    try:
        return compare(
            batch,
            await client.call("delays", "changes", run=run),
            page["hourly"],
            page["legs"],
            await client.call("delays", "worst", 100, run=run),
        ).differences
    finally:
        batch.close()


async def test_every_figure_of_a_replayed_day_is_the_batch_query_s(broker_uri: str) -> None:
    async with running(broker_uri, Registry, Delays, Enrich, Feed) as client:
        status = await client.call(
            "feed", "start", via="events", speed=0, first_day=BLIZZARD, last_day=BLIZZARD
        )
        summary = await counted(client, status["run"], status["total"])
        wrong = await differences(client, EIGHTH, status["run"])
        after = await client.call("feed", "status")
        cache = await client.call("enrich", "cache_statistics")

    assert wrong == []
    assert summary["total"]["scheduled"] == 930
    assert summary["latency"]["count"] == status["total"] == after["confirmed"]
    assert after["state"] == "finished"
    assert cache["loads"] == cache["entries"] < 2_000  # no key was asked for twice


@pytest.mark.long_variants("memory")
async def test_two_replays_are_kept_apart(broker_uri: str) -> None:
    async with running(broker_uri, Registry, Delays, Enrich, Feed) as client:
        day: dict[str, Any] = {"first_day": BLIZZARD, "last_day": BLIZZARD, "via": "events"}
        aborted = await client.call("feed", "start", speed=0, **day)
        await counted(client, aborted["run"], 100)
        status = await client.call("feed", "start", speed=0, **day)
        await counted(client, status["run"], status["total"])
        wrong = await differences(client, EIGHTH, status["run"])
        newest = await client.call("delays", "summary")

    assert wrong == []
    assert newest["run"] == status["run"] > aborted["run"]


async def test_events_delivered_again_and_out_of_order_are_counted_once(broker_uri: str) -> None:
    tables = EIGHTH._replace(flights=EIGHTH.flights[500:560])
    events = enriched_events(tables, run=new_run_id())
    async with running(broker_uri, Delays) as client:
        async with asyncio.TaskGroup() as group:
            for event in [*reversed(events), *events]:
                group.create_task(client.publish("enrich", "flight_enriched", event))
        run = events[0]["run"]
        summary = await until(
            lambda: client.call("delays", "summary", run=run),
            lambda s: s["counted"] + s["duplicates"] == 2 * len(events),
        )
        wrong = await differences(client, tables, run)

    assert wrong == []
    assert (summary["counted"], summary["duplicates"]) == (len(events), len(events))


@pytest.mark.long_variants("memory")
async def test_a_replay_at_a_pace_can_be_stopped_and_another_started(broker_uri: str) -> None:
    async with running(broker_uri, Registry, Delays, Enrich, Feed) as client:
        slow = await client.call("feed", "start", via="events", speed=60, first_day=BLIZZARD)
        await until(lambda: client.call("feed", "status"), lambda s: s["confirmed"] > 0)
        await client.call("feed", "stop")
        stopped = await until(
            lambda: client.call("feed", "status"), lambda s: s["state"] == "stopped"
        )
        again = await client.call(
            "feed", "start", via="events", speed=0, first_day="2013-02-09", last_day="2013-02-09"
        )
        finished = await until(
            lambda: client.call("feed", "status"), lambda s: s["state"] == "finished"
        )

    assert stopped["run"] == slow["run"]
    assert stopped["confirmed"] < slow["total"]
    assert finished["confirmed"] == again["total"] == finished["total"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"speed": -1}, "speed=-1: expected"),
        ({"first_day": "8 February"}, "first_day='8 February': expected a day such as 2013-02-08"),
        ({"last_day": "2013-02-30"}, "last_day='2013-02-30': expected a day"),
    ],
)
async def test_a_replay_that_cannot_be_is_refused(arguments: dict[str, Any], says: str) -> None:
    async with running("memory://refused", Feed) as client:
        with pytest.raises(RemoteError, match=says):
            await client.call("feed", "start", **arguments)
        status = await client.call("feed", "status")

    assert status["state"] == "idle"


async def test_a_replay_stopped_before_its_first_event_never_begins() -> None:
    emitted: list[str] = []

    async def emit(kind: str, event: Any) -> None:
        emitted.append(kind)

    stage = Stage()
    await stage.start()
    events = due_events(flights_of(EIGHTH._replace(flights=EIGHTH.flights[:3])))
    dropped, played = (Replay(run, events, speed=0, in_flight=2) for run in ("1", "2"))
    stage.begin(dropped, emit)
    stage.end()
    stage.begin(played, emit)
    await until(_async(stage.status), lambda status: status["state"] == "finished")
    await stage.stop()

    assert dropped.status()["state"] == "stopped"
    assert len(emitted) == len(events)


def _async(ask: Callable[[], Any]) -> Callable[[], Awaitable[Any]]:
    async def asked() -> Any:
        return ask()

    return asked


async def test_a_replay_that_nobody_handles_fails_and_says_so(broker_uri: str) -> None:
    async with running(broker_uri, Feed) as client:
        await client.call(
            "feed", "start", via="events", speed=0, first_day=BLIZZARD, last_day=BLIZZARD
        )
        status = await until(
            lambda: client.call("feed", "status"),
            lambda s: s["state"] not in ("waiting", "running"),
        )

    assert status["state"] == "failed"
    assert status["error"].startswith("Unroutable: no queue is bound")


async def test_enrich_outlasts_a_registry_that_comes_late(broker_uri: str) -> None:
    """What cannot be joined yet is tried again, and counted once it can be."""
    tables = EIGHTH._replace(flights=EIGHTH.flights[:30])
    async with running(broker_uri, Delays, Enrich) as client:
        events = enriched_events(tables, run=new_run_id())
        for event in events:
            await client.publish("feed", event["kind"], _bare(event))
        async with Runner({"AMQP_URI": broker_uri}, [Registry]):
            await counted(client, events[0]["run"], len(events))
            wrong = await differences(client, tables, events[0]["run"])

    assert wrong == []


def _bare(event: Any) -> dict[str, Any]:
    """The event as the feed says it."""
    joined = ("carrier_name", "plane", "origin_airport", "dest_airport", "weather", "enriched_at")
    return {key: value for key, value in event.items() if key not in joined}


@pytest.mark.long_variants("memory")
async def test_a_killed_enrich_loses_nothing_and_counts_nothing_twice(broker_uri: str) -> None:
    """Killed with events in hand and unconfirmed ones on the way; another instance takes over."""
    async with running(broker_uri, Registry, Delays, Feed) as client:
        first = Runner({"AMQP_URI": broker_uri}, [Enrich])
        await first.start()
        status = await client.call(
            "feed", "start", via="events", speed=0, first_day=BLIZZARD, last_day=BLIZZARD
        )
        await counted(client, status["run"], 300)
        await first.kill()
        async with Runner({"AMQP_URI": broker_uri}, [Enrich]):
            await counted(client, status["run"], status["total"])
            wrong = await differences(client, EIGHTH, status["run"])

    assert wrong == []


async def test_registry_answers_one_and_many_and_says_null_for_the_unknown(broker_uri: str) -> None:
    async with running(broker_uri, Registry) as client:
        plane = await client.call("registry", "plane", "N203FR")
        planes = await client.call("registry", "planes", ["N203FR", "NONE"])
        carriers = await client.call("registry", "carriers", ["UA", "??"])
        airport = await client.call("registry", "airport", "SJU")
        airports = await client.call("registry", "airports", ["SJU", "XXX"])
        carrier = await client.call("registry", "carrier", "B6")
        weather = await client.call("registry", "weather", "JFK", "2013-02-08T22:00:00Z")
        unknown = await client.call("registry", "weather", "JFK", "1999-01-01T00:00:00Z")

    assert (plane["manufacturer"], plane["seats"]) == ("AIRBUS INDUSTRIE", 182)
    assert planes == {"N203FR": plane, "NONE": None}
    assert carriers == {"UA": "United Air Lines Inc.", "??": None}
    assert airports == {"SJU": airport, "XXX": None}
    assert airport["zone"] == "America/Puerto_Rico"
    assert carrier == "JetBlue Airways"
    assert weather["visibility_mi"] is not None
    assert unknown is None


async def test_pages_of_the_snapshot_are_the_whole(broker_uri: str) -> None:
    events = enriched_events(EIGHTH._replace(flights=EIGHTH.flights[:200]), run=new_run_id())
    async with running(broker_uri, Delays) as client:
        async with asyncio.TaskGroup() as group:
            for event in events:
                group.create_task(client.publish("enrich", "flight_enriched", event))
        await counted(client, events[0]["run"], len(events))
        whole = await client.call("delays", "snapshot", limit=100_000)
        hourly, legs, offset = [], [], 0
        while offset is not None:
            page = await client.call("delays", "snapshot", offset=offset, limit=37)
            hourly += page["hourly"]
            legs += page["legs"]
            offset = page["next"]

    assert whole["next"] is None
    assert (hourly, legs) == (whole["hourly"], whole["legs"])
    assert len(legs) > 150


def test_run_ids_sort_by_time_and_differ() -> None:
    ids = [new_run_id() for _ in range(100)]

    assert len(set(ids)) == 100
    assert [one[:22] for one in ids] == sorted(one[:22] for one in ids)


def test_days_are_those_of_the_schedule_both_included() -> None:
    events = due_events(flights_of(FORTNIGHT))

    def days(first: str | None, last: str | None) -> list[str]:
        return sorted({due.flight.date for due in between(events, first, last)})

    assert days("2013-02-08", "2013-02-09") == ["2013-02-08", "2013-02-09"]
    assert days("2013-02-14", None) == ["2013-02-14", "2013-02-15"]
    assert len(days(None, None)) == 15
    assert days("2013-02-09", "2013-02-08") == []
