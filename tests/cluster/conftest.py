"""Services and clients on a cluster of three nodes, one of which is killed."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator

import pytest
from tests.tools import version_tuple

from mycelia import Runner
from mycelia.broker import ManagementApi, PrivateCluster, PrivateNode
from mycelia.testing import eventually


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test waits for three nodes to start, each for killed ones to come back."""
    for item in items:
        if "tests/cluster" in str(item.path) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(240))


class Scene:
    """One virtual host of a cluster, and what a test does to the cluster."""

    def __init__(self, cluster: PrivateCluster, vhost: str) -> None:
        self.cluster = cluster
        self.vhost = vhost
        self._runners: list[Runner] = []

    def uri(self, *first: PrivateNode, without: PrivateNode | None = None) -> str:
        """The AMQP URI with these nodes first, then the others."""
        order = [*first, *(node for node in self.cluster.nodes if node not in first)]
        return self.cluster.uri(self.vhost, nodes=[node for node in order if node is not without])

    @property
    def api(self) -> ManagementApi:
        return self.cluster.api

    @property
    def is_rabbitmq_4(self) -> bool:
        """Whether a durable classic queue stays known as alive while its node is dead, as it does from 4.0 on."""
        return version_tuple(self.cluster.nodes[0].status().version) >= (4,)

    async def home_of(self, queue: str) -> PrivateNode:
        return await asyncio.to_thread(self.cluster.home_of, self.vhost, queue)

    async def kill(self, node: PrivateNode) -> None:
        """SIGKILL; returns when the others have noticed."""
        await asyncio.to_thread(node.kill)
        await asyncio.to_thread(self.cluster.await_members)

    async def bring_back(self, node: PrivateNode) -> None:
        await asyncio.to_thread(node.start, 120, leash=True)

    async def message_count(self, queue: str) -> int:
        """Messages in a queue as the statistics have it: wait for a number, do not read once."""
        found = await asyncio.to_thread(self.api.queue, self.vhost, queue)
        return int((found or {}).get("messages", -1))

    async def await_replicas(self, queue: str) -> None:
        """Wait until a quorum queue has a member on each node that is up: before that, a kill may cost its majority."""

        async def has_all() -> bool:
            found = await asyncio.to_thread(self.api.queue, self.vhost, queue) or {}
            return len(found.get("online", ())) == len(self.cluster.nodes)

        await eventually(has_all, 30, what=f"{queue} replicated")

    async def serve(
        self, service: type, uri: str, timeout: float = 30, **section: object
    ) -> Runner:
        """Start a service; it is stopped at the end of the test."""
        runner = Runner({"AMQP_URI": uri, "mycelia": {"grace": 1, **section}}, [service])
        self._runners.append(runner)
        await runner.start(timeout)
        return runner

    async def stop_services(self) -> None:
        for runner in self._runners:
            await runner.stop()


@pytest.fixture
def cluster_vhost(rabbit_cluster: PrivateCluster) -> Iterator[str]:
    """The name of a fresh virtual host on the cluster."""
    name = f"test-{secrets.token_hex(6)}"
    rabbit_cluster.api.create_vhost(name)
    yield name
    rabbit_cluster.start(leash=True)
    rabbit_cluster.api.delete_vhost(name)


@pytest.fixture
async def scene(rabbit_cluster: PrivateCluster, cluster_vhost: str) -> AsyncIterator[Scene]:
    scene = Scene(rabbit_cluster, cluster_vhost)
    yield scene
    await scene.stop_services()
