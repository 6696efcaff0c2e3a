"""Two of three nodes die: a flow whose streams and leases have no majority left can be stopped all the same, as a supervisor stops it."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest
from tests.cluster.conftest import Scene
from tests.flows.counting import Counting, Tally, append, config, departures
from tests.flows.machines import changelog_config

from mycelia import Client
from mycelia.broker import PrivateCluster
from mycelia.testing import eventually

STOPS_WITHIN_S = 30.0
"""A supervisor's patience, that of Kubernetes: what has not ended by then is killed."""


@pytest.fixture
def rabbit_cluster(own_rabbit_cluster: PrivateCluster) -> PrivateCluster:
    return own_rabbit_cluster


@pytest.fixture
def cluster_vhost(rabbit_cluster: PrivateCluster) -> str:
    name = f"test-{secrets.token_hex(6)}"
    rabbit_cluster.api.create_vhost(name)
    return name


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["files", "changelog"])
async def test_flow_stops_in_good_order_where_the_broker_has_no_majority(
    scene: Scene, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    flights = departures(4_000)
    made = changelog_config if kind == "changelog" else config
    flows = made(tmp_path)["mycelia"]["flows"]
    first, *others = scene.cluster.nodes
    async with Client(scene.uri(first)) as client:
        tally = Tally(client)
        runner = await scene.serve(Counting, scene.uri(first), flows=flows)
        for begin in range(0, 2_000, 100):
            await append(client, flights[begin : begin + 100])
        await eventually(lambda: tally.has(100), 60)
        await append(client, flights[2_000:])  # some of it is under way when nobody answers
        await asyncio.gather(*(asyncio.to_thread(node.kill) for node in others))

        async with asyncio.timeout(STOPS_WITHIN_S):
            await runner.stop()
        await tally.aclose()

    assert "extension_hook_failed" not in caplog.text
