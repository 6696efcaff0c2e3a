"""The code in docs/flows.md runs, and what is said around it is so."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.docs.documents import ROOT, blocks_of
from tests.docs.test_examples import block_with, load

from mycelia import Client, rpc
from mycelia.cli.main import build_parser
from mycelia.errors import RemoteError
from mycelia.flow import FlowPlan, Stream, collect, source, tumbling
from mycelia.logs import partition_of
from mycelia.testing import FlowDriver, eventually, run_services

PAGE = ROOT / "docs" / "flows.md"


def test_flows_are_tested_as_the_page_does(tmp_path: Path) -> None:
    """The files as they are named, and the page's tests by pytest."""
    blocks = {
        match[1]: block.text
        for block in blocks_of(PAGE, "python")
        if (match := re.match(r"# (\w+\.py)\n", block.text))
    }
    for name, text in blocks.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-p", "no:pytest_nameko", "-p", "no:nameko_sqlalchemy"),
            *("delays.py", "test_hourly.py", "test_stored.py", "test_next_version.py"),
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{ROOT / 'platform'}:{tmp_path}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "4 passed" in done.stdout, done.stdout + done.stderr
    assert len(blocks) == 12


async def test_flow_of_a_service_is_shown_on_the_board(
    broker: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, part in (("delays", "class HourlyDelay"), ("board", "class Board")):
        (tmp_path / f"{name}.py").write_text(block_with(PAGE, part).text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    delays, board = importlib.import_module("delays"), importlib.import_module("board")
    hours = [datetime(2013, 1, 1, hour, tzinfo=UTC) for hour in (12, 12, 15)]
    flights = [delays.Departed("JFK", 10 * n, at) for n, at in enumerate(hours, 1)]

    async with run_services(board.Delays, board.Board, broker=broker), Client(broker) as client:
        await client.append_many(board.DEPARTED, flights)
        printed: list[str] = []
        await eventually(lambda: printed.append(capsys.readouterr().out) or any(printed), 20)

    assert "".join(printed) == "JFK 2013-01-01 12:00:00+00:00 2 15.0\n"
    assert {one.name for one in (tmp_path / ".mycelia" / "flows").iterdir()} == {
        "flights.departed--delays.hourly"
    }
    for name in ("delays", "board"):
        monkeypatch.delitem(sys.modules, name)


async def test_flights_of_the_open_hour_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, part in (("delays", "class HourlyDelay"), ("open_hours", "class OpenHours")):
        (tmp_path / f"{name}.py").write_text(block_with(PAGE, part).text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    delays, hours = importlib.import_module("delays"), importlib.import_module("open_hours")
    flights = [delays.Departed("JFK", n, datetime(2013, 1, 1, 12, n, tzinfo=UTC)) for n in range(3)]
    broker = "memory://open-hours-page"
    async with run_services(hours.OpenHours, hours.Gate, broker=broker) as bed:
        await bed.client.append_many(hours.DEPARTED, flights)

        async def counted() -> bool:
            try:
                return bool(await bed.client.call("gate", "flights_this_hour", "JFK") == 3)
            except RemoteError:
                return False  # nothing has been committed yet

        await eventually(counted, 20)
    for name in ("delays", "open_hours"):
        monkeypatch.delitem(sys.modules, name)


async def test_flights_are_enriched_by_another_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Airports:
        name = "airports"

        @rpc
        async def country(self, origin: str) -> str:
            return {"JFK": "US", "ZRH": "CH"}[origin]

    for name, part in (("delays", "class HourlyDelay"), ("enriched", "class Enrichment")):
        (tmp_path / f"{name}.py").write_text(block_with(PAGE, part).text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    delays, enriched = importlib.import_module("delays"), importlib.import_module("enriched")
    flights = [delays.Departed(n, 5, datetime(2013, 1, 1, tzinfo=UTC)) for n in ("JFK", "ZRH")]
    broker = "memory://enriched-page"
    async with run_services(enriched.Enrichment, Airports, broker=broker), Client(broker) as client:
        await client.append_many(enriched.DEPARTED, flights)
        found: dict[str, str] = {}
        for partition in {partition_of("JFK", 4), partition_of("ZRH", 4)}:
            async with enriched.ENRICHED.reader(client.link, partition) as reader:
                entry = await reader.take(20)
                assert entry is not None
                found |= {one.flight.origin: one.country for one in entry.values}
    for name in ("delays", "enriched"):
        monkeypatch.delitem(sys.modules, name)

    assert found == {"JFK": "US", "ZRH": "CH"}


async def test_tables_answer_as_the_page_says(
    broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, part in (("delays", "class HourlyDelay"), ("latest", "class Latest")):
        (tmp_path / f"{name}.py").write_text(block_with(PAGE, part).text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    delays, latest = importlib.import_module("delays"), importlib.import_module("latest")
    hours = [datetime(2013, 1, 1, hour, tzinfo=UTC) for hour in (12, 12, 15)]
    flights = [delays.Departed("JFK", 10 * n, at) for n, at in enumerate(hours, 1)]

    async with run_services(latest.Latest, latest.Tower, broker=broker, timeout=20) as bed:

        async def row() -> Any:
            try:
                return await bed.client.call("latest", "get_hour", "JFK")
            except RemoteError as exc:
                assert exc.exc_type == "UnknownTableKey"  # noqa: PT017  not yet
                return None

        await bed.client.append_many(latest.DEPARTED, flights)
        hour = await eventually(row, 20)
        last = await bed.client.call("tower", "last_delay", "JFK")

    assert (hour["value"]["flights"], hour["value"]["mean"]) == (2, 15.0)
    assert set(hour) == {
        *("key", "value", "time_ms", "partition", "watermark_ms", "committed_ms"),
    }
    assert last == 30
    for name in ("delays", "latest"):
        monkeypatch.delitem(sys.modules, name)


def test_every_command_of_the_page_is_one() -> None:
    parser = build_parser()
    lines = [
        line.split("   ")[0].split()[1:]
        for block in blocks_of(PAGE, "text")
        for line in block.text.splitlines()
        if line.startswith("mycelia ")
    ]

    for line in lines:
        assert parser.parse_args(line).main
    assert len(lines) >= 6


def test_first_flow_is_drawn_as_the_page_shows(tmp_path: Path) -> None:
    text = block_with(PAGE, "class HourlyDelay").text
    names: dict[str, object] = {"__name__": "__main__"}
    sys.modules.setdefault("delays", sys.modules[__name__])
    exec(compile(text, "delays.py", "exec"), names)
    hourly = names["hourly"]
    assert callable(hourly)
    stream: Stream[object] = hourly(source("flights.departed", object))

    assert f"```text\n{FlowPlan({'hourly': stream.port}).draw()}\n```" in PAGE.read_text("utf-8")


def test_silence_is_told() -> None:
    silences = load(block_with(PAGE, "class Heard"))["silences"]
    beats = source("beats", dict).event_time(lambda beat: beat["at"], unit="s").key_by("of")
    driver = FlowDriver({"out": silences(beats)}, crash_rate=0.3)
    driver.append(
        "beats", [{"of": "a", "at": 10}, {"of": "a", "at": 50}, {"of": "b", "at": 100}], batch=1
    )
    driver.append("beats", [{"of": "b", "at": 115}])
    driver.run()

    assert driver.given("out") == ["a was last heard at 50000"]


def test_aggregation_of_ones_own_merges() -> None:
    gcd = load(block_with(PAGE, "def gcd"))["gcd"]
    driver = FlowDriver(
        {
            "out": source("in", int)
            .key_by(lambda _: 0)
            .window(tumbling("1s"))
            .aggregate(gcd(), collect())
        }
    )
    driver.append("in", [12, 18, 30], batch=1)
    driver.end()

    assert [one.value for one in driver.given("out")] == [(6, [12, 18, 30])]


async def test_flow_goes_back_to_a_savepoint_and_begins_anew(
    broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, part in (("delays", "class HourlyDelay"), ("board", "class Board")):
        (tmp_path / f"{name}.py").write_text(block_with(PAGE, part).text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "go_back.py").write_text(block_with(PAGE, "save_flow").text)
    monkeypatch.delitem(sys.modules, "go_back", raising=False)  # it knows where the state was
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AMQP_URI", broker)
    delays, board = importlib.import_module("delays"), importlib.import_module("board")
    go_back = importlib.import_module("go_back")
    flight = delays.Departed("JFK", 10, datetime(2013, 1, 1, 12, tzinfo=UTC))

    async def takes(records: int) -> None:
        async with run_services(board.Delays, broker=broker) as bed:
            (handler,) = bed.container(board.Delays).entrypoints
            await eventually(lambda: handler.statistics().records == records, 20)

    async with Client(broker) as client:
        await client.append_many(board.DEPARTED, [flight] * 3)
        await takes(3)
        await go_back.save("one")
        await client.append_many(board.DEPARTED, [flight] * 4)
        await takes(4)
        go_back.show()
        await go_back.go_back("one")
        await takes(4)
        await go_back.begin_anew()
        await takes(7)

    assert capsys.readouterr().out.startswith("one delays.hourly ")
    for name in ("delays", "board", "go_back"):
        monkeypatch.delitem(sys.modules, name)


def test_state_of_the_first_version_is_made_into_the_second(tmp_path: Path) -> None:
    page = load(block_with(PAGE, "of_first"))
    assert page["of_first"]({"last_ms": 7}) == page["LastHeard"](7, 1)
    stream = source("beats", dict).key_by(lambda beat: beat["id"])
    driver = FlowDriver({"out": page["beats"](stream)})
    driver.append("beats", [{"id": "a"}, {"id": "a"}])
    driver.run()
    assert driver.given("out") == ["a, 1 times", "a, 2 times"]
