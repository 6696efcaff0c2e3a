"""docs/pipelines.md and contracts/logs: their programs run, and print what the text says."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.cli.commands import MYCELIA
from tests.docs.documents import ROOT, Block, blocks_of
from tests.docs.terminal import Terminal
from tests.docs.test_events_at_scale import FILES
from tests.processes import environment, run

from mycelia import Client
from mycelia.testing import eventually, run_services

PIPELINES = ROOT / "docs" / "pipelines.md"
CONTRACT = ROOT / "contracts" / "logs" / "README.md"


def output_after(block: Block) -> str:
    """The text block that follows a program: what it prints."""
    blocks = blocks_of(block.document)
    following = blocks[[one.line for one in blocks].index(block.line) + 1]
    assert following.language == "text"
    return following.text


@pytest.fixture
async def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Path]:
    """The files that the guide shows, to be imported."""
    for block in blocks_of(PIPELINES, "python"):
        if block.name:
            (tmp_path / block.name).write_text(block.text, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("tower", "resume", "audit", "load", "routes", "routes_shadow"):
        sys.modules.pop(name, None)


def test_every_program_of_the_guide_is_run_by_a_test() -> None:
    """Here, and those of "Events at scale" in test_events_at_scale.py."""
    here = {"tower.py", "hourly.py", "follow.py", "resume.py", "audit.py", "load.py", "routes.py"}
    named = [block.name for block in blocks_of(PIPELINES, "python")]

    assert set(named) == here | {"routes_shadow.py", *(f"{name}.py" for name in FILES)}


def test_first_flow_goes_from_its_first_record_to_a_savepoint_as_the_guide_says(
    tmp_path: Path, rabbit_uri: str
) -> None:
    """Its section, typed from beginning to end: run, asked, looked at, killed, stopped, and taken back."""
    blocks = blocks_of(PIPELINES)
    tower, hourly = (
        next(b for b in blocks if b.name == name) for name in ("tower.py", "hourly.py")
    )
    section = PIPELINES.read_text("utf-8").partition("## A first flow")[2].partition("\n## ")[0]
    typed = [block for block in blocks if block.language == "console" and block.text in section]
    assert len(typed) == 7

    with Terminal(tmp_path, rabbit_uri) as terminal:
        for block in (tower, hourly, *typed):
            terminal.play(block)


async def printed(program: Path, uri: str) -> str:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(program)],
        env=environment() | {"AMQP_URI": uri, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_program_appends_and_reads_what_the_guide_says(folder: Path, rabbit_uri: str) -> None:
    (block,) = [block for block in blocks_of(PIPELINES, "python") if block.name == "follow.py"]

    assert await printed(folder / "follow.py", rabbit_uri) == output_after(block)


async def test_reading_goes_on_from_a_position(folder: Path, broker: str) -> None:
    tower, resume = importlib.import_module("tower"), importlib.import_module("resume")

    async with run_services(tower.Tower, broker=broker) as bed, Client(broker) as client:
        for number in range(3):
            await bed.client.call("tower", "depart", f"A{number}", "FRA", "2026-11-26T12:00:00Z")
        count, kept = await resume.count(client, None)
        await bed.client.call("tower", "depart", "A9", "FRA", "2026-11-26T12:00:00Z")
        after, _ = await resume.count(client, kept)

    assert (count, after) == (3, 1)


async def test_handler_of_the_guide_gets_the_records(
    folder: Path, broker: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tower, audit = importlib.import_module("tower"), importlib.import_module("audit")

    async with run_services(tower.Tower, audit.Audit, broker=broker) as bed:
        await bed.client.call("tower", "depart", "A1", "FRA", "2026-11-26T12:00:00Z")
        printed: list[str] = []
        await eventually(lambda: printed.append(capsys.readouterr().out) or any(printed), 20)

    assert "".join(printed) == "FRA A1\n"


async def test_plain_client_of_the_contract_writes_and_reads(
    tmp_path: Path, rabbit_uri: str
) -> None:
    (block,) = [block for block in blocks_of(CONTRACT, "python") if block.name == "plain_log.py"]
    (tmp_path / block.name).write_text(block.text, "utf-8")

    assert await printed(tmp_path / block.name, rabbit_uri) == output_after(block)


async def test_log_of_the_plain_client_is_one_to_us(tmp_path: Path, rabbit_uri: str) -> None:
    """Declared and written by another, read by us; and the other way round."""
    from mycelia import Log

    (block,) = [block for block in blocks_of(CONTRACT, "python") if block.name == "plain_log.py"]
    (tmp_path / block.name).write_text(block.text, "utf-8")
    departed = Log("flights.departed", partitions=2, retain="7d")
    await printed(tmp_path / block.name, rabbit_uri)

    async with Client(rabbit_uri) as client:
        await client.append(departed, {"flight": "AA4"}, key="JFK")
        async with departed.reader(client.link, 1) as reader:
            first, second = await reader.take(10), await reader.take(10)

    assert first is not None
    assert second is not None
    assert [record.value for record in first.records] == [{"flight": "AA1"}, {"flight": "AA3"}]
    assert [record.value for record in second.records] == [{"flight": "AA4"}]
    read_by_pika = await printed(tmp_path / block.name, rabbit_uri)
    assert "1 JFK AA4" in read_by_pika.splitlines()


@pytest.mark.long
async def test_shadow_of_the_guide_differs_where_its_change_shows(
    folder: Path, rabbit_uri: str
) -> None:
    tower, routes = importlib.import_module("tower"), importlib.import_module("routes")
    shadow = importlib.import_module("routes_shadow")
    at = datetime(2026, 11, 26, 12, tzinfo=UTC)

    async def log(*argv: str) -> subprocess.CompletedProcess[str]:
        command = (*MYCELIA, "log", *argv, "--broker", rabbit_uri)
        return await asyncio.to_thread(run, command, folder)

    group = ("flights.departed", "routes_shadow.departed")
    async with Client(rabbit_uri) as client:
        flights = [tower.Departed(f"AA{n}", f"A{n % 5}", at) for n in range(50)]
        await client.append_many(tower.DEPARTED, flights)
        moved = await log("replay", *group, "--from", "24h")  # a group that has never run
        async with run_services(routes.Routes, shadow.Shadow, broker=rabbit_uri):
            followed = await log("lag", *group, "--follow")
            await log("lag", "flights.departed", "routes.departed", "--follow")
            same = await log("diff", "legs", "legs.shadow")
            await client.append(tower.DEPARTED, tower.Departed("aa99", "A1", at))

            async def differ() -> bool:
                nonlocal differs
                differs = await log("diff", "legs", "legs.shadow")
                return "of 51 and 51 records" in differs.stdout

            differs = same
            await eventually(differ, 40)

    assert moved.stdout.splitlines() == [f"partition {p} goes on from offset 0" for p in range(4)]
    assert followed.stderr.splitlines()[-1].startswith("caught up: ")
    assert same.stdout == (
        "5 the same, 0 different, 0 only in legs, 0 only in legs.shadow; by key, of 50 and 50 records\n"
    )
    assert (same.returncode, differs.returncode) == (0, 1)
    assert differs.stdout.splitlines()[:2] == [
        '- "A1"  10: {"flight": "aa99", "origin": "A1"}',
        '+ "A1"  10: {"flight": "AA99", "origin": "A1"}',
    ]


async def test_batches_that_the_guide_s_loader_appends_again_are_read_once(
    folder: Path, rabbit_uri: str
) -> None:
    tower, load = importlib.import_module("tower"), importlib.import_module("load")
    resume = importlib.import_module("resume")
    at = datetime(2026, 11, 26, 12, tzinfo=UTC)

    async def batches(begin: int, end: int) -> AsyncIterator[tuple[int, list[Any]]]:
        for number in range(begin, end):
            yield number, [tower.Departed(f"F{number}", "FRA", at)] * 5

    for begin, end in ((0, 4), (2, 6)):  # it died, and knew of two
        async with Client(rabbit_uri) as client:
            await load.load(client, batches(begin, end))
    async with Client(rabbit_uri) as client:
        count, _ = await resume.count(client, None)

    assert count == 30
