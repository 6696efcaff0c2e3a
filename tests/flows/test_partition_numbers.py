"""A log that is made anew with another number of partitions: a flow whose state is of the former ones does not start over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.flows.counting import Departed, departures

from mycelia import Client, Log
from mycelia.errors import ConfigError
from mycelia.flow import FlowHandler, FlowOutput, Stream, count, flow, tumbling
from mycelia.logs.layout import stream_name
from mycelia.logs.partition_lease import lease_queue
from mycelia.testing import eventually, run_services


def log_of(partitions: int) -> Log[Departed]:
    return Log("redeparted", of=Departed, key="origin", partitions=partitions)


def counting(log: Log[Departed], **options: Any) -> type:
    class Counting:
        name = "counting"

        @flow(log, commit_every="20ms", **options)
        def by_origin(self, flights: Stream[Departed]) -> FlowOutput:
            return (
                flights.event_time(lambda one: one.at_ms, unit="ms", disorder="5s")
                .key_by(lambda one: one.origin)
                .window(tumbling("2s"))
                .aggregate(count())
                .emit("counted")
            )

    return Counting


async def run(uri: str, service: type, config: dict[str, Any], total: int) -> None:
    async with run_services(service, broker=uri, config=config) as bed:
        (handler,) = [
            one for one in bed.container(service).entrypoints if isinstance(one, FlowHandler)
        ]
        await eventually(lambda: handler.statistics().records == total, 30)


async def make_anew(client: Client, before: Log[Departed], after: Log[Departed]) -> None:
    """As who wants another number of partitions does it by hand: with more in it than the flow had come to."""
    for partition in range(before.partitions):
        await client.link.delete_queue(stream_name(before.name, partition))
    await client.link.delete_exchange(before.name)
    for begin in range(0, 400, 20):
        await client.append_many(after, departures(400)[begin : begin + 20])


@pytest.fixture(params=["files", "changelog", "postgresql"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    of = {
        "files": lambda: {"state": str(tmp_path)},
        "changelog": lambda: {"state": str(tmp_path), "changelog": True},
        "postgresql": lambda: {"state": request.getfixturevalue("postgres_uri")},
    }
    return {"mycelia": {"flows": of[request.param]()}}


@pytest.mark.parametrize(("before", "after", "than"), [(4, 8, "fewer"), (8, 4, "more")])
async def test_flow_does_not_start_over_other_partitions_than_its_state_is_of(
    rabbit_uri: str, state: dict[str, Any], before: int, after: int, than: str
) -> None:
    """Also where the new log has come past the offsets of the old one, so that no position is gone."""
    old, new = log_of(before), log_of(after)
    async with Client(rabbit_uri) as client:
        await client.append_many(old, departures(200))
        await run(rabbit_uri, counting(old), state, 200)
    async with Client(rabbit_uri) as client:
        await make_anew(client, old, new)
        with pytest.raises(ConfigError, match=rf"counting.by_origin: .* over {than} of them"):
            await run(rabbit_uri, counting(new), state, 400)

        await run(rabbit_uri, counting(new, group="anew"), state, 400)


async def test_start_that_was_cut_short_is_no_other_number(broker: str, tmp_path: Path) -> None:
    """Where nothing is kept yet, a group's first queue alone says nothing."""
    log = log_of(4)
    config = {"mycelia": {"flows": {"state": str(tmp_path)}}}
    async with Client(broker) as client:
        await client.append_many(log, departures(100))
        await client.link.declare(lease_queue(log.name, "counting.by_origin", 0))

        await run(broker, counting(log), config, 100)
