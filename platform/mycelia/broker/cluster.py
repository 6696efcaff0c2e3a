"""A private RabbitMQ cluster: nodes of one machine that know each other, kept in one directory.

    cluster.json      the cookie and the epmd's port, chosen once
    pids.json         the epmd, which all nodes share and which outlives each of them
    node-1/ node-2/ … each a `PrivateNode`, with its own ports and data

For tests and trials of what a cluster does when a node dies: on one machine it makes nothing safer.
"""

from __future__ import annotations

import json
import random
import secrets
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from mycelia.broker.detached import DetachedProcesses
from mycelia.broker.management_api import ManagementApi, ManagementApiError
from mycelia.broker.node import (
    PORT_RANGE,
    ClusterSeat,
    PrivateNode,
    installed_rabbitmq,
    is_free,
    launch_epmd,
)
from mycelia.broker.private_files import private_directory, write_private
from mycelia.errors import BrokerUnavailable

__all__ = ["PrivateCluster"]


class PrivateCluster:
    """A cluster of private nodes. Methods block; none belongs on an event loop.

    Args:
        directory: Made when missing. Holds everything of the cluster.
        size: How many nodes.
        config: More lines for each node's `rabbitmq.conf`.
    """

    def __init__(self, directory: Path, *, size: int = 3, config: Sequence[str] = ()) -> None:
        self.directory = directory.resolve()
        self._processes = DetachedProcesses(self.directory / "pids.json")
        places = [self.directory / f"node-{number}" for number in range(1, size + 1)]
        names = tuple(PrivateNode(place).name for place in places)
        seat = replace(self._seat(), names=names)
        self.nodes = tuple(PrivateNode(place, config=config, cluster=seat) for place in places)
        self._seat_taken = seat

    # --- life ------------------------------------------------------------------------------------

    def start(self, timeout: float = 120.0, *, leash: bool = False) -> None:
        """Start the nodes that do not run, and return when every one sees all others: 10 to 20 s for three.

        Args:
            timeout: Seconds for each node, and for all to see each other.
            leash: Kill the nodes when this process ends, however it ends.

        Raises:
            ConfigError: RabbitMQ is not installed.
            BrokerUnavailable: A node did not start, or they did not find each other in time.
        """
        if self._processes.pid_of(str(self._seat_taken.epmd_port)) is None:
            launch_epmd(
                self._processes,
                installed_rabbitmq(),
                self._seat_taken.epmd_port,
                directory=self.directory,
            )
        if leash:
            self._processes.tie()
        if len(self.running()) == len(self.nodes):
            self.await_members(timeout)
            return
        # Together: a node waits for others, for those it is to join and for the one that was the last to stop.
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(lambda node: node.start(timeout, leash=leash), self.nodes))
        self.await_members(timeout)

    def await_members(self, timeout: float = 60.0) -> None:
        """Wait until every node that runs sees all that run.

        Raises:
            BrokerUnavailable: They did not within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            running = self.running()
            wanted = {node.name for node in running}
            seen = [_seen_by(node.api) for node in running]
            if wanted and all(wanted == names for names in seen):
                return
            if time.monotonic() > deadline:
                raise BrokerUnavailable(
                    f"the cluster in {self.directory}: after {timeout:g} s its nodes see {seen}, not all of "
                    f"{sorted(wanted)}. Their logs are in {self.directory}/node-*/log/."
                )
            time.sleep(0.2)

    def kill(self) -> None:
        """End all nodes at once (SIGKILL). Their data stays."""
        for node in self.nodes:
            node.kill()
        self._processes.kill()

    def remove(self) -> None:
        """Kill all nodes and delete the directory with all data."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    # --- what there is ---------------------------------------------------------------------------

    def running(self) -> list[PrivateNode]:
        """The nodes whose processes run."""
        return [node for node in self.nodes if node.status().running]

    @property
    def api(self) -> ManagementApi:
        """The management API of one node that runs.

        Raises:
            BrokerUnavailable: None runs.
        """
        for node in self.nodes:
            if node.status().version:
                return node.api
        raise BrokerUnavailable(f"no node of the cluster in {self.directory} answers.")

    def uri(self, vhost: str = "/", *, nodes: Sequence[PrivateNode] | None = None) -> str:
        """The AMQP URI with these nodes, tried in this order; all of them by default."""
        return ";".join(node.uri(vhost) for node in (self.nodes if nodes is None else nodes))

    def home_of(self, vhost: str, queue: str) -> PrivateNode:
        """The node that holds a queue: a classic one's only node, a quorum queue's leader.

        Raises:
            BrokerUnavailable: There is no such queue, or it has no leader now.
        """
        found = self.api.queue(vhost, queue) or {}
        name = found.get("leader") or found.get("node")
        for node in self.nodes:
            if node.name == name:
                return node
        raise BrokerUnavailable(f'queue "{queue}" has no leader in the cluster: {found or "none"}.')

    # --- chosen once, kept in cluster.json --------------------------------------------------------

    def _seat(self) -> ClusterSeat:
        file = self.directory / "cluster.json"
        try:
            known: dict[str, Any] = json.loads(file.read_text())
        except FileNotFoundError:
            port = random.randint(*PORT_RANGE)
            while not is_free(port):
                port = random.randint(*PORT_RANGE)
            known = {"cookie": secrets.token_hex(16), "epmd_port": port}
            private_directory(self.directory)
            private_directory(self.directory / "log")
            write_private(file, json.dumps(known) + "\n")
        return ClusterSeat((), known["cookie"], known["epmd_port"])


def _seen_by(api: ManagementApi) -> set[str]:
    """The nodes that a node sees running."""
    try:
        return {node["name"] for node in api.request("GET", "/api/nodes") if node.get("running")}
    except ManagementApiError:
        return set()
