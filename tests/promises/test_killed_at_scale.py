"""Handlers with a key, and handlers of lists, whose process is killed (SIGKILL) in the middle, again and again."""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.cli.commands import NAMEKO
from tests.processes import Process
from tests.progress import until
from tests.runtime.test_order_by_key import publish, shuffled

from mycelia.amqp import Link, Queue, connect
from mycelia.testing import eventually

SERVICE = """
import asyncio
import os
import random

from mycelia import Batch, Queue, consume

rng = random.Random()
book = os.open("book.txt", os.O_WRONLY | os.O_APPEND)
TYPE = {{"x-queue-type": "{queue_type}"}}


def note(*lines):
    os.write(book, "".join(f"{{line}}\\n" for line in lines).encode())


class Keyed:
    name = "keyed"

    @consume(Queue("work", arguments=TYPE), concurrency=16, key="tail", retry=None)
    async def work(self, flight):
        note(f"begun {{flight['tail']}} {{flight['n']}}")
        await asyncio.sleep(rng.choice((0, 0.002, 0.02)))
        note(f"done {{flight['tail']}} {{flight['n']}}")


class Lists:
    name = "lists"

    @consume(Queue("work", arguments=TYPE), concurrency=2, batch=Batch(size=50, within=0.05), retry=None)
    async def work(self, flights):
        await asyncio.sleep(rng.choice((0.002, 0.02)))
        note(*(f"done {{flight['tail']}} {{flight['n']}}" for flight in flights))
"""

KEYS, EACH = 40, 50


@pytest.fixture
async def link(rabbit_uri: str) -> AsyncIterator[Link]:
    link = connect(rabbit_uri)
    await link.open(15)
    yield link
    await link.aclose()


class Book:
    """What the processes have noted, one life after another."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "book.txt"
        self.file.touch()
        self.lives: list[int] = [0]
        """Where each life's lines begin."""

    def lines(self) -> list[tuple[str, str, int]]:
        found = []
        for line in self.file.read_text().splitlines():
            what, key, number = line.split()
            found.append((what, key, int(number)))
        return found

    def numbers(self, what: str, start: int = 0, end: int | None = None) -> dict[str, list[int]]:
        by_key: dict[str, list[int]] = defaultdict(list)
        for said, key, number in self.lines()[start:end]:
            if said == what:
                by_key[key].append(number)
        return by_key

    def done(self) -> int:
        return len({(key, number) for what, key, number in self.lines() if what == "done"})


async def _run_and_kill(folder: Path, link: Link, uri: str, service: str, queue_type: str) -> Book:
    (folder / "work.py").write_text(SERVICE.format(queue_type=queue_type))
    (folder / "config.yaml").write_text(f"AMQP_URI: {uri}\n")
    book = Book(folder)
    await link.declare(Queue("work", arguments={"x-queue-type": queue_type}))
    await publish(link, "work", shuffled(KEYS, EACH))
    command = (NAMEKO, "run", f"work:{service}", "--config", "config.yaml")

    def progress(process: Process) -> object:
        """What has been done; until it is ready, its start's: that may take longer than the work, on a busy machine."""
        is_ready = '"ready"' in process.output
        return book.done(), None if is_ready else process.headway()

    for share in (300, 700, 1100):
        with Process(*command, cwd=folder) as process:
            await until(
                lambda share=share: book.done() >= share,
                lambda process=process: progress(process),
                what=f"{share} done",
            )
            os.kill(process.pid, signal.SIGKILL)
            await eventually(lambda process=process: process.status == -signal.SIGKILL, 30)
        book.lives.append(len(book.lines()))
    with Process(*command, cwd=folder) as process:
        await until(lambda: book.done() == KEYS * EACH, lambda: progress(process), what="all done")
        process.send(signal.SIGTERM)
        await until(
            lambda: process.status is not None,
            lambda: len(process.lines),
            what="the service stops",
            stalled_s=60,
        )
        assert process.status == 0, process.output[-2_000:]
    assert await link.message_count("work") == 0
    return book


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
async def test_process_that_is_killed_three_times_keeps_each_key_s_order(
    tmp_path: Path, link: Link, rabbit_uri: str, queue_type: str
) -> None:
    """What comes again comes before what is behind it, so within each life a key's messages begin one after the other."""
    book = await _run_and_kill(tmp_path, link, rabbit_uri, "Keyed", queue_type)

    for key, numbers in book.numbers("done").items():
        assert list(dict.fromkeys(numbers)) == list(range(EACH)), key
    for start, end in zip(book.lives, [*book.lives[1:], None], strict=True):
        for key, numbers in book.numbers("begun", start, end).items():
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), key


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
async def test_process_that_is_killed_three_times_loses_nothing_of_its_lists(
    tmp_path: Path, link: Link, rabbit_uri: str, queue_type: str
) -> None:
    book = await _run_and_kill(tmp_path, link, rabbit_uri, "Lists", queue_type)

    done = book.numbers("done")
    assert {key: set(numbers) for key, numbers in done.items()} == {
        f"N{key}": set(range(EACH)) for key in range(KEYS)
    }
    repeated = sum(len(numbers) - len(set(numbers)) for numbers in done.values())
    assert (
        repeated <= 3 * 4 * 50
    )  # of each life what it had: two lists that ran, and two that waited
