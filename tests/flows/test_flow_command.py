"""`mycelia flow`: flows that run are listed, shown and drawn; classes are drawn as they are described."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tests.cli.commands import Done, MyceliaCommand
from tests.flows.counting import (
    COUNTED,
    DEPARTED,
    PARTITIONS,
    Counting,
    Departed,
    Failing,
    append,
    config,
    departures,
    sentinels,
    statistics,
)
from tests.flows.machines import changelog_config

from mycelia import Client
from mycelia.flow import FlowHandler
from mycelia.testing import ServiceBed, eventually, run_services

FlowCommand = Callable[..., Done]


@pytest.fixture
def command(mycelia: MyceliaCommand, tmp_path: Path, rabbit_uri: str) -> FlowCommand:
    def run(*argv: str) -> Done:
        return mycelia("flow", *argv, cwd=tmp_path, AMQP_URI=rabbit_uri)

    return run


@pytest.fixture
async def counting(rabbit_uri: str, tmp_path: Path) -> AsyncIterator[ServiceBed]:
    """A flow that has counted 2,000 records and what closes their windows."""
    async with (
        Client(rabbit_uri) as client,
        run_services(Counting, broker=rabbit_uri, config=config(tmp_path / "state")) as bed,
    ):
        await append(client, departures(2_000) + sentinels())
        await eventually(lambda: statistics(bed).records >= 2_000 + PARTITIONS, 30)
        yield bed


async def told(command: FlowCommand, *argv: str) -> Any:
    done = await asyncio.to_thread(command, *argv, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


async def test_flows_that_run_are_listed(counting: ServiceBed, command: FlowCommand) -> None:
    (one,) = await told(command, "ls")

    assert (one["flow"], one["service"], one["method"]) == (
        "counting.by_origin",
        "counting",
        "by_origin",
    )
    assert one["logs"] == [DEPARTED.name]
    assert (one["partitions"], one["owned"], len(one["instances"])) == (PARTITIONS, PARTITIONS, 1)
    assert (one["lag"], one["standing_still"]) == (0, 0)

    table = await asyncio.to_thread(command, "ls")
    assert "counting.by_origin" in table.stdout
    assert table.stdout.splitlines()[0].split()[:3] == ["FLOW", "SERVICE", "LOGS"]


async def test_a_flow_is_shown_by_partition(counting: ServiceBed, command: FlowCommand) -> None:
    one = await told(command, "show", "counting.by_origin", "--interval", "0.3")

    assert sorted(it["partition"] for it in one["partitions"]) == list(range(PARTITIONS))
    for it in one["partitions"]:
        assert it["owner"] == one["instances"][0]
        assert sum(it["lags"].values()) == 0
        assert it["watermark_ms"] == 100_000_000 - 5_000
        assert it["state_bytes"] > 0
        assert it["committed_ms"] is not None
    assert one["records_per_s"] == 0

    table = await asyncio.to_thread(command, "show", "counting.by_origin", "--interval", "0.3")
    assert "1970-01-02T03:46:35Z" in table.stdout


async def test_lag_is_told_by_source(counting: ServiceBed, command: FlowCommand) -> None:
    rows = await told(command, "lag", "counting.by_origin", "--interval", "0.3")

    assert {(row["source"], row["lag"]) for row in rows} == {(DEPARTED.name, 0)}
    assert sum(row["at"] for row in rows) > 0


async def test_lag_is_that_of_the_last_commit_whoever_has_made_it(
    rabbit_uri: str, tmp_path: Path, command: FlowCommand
) -> None:
    """An instance that has begun again, and to which nothing has come since."""
    async with Client(rabbit_uri) as client:
        async with run_services(Counting, broker=rabbit_uri, config=config(tmp_path)) as bed:
            await append(client, departures(2_000) + sentinels())
            await eventually(lambda: statistics(bed).records >= 2_000 + PARTITIONS, 30)
        async with run_services(Counting, broker=rabbit_uri, config=config(tmp_path)) as bed:
            await eventually(lambda: len(statistics(bed).lag) == PARTITIONS, 30)
            rows = await told(command, "lag", "counting.by_origin", "--interval", "0.3")
            told_of = statistics(bed)

    assert told_of.commits == 0
    assert len(rows) == PARTITIONS
    assert {(row["source"], row["lag"]) for row in rows} == {(DEPARTED.name, 0)}
    assert all(row["at"] for row in rows)


async def test_a_flow_is_drawn_with_what_it_does(
    counting: ServiceBed, command: FlowCommand, tmp_path: Path
) -> None:
    text = await asyncio.to_thread(command, "graph", "counting.by_origin", "--interval", "0.3")
    assert (text.returncode, text.stderr) == (0, "")
    assert f"└─ → {COUNTED.name}" in text.stdout
    assert "window-1: tumbling(2s): count()   [watermark " in text.stdout

    file = tmp_path / "flow.svg"
    done = await asyncio.to_thread(
        command, "graph", "counting.by_origin", "--svg", str(file), "--interval", "0.3"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    drawn = "".join(ElementTree.parse(file).getroot().itertext())
    assert "counting.by_origin · 1 instance" in drawn
    assert "lag 0" in drawn

    rates = (await told(command, "graph", "counting.by_origin", "--interval", "0.3"))["flows"]
    assert {one["node"] for one in rates} >= {DEPARTED.name, "window-1"}


@pytest.mark.long
async def test_what_stands_still_is_seen(
    rabbit_uri: str, tmp_path: Path, command: FlowCommand
) -> None:
    async with (
        Client(rabbit_uri) as client,
        run_services(Failing, broker=rabbit_uri, config=config(tmp_path / "state")) as bed,
    ):
        (handler,) = [
            one for one in bed.container(Failing).entrypoints if isinstance(one, FlowHandler)
        ]
        await append(client, [Departed("BAD", 1_000_000)])
        await eventually(lambda: handler.statistics().standing_still, 30)

        one = await told(command, "show", "failing.checked", "--interval", "0.3")
        listed = await told(command, "ls")
        text = await asyncio.to_thread(command, "show", "failing.checked", "--interval", "0.3")
        graph = await asyncio.to_thread(command, "graph", "failing.checked", "--interval", "0.3")
        lag = await asyncio.to_thread(command, "lag", "failing.checked", "--interval", "0.3")

    (still,) = [it for it in one["partitions"] if it["standing_still"]]
    assert "ValueError: no such airport. Mend the function, or let" in still["standing_still"]
    assert 'on_error="dead-letter"' in still["standing_still"]
    assert still["lags"][DEPARTED.name] == 1
    assert listed[0]["standing_still"] == 1
    assert f"partition {still['partition']} stands still: " in text.stdout
    assert f"partition {still['partition']} stands still: " in lag.stdout
    assert "standing still: 1 of 4" in graph.stdout
    assert "check: map(_checked)   [standing still: 1 of 4]" in graph.stdout


@pytest.mark.long
@pytest.mark.parametrize("has_changelog", [False, True])
async def test_a_flow_is_saved_while_it_runs_and_reset_while_it_does_not(
    has_changelog: bool, rabbit_uri: str, tmp_path: Path, command: FlowCommand
) -> None:
    """Reset to the savepoint, it counts on from there; reset to the first entry, from nothing."""
    state = tmp_path / "state"
    at: tuple[str, ...] = ("--state", str(state))
    configured = changelog_config if has_changelog else config
    if has_changelog:
        (tmp_path / "config.yaml").write_text(
            f"AMQP_URI: {rabbit_uri}\nmycelia: {{flows: {{state: {state}, changelog: true}}}}\n"
        )
        at = ("--config", str(tmp_path / "config.yaml"))
    name = "counting.by_origin"

    async def more(client: Client, bed: ServiceBed, count: int, wanted: int) -> None:
        await append(client, departures(count))
        await eventually(lambda: statistics(bed).records == wanted, 30)

    async with Client(rabbit_uri) as client:
        async with run_services(Counting, broker=rabbit_uri, config=configured(state)) as bed:
            await more(client, bed, 100, 100)
            saved = await asyncio.to_thread(
                command, "savepoint", name, str(tmp_path / "one"), *at, "--json"
            )
            await more(client, bed, 50, 150)
            refused = await asyncio.to_thread(
                command, "reset", name, "--from", "first", *at, "--yes"
            )
        asked = await asyncio.to_thread(command, "reset", name, "--from", "first", *at)
        back = await asyncio.to_thread(
            command, "reset", name, "--savepoint", str(tmp_path / "one"), *at, "--yes"
        )
        async with run_services(Counting, broker=rabbit_uri, config=configured(state)) as bed:
            await eventually(lambda: statistics(bed).records == 50, 30)
        anew = await told(command, "reset", name, "--from", "first", *at, "--yes")
        async with run_services(Counting, broker=rabbit_uri, config=configured(state)) as bed:
            await eventually(lambda: statistics(bed).records == 150, 30)
        twice = await asyncio.to_thread(command, "savepoint", name, str(tmp_path / "one"), *at)
        nothing = await asyncio.to_thread(command, "savepoint", "no.such", str(tmp_path / "x"), *at)

    assert (saved.returncode, saved.stderr) == (0, "")
    assert len(json.loads(saved.stdout)["partitions"]) == PARTITIONS
    assert refused.returncode == 1
    assert "Stop its instances first" in refused.stderr
    assert asked.returncode == 2
    assert "is deleted" in asked.stderr
    assert "say --yes" in asked.stderr
    assert (back.returncode, back.stderr) == (0, "")
    assert "partition 0 goes on from departed:" in back.stdout
    assert {one["offsets"][DEPARTED.name] for one in anew} == {0}
    assert (twice.returncode, nothing.returncode) == (2, 1)
    assert "has no state in" in nothing.stderr


async def test_a_name_that_nobody_answers_to_is_an_error(
    counting: ServiceBed, command: FlowCommand
) -> None:
    done = await asyncio.to_thread(command, "show", "counting.by_orign", "--interval", "0.3")

    assert done.returncode == 1
    assert 'Did you mean "counting.by_origin"?' in done.stderr


async def test_a_misspelt_flow_is_not_asked_for_and_not_reset(
    counting: ServiceBed, command: FlowCommand, tmp_path: Path
) -> None:
    at = ("--state", str(tmp_path / "state"))
    done = await asyncio.to_thread(command, "reset", "counting.by_orign", "--from", "first", *at)

    assert done.returncode == 1
    assert 'Did you mean "counting.by_origin"?' in done.stderr
    assert "Reset it?" not in done.stderr


def test_without_flows_that_is_said(command: FlowCommand) -> None:
    done = command("ls")

    assert (done.returncode, done.stdout) == (0, "")
    assert "no flow answers" in done.stderr


def test_a_class_is_drawn_without_a_broker(mycelia: MyceliaCommand, tmp_path: Path) -> None:
    (tmp_path / "drawn_flow.py").write_text(Path(__file__).with_name("counting.py").read_text())

    def run(*argv: str) -> Done:
        return mycelia("flow", "graph", *argv, cwd=tmp_path, AMQP_URI="amqp://localhost:1")

    text = run("drawn_flow:Counting")
    assert (text.returncode, text.stderr) == (0, "")
    assert text.stdout.startswith("counting.by_origin\ndeparted\n└─ event_time-1")

    drawn = run("drawn_flow:Counting", "--svg", "-")
    assert "→ counted" in "".join(ElementTree.fromstring(drawn.stdout).itertext())

    graph = json.loads(run("drawn_flow:Counting", "--json").stdout)["graph"]
    assert graph["nodes"][-1]["label"] == "log counted"


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["graph", "no_such_module:Class"], 'no module "no_such_module"'),
        (["graph", "json:JSONDecoder"], "no method under @flow"),
        (["graph", "json:JSONDecoder", "--watch"], "--watch is of a flow that runs"),
        (["show", "x", "--interval", "0"], "expected seconds from 0.1"),
        (["show"], "required: NAME"),
        (["reset", "x"], "one of the arguments --from --savepoint is required"),
        (["reset", "x", "--from", "yesterday"], "expected first, last, next, an offset"),
    ],
)
def test_a_wrong_command_is_told(command: FlowCommand, argv: list[str], text: str) -> None:
    done = command(*argv)

    assert done.returncode == 2
    assert text in done.stderr
