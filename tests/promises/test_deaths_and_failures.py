"""Deaths of the process and failures of the handler are attempts of one message, counted together, whatever its queue counts."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.cli.commands import MYCELIA
from tests.processes import Process
from tests.runtime.dead_letter_box import read_dead_letters

from mycelia.amqp import Link, Message, Properties, connect
from mycelia.entrypoints.subscription import DELIVERY_LIMIT
from mycelia.testing import eventually

SERVICE = """
import os
import signal

from mycelia import Queue, Retry, consume, event_handler, fixed, get_current_call

POLICY = Retry(attempts=4, backoff=fixed("250ms"))


def work(payload):
    attempt = get_current_call().attempt
    with open("book.txt", "a") as book:
        book.write(f"{payload}:{attempt}\\n")
    fates = payload.split()  # what is to become of each attempt; of the last and all further ones the same
    fate = fates[min(attempt, len(fates)) - 1]
    if fate == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if fate == "fails":
        raise ConnectionError("not now")


class Deadly:
    name = "deadly"

    @event_handler("source", "came", retry=POLICY, concurrency=1)
    async def quorum(self, payload):
        work(payload)

    @consume(Queue("jobs", arguments={"x-queue-type": "classic"}), retry=POLICY, concurrency=1)
    def classic(self, payload):
        work(payload)
"""

QUEUES = {"quorum": "evt-source-came--deadly.quorum", "classic": "jobs"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deadly.py").write_text(SERVICE)
    (tmp_path / "book.txt").touch()
    return tmp_path


@pytest.fixture
async def link(rabbit_uri: str) -> AsyncIterator[Link]:
    link = connect(rabbit_uri)
    await link.open(15)
    yield link
    await link.aclose()


def book(folder: Path) -> list[str]:
    return (folder / "book.txt").read_text().splitlines()


async def publish(link: Link, queue: str, payload: str, returns: int = 0) -> None:
    # The count is one of a former queue: a quorum queue writes its own, a classic queue leaves it as it came.
    headers = {"x-delivery-count": 0, **({"x-mycelia-returns": returns} if returns else {})}
    properties = Properties("application/json", headers=headers, delivery_mode=2)
    body = f'"{payload}"'.encode()
    await link.publish(Message("", QUEUES[queue], body, properties, mandatory=True))


async def run_until_it_dies(folder: Path, uri: str) -> None:
    with Process(*MYCELIA, "run", "deadly", "--broker", uri, cwd=folder) as service:
        await eventually(lambda: service.status == -signal.SIGKILL, 40, interval=0.1)


@pytest.mark.long_variants("quorum")
@pytest.mark.timeout(240)
@pytest.mark.parametrize("queue", list(QUEUES))
async def test_deaths_and_failures_together_reach_the_policy_s_limit(
    folder: Path, link: Link, rabbit_uri: str, queue: str
) -> None:
    """Of four attempts two kill their process and two fail; then it is a dead letter, and the third process goes on."""
    with Process(*MYCELIA, "run", "deadly", "--broker", rabbit_uri, cwd=folder) as service:
        await asyncio.to_thread(service.wait_until_ready)
        await publish(link, queue, "dies fails dies fails")
        await eventually(lambda: service.status == -signal.SIGKILL, 40, interval=0.1)
    await run_until_it_dies(folder, rabbit_uri)
    with Process(*MYCELIA, "run", "deadly", "--broker", rabbit_uri, cwd=folder) as service:
        (letter,) = await read_dead_letters(link, QUEUES[queue], 1, 40)
        await publish(link, queue, "ordinary")
        await eventually(lambda: "ordinary:1" in book(folder), 30, interval=0.1)
        assert service.is_running

    assert book(folder) == [*(f"dies fails dies fails:{n}" for n in (1, 2, 3, 4)), "ordinary:1"]
    headers = letter.properties.headers or {}
    assert headers["x-mycelia-reason"] == "too_many_attempts"
    assert headers["x-mycelia-attempts"] == 4
    assert headers["x-mycelia-error"] == "not now"


@pytest.mark.long_variants("classic")
@pytest.mark.timeout(240)
@pytest.mark.parametrize("queue", list(QUEUES))
async def test_what_kills_every_process_is_buried_after_the_limit_of_deliveries_and_those_beside_it_run(
    folder: Path, link: Link, rabbit_uri: str, queue: str
) -> None:
    """A policy's limit is no limit for deaths alone: what merely waited beside a deadly message has come back as often."""
    with Process(*MYCELIA, "run", "deadly", "--broker", rabbit_uri, cwd=folder) as service:
        await asyncio.to_thread(service.wait_until_ready)
        await publish(link, queue, "dies", returns=DELIVERY_LIMIT - 2)
        await publish(link, queue, "innocent")
        await eventually(lambda: service.status == -signal.SIGKILL, 40, interval=0.1)
    await run_until_it_dies(folder, rabbit_uri)
    with Process(*MYCELIA, "run", "deadly", "--broker", rabbit_uri, cwd=folder) as service:
        (letter,) = await read_dead_letters(link, QUEUES[queue], 1, 40)
        await eventually(
            lambda: any(line.startswith("innocent") for line in book(folder)), 30, interval=0.1
        )
        assert service.is_running

    died = [line for line in book(folder) if line.startswith("dies")]
    assert died == [f"dies:{DELIVERY_LIMIT - 1}", f"dies:{DELIVERY_LIMIT}"]
    headers = letter.properties.headers or {}
    assert letter.body == b'"dies"'
    assert headers["x-mycelia-reason"] == "too_many_attempts"
    assert headers["x-mycelia-attempts"] == DELIVERY_LIMIT + 1
