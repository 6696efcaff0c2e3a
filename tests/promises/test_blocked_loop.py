"""An `async def` method that holds the event loop for longer than the broker waits for a heartbeat."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.cli.commands import NAMEKO
from tests.processes import Process

from mycelia import Client
from mycelia.amqp import Message, Properties
from mycelia.broker.management_api import ManagementApi
from mycelia.testing import eventually

SERVICE = """
import time

from mycelia import BROADCAST, Queue, consume, event_handler, rpc

HEARTBEAT_S = 2
SPIN_S = 4 * HEARTBEAT_S


def spin(key):
    with open("runs.txt", "a") as book:
        book.write(f"{key}\\n")
    if key.endswith("-0"):
        until = time.monotonic() + SPIN_S
        while time.monotonic() < until:
            pass
    return key


class Spinning:
    name = "spinning"

    @rpc
    async def ask(self, key):
        return spin(key)

    @event_handler("source", "quorum")
    async def quorum(self, key):
        spin(key)

    @consume(Queue("classic"))
    async def classic(self, key):
        spin(key)

    @event_handler("source", "everywhere", BROADCAST, reliable_delivery=False)
    async def everywhere(self, key):
        spin(key)
"""


@pytest.fixture
def folder(tmp_path: Path, rabbit_uri: str) -> Path:
    (tmp_path / "spinning.py").write_text(SERVICE)
    (tmp_path / "config.yaml").write_text(f"AMQP_URI: {rabbit_uri}\nHEARTBEAT: 2\n")
    (tmp_path / "runs.txt").touch()
    return tmp_path


@pytest.mark.long
@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("rpc", "ask"),
        ("quorum", "quorum"),
        ("classic", "classic"),
        ("everywhere", "everywhere"),
    ],
)
async def test_message_runs_once_and_one_line_names_what_held_the_loop(
    folder: Path,
    rabbit_uri: str,
    rabbit_api: ManagementApi,
    rabbit_vhost: str,
    kind: str,
    method: str,
) -> None:
    """Ten at once, of which the first holds the loop. (A BROADCAST queue ends with its connection: there, one.)"""
    keys = [f"{kind}-{number}" for number in range(1 if kind == "everywhere" else 10)]
    with Process(NAMEKO, "run", "spinning", "--config", "config.yaml", cwd=folder) as service:
        await asyncio.to_thread(service.wait_until_ready)
        async with Client(rabbit_uri, timeout=60) as client:
            if kind == "rpc":
                calls = (client.call("spinning", "ask", key, timeout=60) for key in keys)
                assert await asyncio.gather(*calls) == keys
            elif kind == "classic":
                for key in keys:
                    body = json.dumps(key).encode()
                    await client.link.publish(
                        Message("", "classic", body, Properties("application/json"))
                    )
            else:
                for key in keys:
                    await client.publish("source", kind, key, mandatory=True)

            def runs() -> Counter[str]:
                return Counter((folder / "runs.txt").read_text().split())

            await eventually(lambda: len(runs()) == len(keys), 60, interval=0.1)
            await asyncio.to_thread(service.wait_for, "event_loop_free")

            async def is_settled() -> bool:
                queues: list[dict[str, Any]] = await asyncio.to_thread(
                    rabbit_api.queues, rabbit_vhost
                )
                return all(queue.get("messages") == 0 for queue in queues)

            await eventually(is_settled, 30, interval=0.2)

    lines = [json.loads(line) for line in service.lines if line.startswith("{")]
    blocked = [line for line in lines if line["event"] == "event_loop_blocked"]
    assert "connection_lost" in {line["event"] for line in lines}
    assert runs() == Counter(keys)
    assert [line["call"] for line in blocked] == [f"spinning.{method}"]
    assert "spin" in blocked[0]["stack"]
    assert [line["event"] for line in lines if line["level"] == "error"] == ["event_loop_blocked"]
