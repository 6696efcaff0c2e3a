"""A request that kills the process which runs it: it does not take one instance after the other."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from tests.cli.commands import NAMEKO
from tests.processes import Process

from mycelia import Client
from mycelia.errors import RemoteError
from mycelia.testing import eventually

SERVICE = """
import os
import time

from mycelia import rpc


def note(line):
    with open("runs.txt", "a") as book:
        book.write(f"{line}\\n")


class Deadly:
    name = "deadly"

    @rpc
    def dies(self):
        note("dies")
        os._exit(7)

    @rpc(idempotent=True)
    def may_die(self):
        note("may_die")
        with open("runs.txt") as book:
            if book.read().count("may_die") < 4:
                os._exit(7)
        return "in the end"

    @rpc
    async def pid(self):
        return os.getpid()
"""


@pytest.fixture
def folder(tmp_path: Path, rabbit_uri: str) -> Path:
    (tmp_path / "deadly.py").write_text(SERVICE)
    (tmp_path / "config.yaml").write_text(f"AMQP_URI: {rabbit_uri}\n")
    (tmp_path / "runs.txt").touch()
    return tmp_path


def start(folder: Path) -> Process:
    return Process(NAMEKO, "run", "deadly", "--config", "config.yaml", cwd=folder)


def runs(folder: Path) -> Counter[str]:
    return Counter((folder / "runs.txt").read_text().split())


@pytest.mark.timeout(150)
async def test_request_that_kills_its_process_is_answered_after_two_of_them(
    folder: Path, rabbit_uri: str
) -> None:
    fleet = [start(folder) for _ in range(3)]
    try:
        await asyncio.gather(*(asyncio.to_thread(one.wait_until_ready) for one in fleet))
        async with Client(rabbit_uri, timeout=60) as client:
            with pytest.raises(RemoteError, match="TooManyDeliveries"):
                await client.call("deadly", "dies", timeout=60)

            assert runs(folder) == Counter(dies=2)
            # The answer may be here before the operating system has taken the second one down.
            await eventually(lambda: sum(one.is_running for one in fleet) == 1)
            survivors = [one for one in fleet if one.is_running]
            assert await client.call("deadly", "pid", timeout=20) == survivors[0].pid
    finally:
        for one in fleet:
            one.__exit__(None, None, None)


@pytest.mark.timeout(150)
async def test_idempotent_request_is_run_until_it_has_an_answer(
    folder: Path, rabbit_uri: str
) -> None:
    fleet = [start(folder) for _ in range(4)]
    try:
        await asyncio.gather(*(asyncio.to_thread(one.wait_until_ready) for one in fleet))
        async with Client(rabbit_uri, timeout=60) as client:
            assert await client.call("deadly", "may_die", timeout=60) == "in the end"

        assert runs(folder) == Counter(may_die=4)
        await eventually(lambda: sum(one.is_running for one in fleet) == 1)
    finally:
        for one in fleet:
            one.__exit__(None, None, None)
