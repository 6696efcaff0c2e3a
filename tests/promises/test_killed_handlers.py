"""Classes written for Nameko, whose queues are classic ones and count nothing: their process is killed in the handler."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.cli.commands import NAMEKO
from tests.processes import Process
from tests.runtime.dead_letter_box import read_dead_letters

from mycelia.amqp import Link, Message, Properties, connect
from mycelia.broker.management_api import ManagementApi
from mycelia.entrypoints.subscription import DELIVERY_LIMIT
from mycelia.testing import eventually

SERVICE = """
import os
import time

from kombu.messaging import Exchange, Queue
from nameko.events import BROADCAST, event_handler
from nameko.messaging import consume


def note(line):
    with open("book.txt", "a") as book:
        book.write(f"{line}\\n")


def work(payload):
    note(f"begun:{payload}")
    if payload == "poison":
        time.sleep(600)
    while not os.path.exists("go"):
        time.sleep(0.05)
    note(f"done:{payload}")


class Old:
    name = "old"

    @event_handler("source", "happened")
    def happened(self, payload):
        work(payload)

    @consume(Queue("jobs", exchange=Exchange("work", type="direct"), routing_key="job"))
    def job(self, payload):
        work(payload)
"""

QUEUES = {"happened": "evt-source-happened--old.happened", "job": "jobs"}
ORDINARY = [f"ordinary-{number}" for number in range(8)]


@pytest.fixture
def folder(tmp_path: Path, rabbit_uri: str) -> Path:
    (tmp_path / "old.py").write_text(SERVICE)
    (tmp_path / "config.yaml").write_text(
        f"AMQP_URI: {rabbit_uri}\nSERVICE_CONTAINER_CLS: mycelia.Container\n"
    )
    (tmp_path / "book.txt").touch()
    return tmp_path


@pytest.fixture
async def link(rabbit_uri: str) -> AsyncIterator[Link]:
    link = connect(rabbit_uri)
    await link.open(15)
    yield link
    await link.aclose()


def book(folder: Path) -> Counter[str]:
    return Counter((folder / "book.txt").read_text().split())


async def publish(link: Link, method: str, payload: str, returns: int = 0) -> None:
    exchange, routing_key = {"happened": ("source.events", "happened"), "job": ("work", "job")}[
        method
    ]
    headers = {"x-mycelia-returns": returns} if returns else None
    properties = Properties("application/json", headers=headers)
    body = f'"{payload}"'.encode()
    await link.publish(Message(exchange, routing_key, body, properties, mandatory=True))


@pytest.mark.long_variants("job")
@pytest.mark.timeout(180)
@pytest.mark.parametrize("method", ["happened", "job"])
async def test_message_is_delivered_again_after_each_kill_and_counted_towards_the_limit(
    folder: Path, link: Link, rabbit_api: ManagementApi, rabbit_vhost: str, method: str
) -> None:
    """One message has killed all but two of the processes that it may; the others were merely beside it."""

    async def is_once() -> bool:
        """Whether what was counted by publishing it anew is there once: its former copy has been acknowledged."""
        queue = await asyncio.to_thread(rabbit_api.queue, rabbit_vhost, QUEUES[method])
        return queue is not None and queue.get("messages") == 1 + len(ORDINARY)

    for kills in range(2):
        with Process(NAMEKO, "run", "old", "--config", "config.yaml", cwd=folder) as service:
            await asyncio.to_thread(service.wait_until_ready)
            if not kills:
                await publish(link, method, "poison", returns=DELIVERY_LIMIT - 2)
                for payload in ORDINARY:
                    await publish(link, method, payload)
            begun = Counter({f"begun:{p}": kills + 1 for p in ["poison", *ORDINARY]})
            await eventually(lambda begun=begun: book(folder) == begun, 30, interval=0.1)
            await eventually(is_once, 30, interval=0.1)
            os.kill(service.pid, signal.SIGKILL)
            await eventually(lambda service=service: service.status == -signal.SIGKILL, 30)

    (folder / "go").touch()
    with Process(NAMEKO, "run", "old", "--config", "config.yaml", cwd=folder) as service:
        await asyncio.to_thread(service.wait_until_ready)
        (letter,) = await read_dead_letters(link, QUEUES[method], 1, 30)
        done = Counter({f"done:{payload}": 1 for payload in ORDINARY})
        await eventually(lambda: done <= book(folder), 30, interval=0.1)
        service.send(
            signal.SIGTERM
        )  # what is done is acknowledged a moment later: a kill might come before
        await eventually(lambda: service.status == 0, 30)

    assert await link.message_count(QUEUES[method]) == 0
    assert await link.message_count(f"{QUEUES[method]}.dead") == 0

    headers = letter.properties.headers or {}
    begun = Counter({"begun:poison": 2, **{f"begun:{payload}": 3 for payload in ORDINARY}})
    assert book(folder) == begun + done
    assert letter.body == b'"poison"'
    assert headers["x-mycelia-reason"] == "too_many_attempts"
    assert headers["x-mycelia-attempts"] == DELIVERY_LIMIT + 1
