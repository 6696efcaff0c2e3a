"""Flows of several stages in services: records are split anew, and counts over four partitions are those of SQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.flows.carriers import (
    BY_CARRIER,
    LEFT,
    PARTITIONS,
    ByCarrier,
    Carriers,
    closing,
    flights,
    sql_counts,
)
from tests.flows.counting import Tally, config

from mycelia import Client
from mycelia.flow import FlowHandler, FlowStatistics
from mycelia.testing import ServiceBed, eventually, run_services


def statistics(bed: ServiceBed, service: type) -> FlowStatistics:
    (handler,) = [e for e in bed.container(service).entrypoints if isinstance(e, FlowHandler)]
    return handler.statistics()


async def append(client: Client, log: Any, records: list[Any], batch: int = 500) -> None:
    for begin in range(0, len(records), batch):
        await client.append_many(log, records[begin : begin + batch])


def by_carrier(tally: Tally) -> dict[tuple[str, int], tuple[int, int]]:
    found: dict[tuple[str, int], tuple[int, int]] = {}
    for record in tally.by_id().values():
        one: ByCarrier = record.value
        assert (one.carrier, one.start_ms) not in found, f"{one} has another result"
        found[one.carrier, one.start_ms] = one.flights, one.delay
    return found


async def test_keys_that_change_are_counted_over_all_partitions(
    broker: str, tmp_path: Path
) -> None:
    left = flights(10_000)
    wanted = sql_counts(left)
    async with Client(broker) as client:
        await append(client, LEFT, left[:6_000])
        tally = Tally(client, BY_CARRIER)
        async with run_services(Carriers, broker=broker, config=config(tmp_path)) as bed:
            await append(client, LEFT, left[6_000:] + closing())
            await eventually(lambda: tally.has(len(wanted)), 40)
            told = statistics(bed, Carriers)
        await tally.aclose()

    assert by_carrier(tally) == wanted
    assert len(tally.records) == len(wanted), "nothing was there twice"
    assert list(told.stages) == ["carriers.counted", "carriers.counted.key_by-1"]
    assert told.records == 10_000 + PARTITIONS
    assert told.stages["carriers.counted.key_by-1"].records == PARTITIONS + sum(
        one.delay >= 0 for one in left
    )
