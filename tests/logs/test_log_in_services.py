"""`Log` in a service, in `async def` and `def` methods, and for programs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from mycelia import BlockingClient, Client, Log, Record, rpc
from mycelia.amqp import Link
from mycelia.errors import (
    ConfigError,
    ContractError,
    IncorrectSignature,
    RuntimeStateError,
    TopologyError,
)
from mycelia.testing import run_services


@dataclass
class Departure:
    flight: str
    origin: str


DEPARTED: Log[Departure] = Log(
    "flights.departed", of=Departure, key="origin", partitions=2, retain="7d", linger="1ms"
)


class Tower:
    name = "tower"
    departed = DEPARTED
    blocking = DEPARTED.blocking

    @rpc
    async def depart(self, flight: str, origin: str) -> None:
        await self.departed.append(Departure(flight, origin))

    @rpc
    async def depart_all(self, flights: list[str]) -> None:
        await self.departed.append_many([Departure(flight, "JFK") for flight in flights])

    @rpc
    def depart_slowly(self, flight: str) -> None:
        self.blocking.append(Departure(flight, "JFK"))
        self.departed.append_many([Departure(flight, "LGA")])  # type: ignore[unused-coroutine]

    @rpc
    async def depart_wrongly(self) -> None:
        await self.departed.append({"flight": 1})  # type: ignore[arg-type]


async def flights(link: Link, partition: int, count: int) -> list[Record[Departure]]:
    records: list[Record[Departure]] = []
    async with DEPARTED.reader(link, partition) as reader:
        while len(records) < count:
            entry = await reader.take(10)
            assert entry is not None
            records += entry.records
    return records


async def test_service_appends_from_methods_of_both_kinds(broker: str) -> None:
    async with run_services(Tower, broker=broker) as bed, Client(broker) as client:
        await bed.client.call("tower", "depart", "AA1", "JFK")
        await bed.client.call("tower", "depart_all", ["AA2", "AA3"])
        await bed.client.call("tower", "depart_slowly", "AA4")
        with pytest.raises(ContractError, match="a dict has no key"):
            await bed.client.call("tower", "depart_wrongly")

        at_jfk = await flights(client.link, 1, 4)
        assert [one.value.flight for one in at_jfk] == ["AA1", "AA2", "AA3", "AA4"]
        assert {one.key for one in at_jfk} == {"JFK"}
        assert all(one.time is not None and one.time > 1_700_000_000_000 for one in at_jfk)
        (at_lga,) = await flights(client.link, 0, 1)
        assert at_lga.value == Departure("AA4", "LGA")


async def test_program_appends_and_reads(broker: str) -> None:
    async with Client(broker) as client:
        await asyncio.gather(
            *(client.append(DEPARTED, Departure(f"AA{n}", "JFK")) for n in range(50))
        )
        await client.append_many(DEPARTED, [Departure("BA1", "JFK")], headers=[{"x": 1}])

        read = await flights(client.link, 1, 51)

    assert {one.value.flight for one in read} == {*(f"AA{n}" for n in range(50)), "BA1"}
    assert read[-1].headers == {"x": 1}


async def test_client_that_is_closed_sends_what_is_there(broker: str) -> None:
    lingering: Log[Departure] = Log(
        "flights.departed", of=Departure, key="origin", partitions=2, linger="60s"
    )
    async with Client(broker) as client:
        await client.append_many(lingering, [])
        append = asyncio.ensure_future(client.append(lingering, Departure("AA1", "JFK")))
        await asyncio.sleep(0)
    await append

    async with Client(broker) as client:
        assert len(await flights(client.link, 1, 1)) == 1
    with pytest.raises(RuntimeStateError, match="not open"):
        await client.append(DEPARTED, Departure("AA2", "JFK"))


async def test_append_of_a_client_that_is_closed_meanwhile_is_told(broker: str) -> None:
    async with Client(broker) as client:
        append = asyncio.ensure_future(client.append(DEPARTED, Departure("AA1", "JFK")))
        await asyncio.sleep(0)
    with pytest.raises(RuntimeStateError, match="closed before anything was appended"):
        await append


async def test_blocking_client_appends(broker: str) -> None:
    def run() -> None:
        with BlockingClient(broker) as client:
            client.append(DEPARTED, Departure("AA1", "JFK"), key="LGA")
            client.append_many(DEPARTED, [Departure("AA2", "LGA")])

    await asyncio.to_thread(run)

    async with Client(broker) as client:
        assert [one.value.flight for one in await flights(client.link, 0, 2)] == ["AA1", "AA2"]


async def test_service_that_is_stopped_sends_what_is_there(rabbit_uri: str) -> None:
    begun = asyncio.Event()

    class Lingering:
        name = "lingering"
        departed = Log("flights.departed", of=Departure, key="origin", partitions=2, linger="60s")

        @rpc
        async def depart(self) -> None:
            append = asyncio.ensure_future(self.departed.append(Departure("AA1", "JFK")))
            begun.set()
            await asyncio.shield(append)

    async with run_services(
        Lingering, broker=rabbit_uri, config={"mycelia": {"grace": 0.2}}
    ) as bed:
        call = asyncio.ensure_future(bed.client.call("lingering", "depart", timeout=5))
        await begun.wait()
        call.cancel()

    async with Client(rabbit_uri) as client:
        assert len(await flights(client.link, 1, 1)) == 1


async def test_log_that_exists_otherwise_stops_the_start(broker: str) -> None:
    class Other:
        name = "other"
        departed = Log("flights.departed", partitions=3)

    async with Client(broker) as client:
        await DEPARTED.declare(client.link)
        with pytest.raises(TopologyError, match="with 3 partitions, but there are fewer"):
            async with run_services(Other, broker=broker):
                pass


async def test_writer_tells_what_it_has_done(broker: str) -> None:
    async with run_services(Tower, broker=broker) as bed:
        await bed.client.call("tower", "depart_all", ["AA2", "AA3"])

        statistics = bed.container(Tower).statistics()
        appended = [one for one in statistics.extensions.values() if getattr(one, "batches", 0)]
        assert [(one.records, one.unconfirmed_bytes) for one in appended] == [(2, 0)]  # type: ignore[attr-defined]


async def test_append_leaves_in_time_however_long_it_may_wait_for_others(broker: str) -> None:
    patient = Log("patient", partitions=1, linger="1h", timeout="500ms")
    async with Client(broker) as client:
        await client.append(patient, "one")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"partitions": 0}, "partitions=0"),
        ({"key": "nowhere", "of": Departure}, "no such field; it has flight, origin"),
        ({"key": 7}, "key=7; expected a field's name or a function"),
        ({"compression": "brotli"}, "no compression 'brotli'"),
        ({"linger": "soon"}, "linger="),
        ({"timeout": "soon"}, "timeout="),
        ({"timeout": -1}, "timeout="),
        ({"timeout": float("nan")}, "timeout="),
        ({"timeout": 0}, "more than no time"),
        ({"batch_bytes": 0}, "batch_bytes=0"),
        ({"of": str | bytes}, "no type whose values can be read"),
        ({"partition": 3}, "partition"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_log_that_cannot_be_is_refused_where_it_is_written(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises((ConfigError, IncorrectSignature), match=said):
        Log("flights.departed", **options)
