"""`mycelia log`: logs listed and followed; how far groups are; a group begins elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from tests.cli.commands import MYCELIA, Done, MyceliaCommand
from tests.metrics.conftest import Scrape, free_port
from tests.processes import Process, environment

from mycelia import Client, Log, Record, log_handler
from mycelia.amqp import Message, Properties
from mycelia.broker.node import PrivateNode
from mycelia.errors import TopologyError
from mycelia.testing import eventually, run_services

__all__ = ["free_port"]

LANDED = Log("landed", key=lambda value: value["plane"], partitions=3, retain="12h")

LogCommand = Callable[..., Done]


@pytest.fixture
def log(mycelia: MyceliaCommand, tmp_path: Path, rabbit_uri: str) -> LogCommand:
    def run(*argv: str) -> Done:
        return mycelia("log", *argv, cwd=tmp_path, AMQP_URI=rabbit_uri)

    return run


def on_client(uri: str, action: Callable[[Client], Coroutine[Any, Any, Any]]) -> Any:
    async def act() -> Any:
        async with Client(uri) as client:
            return await action(client)

    return asyncio.run(act())


def land(uri: str, count: int, begin: int = 0) -> None:
    """Planes land, one entry each."""

    async def append(client: Client) -> None:
        for number in range(begin, begin + count):
            value = {"plane": f"P{number % 5}", "number": number}
            await client.append(LANDED, value, time=1_764_176_251_000, headers={"n": number})

    on_client(uri, append)


def handle(uri: str, count: int) -> list[int]:
    """Have a group handle so many, and stop."""
    seen: list[int] = []

    class Counting:
        name = "counting"

        @log_handler(LANDED, group="count")
        async def landed(self, records: list[Record[Any]]) -> None:
            seen.extend(record.value["number"] for record in records)

    async def run() -> None:
        async with run_services(Counting, broker=uri):
            await eventually(lambda: len(seen) >= count, 30)

    asyncio.run(run())
    return seen


def test_logs_are_listed(log: LogCommand, rabbit_uri: str, rabbit_node: PrivateNode) -> None:
    management = f"http://127.0.0.1:{rabbit_node.management_port}"
    land(rabbit_uri, 1)

    listed = log("ls", "--management", management)
    in_json = json.loads(log("ls", "--management", management, "--json").stdout)

    assert listed.stdout.splitlines()[0].split() == [
        "LOG",
        "PARTITIONS",
        "ENTRIES",
        "KEPT",
        "FOR",
        "KEPT",
        "BYTES",
    ]
    assert listed.stdout.splitlines()[1].split()[:2] == ["landed", "3"]
    assert [(one["log"], one["partitions"], one["max_age"]) for one in in_json] == [
        ("landed", 3, "12h")
    ]


def test_records_are_printed(log: LogCommand, rabbit_uri: str) -> None:
    land(rabbit_uri, 4)

    async def publish_garbage(client: Client) -> None:
        bad = Message("landed", "0", b"\x1b[2J", Properties(content_type="text/plain"))
        await client.link.publish(bad)

    on_client(rabbit_uri, publish_garbage)
    shown = log("tail", "landed", "--from", "first", "--count", "5")
    in_json = log("tail", "landed", "--from", "first", "--count", "5", "--json")

    assert shown.returncode == 0, shown.stderr
    lines = sorted(shown.stdout.splitlines())
    assert len(lines) == 5
    assert sum("unreadable" in line for line in lines) == 1
    assert any(
        '2025-11-26T16:57:31.000Z  P0  {"plane": "P0", "number": 0}' in line for line in lines
    )
    records = [json.loads(line) for line in in_json.stdout.splitlines()]
    told = {one["value"]["number"]: one for one in records if "value" in one}
    assert sorted(told) == [0, 1, 2, 3]
    assert told[3]["headers"] == {"n": 3}
    assert "\x1b" not in shown.stdout + in_json.stdout


def test_records_of_one_partition_from_an_offset(log: LogCommand, rabbit_uri: str) -> None:
    land(rabbit_uri, 40)
    partition = str(LANDED.partitions - 1)

    done = log("tail", "landed", "--partition", partition, "--from", "1", "--count", "1", "--json")

    (record,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert (record["partition"], record["offset"]) == (2, 1)


def test_lag_of_a_group_and_a_replay(log: LogCommand, rabbit_uri: str) -> None:
    land(rabbit_uri, 10)
    assert sorted(handle(rabbit_uri, 10)) == list(range(10))
    land(rabbit_uri, 5, 10)

    behind = json.loads(log("lag", "landed", "count", "--json").stdout)
    shown = log("lag", "landed", "count").stdout
    assert sum(one["end"] for one in behind) == 15
    assert sum(one["lag"] for one in behind) == 5
    assert {one["owner"] for one in behind} == {None}
    assert shown.splitlines()[0].split() == ["PARTITION", "END", "AT", "LAG", "OWNER", "SAID"]

    again = log("replay", "landed", "count", "--from", "first")
    assert again.stdout.splitlines() == [f"partition {p} goes on from offset 0" for p in range(3)]
    assert (
        sum(one["lag"] for one in json.loads(log("lag", "landed", "count", "--json").stdout)) == 15
    )
    assert sorted(handle(rabbit_uri, 15)) == list(range(15))

    next_ = log("replay", "landed", "count", "--from", "next")
    assert next_.stderr == ""
    land(rabbit_uri, 1, 15)
    assert handle(rabbit_uri, 1) == [15]

    new = log("replay", "landed", "cuont", "--from", "3")
    assert new.stdout.splitlines() == [f"partition {p} goes on from offset 3" for p in range(3)]
    assert 'log "landed" has had no group "cuont" so far' in new.stderr


def test_a_group_that_stands_still_is_seen_until_it_is_told_where_to_go_on(
    log: LogCommand, rabbit_uri: str, free_port: int
) -> None:
    """Its place is gone with the log: `/ready`, metrics and `lag` say so."""
    land(rabbit_uri, 10)
    handle(rabbit_uri, 10)

    async def make_anew(client: Client) -> None:
        for partition in range(LANDED.partitions):
            await client.link.delete_queue(f"landed-{partition}")
        await LANDED.declare(client.link)

    on_client(rabbit_uri, make_anew)
    port = free_port
    at = {"port": port, "host": "127.0.0.1"}
    settings = {"mycelia": {"metrics": at, "health": at}}

    class Counting:
        name = "counting"

        @log_handler(LANDED, group="count")
        async def landed(self, records: list[Record[Any]]) -> None: ...

    async def ready() -> Scrape:
        return await asyncio.to_thread(Scrape.of, port, "/ready")

    async def while_it_stands_still() -> tuple[Scrape, Scrape, list[Any], Done]:
        async with run_services(Counting, broker=rabbit_uri, config=settings):

            async def is_told() -> bool:
                return len((await ready()).json["not_ready"]) == LANDED.partitions

            await eventually(is_told, 30)
            scrape = await asyncio.to_thread(Scrape.of, port, "/metrics")
            rows: list[Any] = []

            async def is_said() -> bool:
                done = await asyncio.to_thread(log, "lag", "landed", "count", "--json")
                rows[:] = json.loads(done.stdout)
                return all(one["standing_still"] for one in rows)

            await eventually(is_said, 30)
            shown = await asyncio.to_thread(log, "lag", "landed", "count")
            return await ready(), scrape, list(rows), shown

    async def when_it_goes_on() -> int:
        async with run_services(Counting, broker=rabbit_uri, config=settings):

            async def goes_on() -> bool:
                done = await asyncio.to_thread(log, "lag", "landed", "count", "--json")
                return all(
                    one["owner"] and not one["standing_still"] for one in json.loads(done.stdout)
                )

            await eventually(goes_on, 30)
            return (await ready()).status

    told, scrape, rows, shown = asyncio.run(while_it_stands_still())
    log("replay", "landed", "count", "--from", "first")
    after = asyncio.run(when_it_goes_on())

    assert told.status == 503
    assert told.json["not_ready"][0].startswith("log landed: partition ")
    assert "made anew" in told.json["not_ready"][0]
    assert scrape.sum("mycelia_log_standing_still", group="count") == LANDED.partitions
    assert all("made anew" in one["standing_still"] for one in rows)
    assert "count, partition 0 stands still: OffsetGone" in shown.stdout
    assert "mycelia log replay landed count --from first" in shown.stdout
    assert after == 200


def test_replay_of_a_group_that_runs_is_refused(log: LogCommand, rabbit_uri: str) -> None:
    land(rabbit_uri, 3)
    seen: list[int] = []

    class Counting:
        name = "counting"

        @log_handler(LANDED, group="count")
        async def landed(self, records: list[Record[Any]]) -> None:
            seen.extend(record.value["number"] for record in records)

    async def run() -> tuple[Done, Any]:
        async with run_services(Counting, broker=rabbit_uri):
            await eventually(lambda: len(seen) >= 3, 30)
            refused = await asyncio.to_thread(log, "replay", "landed", "count", "--from", "first")
            lag = await asyncio.to_thread(log, "lag", "landed", "count", "--json")
            return refused, json.loads(lag.stdout)

    refused, lag = asyncio.run(run())

    assert refused.returncode == 1
    assert "has an owner. Stop its instances first" in refused.stderr
    assert all(one["owner"] for one in lag)
    assert sorted(seen) == [0, 1, 2]


def test_dead_letters_of_a_group_are_appended_again(
    mycelia: MyceliaCommand, tmp_path: Path, rabbit_uri: str
) -> None:
    seen: list[tuple[int, int]] = []

    class Failing:
        name = "failing"

        @log_handler(LANDED, retry=None)
        async def landed(self, records: list[Record[Any]]) -> None:
            seen.extend((record.value["number"], record.headers["n"]) for record in records)  # type: ignore[index]
            if len(seen) == 1:
                raise ValueError("not yet")

    def redrive(*argv: str) -> Done:
        queue = "log-landed--failing.landed.dead"
        return mycelia("dlq", "redrive", queue, *argv, cwd=tmp_path, AMQP_URI=rabbit_uri)

    async def run() -> Done:
        async with run_services(Failing, broker=rabbit_uri), Client(rabbit_uri) as client:
            await client.append(LANDED, {"plane": "P1", "number": 7}, headers={"n": 1})

            async def is_buried() -> bool:
                with contextlib.suppress(TopologyError):
                    return await client.link.message_count("log-landed--failing.landed.dead") == 1
                return False

            await eventually(is_buried, 30)
            done = await asyncio.to_thread(redrive, "--to-exchange")
            await eventually(lambda: len(seen) == 2, 30)
            return done

    done = asyncio.run(run())

    assert done.returncode == 0, done.stderr
    assert seen == [(7, 1), (7, 1)]


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (("tail", "nowhere"), 1, 'there is no log "nowhere"'),
        (("lag", "landed", "nobody"), 1, 'has no group "nobody"'),
        (("tail", "landed", "--partition", "7"), 2, "partitions 0 to 2"),
        (("tail", "landed", "--from", "soon"), 2, "expected first, last, next"),
        (
            ("tail", "landed", "--from", "99999999"),
            2,
            "cannot be read from offset 99999999: partition 0",
        ),
        (("tail", "landed", "--from", "99999999"), 2, "partition 2 has 0 to 0."),
        (("replay", "landed", "count"), 2, "--from"),
        (("replay", "landed", " ", "--from", "first"), 2, "a group has a name"),
        (
            ("replay", "landed", "count", "--from", "99999999"),
            2,
            "cannot be read from offset 99999999: partition 0",
        ),
    ],
)
def test_mistakes_are_told(
    log: LogCommand, rabbit_uri: str, argv: tuple[str, ...], code: int, said: str
) -> None:
    land(rabbit_uri, 1)

    done = log(*argv)

    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr


def test_dead_letters_of_a_log_are_shown_with_their_place(
    mycelia: MyceliaCommand, tmp_path: Path, rabbit_uri: str
) -> None:
    land(rabbit_uri, 3)

    async def publish_garbage(client: Client) -> None:
        bad = Message("landed", "0", b"\xff", Properties(content_type="application/json"))
        await client.link.publish(bad)

    on_client(rabbit_uri, publish_garbage)
    handle(rabbit_uri, 3)

    def shown(*more: str) -> Done:
        queue = "log-landed--count.dead"
        return mycelia("dlq", "show", queue, *more, cwd=tmp_path, AMQP_URI=rabbit_uri)

    place = json.loads(shown("--json").stdout)["log_place"]
    assert place["partition"] == 0
    assert f"in the log   partition 0, offset {place['offset']}" in shown().stdout
    assert "undecodable" in shown().stdout


def append(uri: str, log_: Log[Any], values: list[dict[str, Any]]) -> None:
    on_client(uri, lambda client: client.append_many(log_, values))


def test_logs_are_compared_by_what_identifies_their_records(
    log: LogCommand, rabbit_uri: str
) -> None:
    old = Log("counted", key="origin", partitions=2)
    new = Log("counted.shadow", key="origin", partitions=3)
    rows = [{"origin": f"A{n % 7}", "hour": n // 7, "flights": n, "pid": 1} for n in range(70)]
    append(rabbit_uri, old, rows)
    append(rabbit_uri, new, [{**row, "pid": 2} for row in reversed(rows)])
    by = ("diff", "counted", "counted.shadow", "--by", "key,value.hour")

    same = log(*by, "--ignore", "pid")
    append(rabbit_uri, new, [{"origin": "A1", "hour": 99, "flights": 1, "pid": 2}])
    one_more = log(*by, "--ignore", "pid")
    all_differ = log(*by, "--json", "--show", "1")

    assert (same.returncode, same.stderr) == (0, "")
    assert same.stdout.startswith("70 the same, 0 different, 0 only in counted, 0 only in counted")
    assert one_more.returncode == 1
    assert one_more.stdout.splitlines()[0].startswith('+ "A1", 99  0: {"flights": 1')
    told = json.loads(all_differ.stdout)
    assert (told["different"], told["only_right"], len(told["differences"])) == (70, 1, 1)


def test_a_group_s_way_is_shown_until_it_has_caught_up(log: LogCommand, rabbit_uri: str) -> None:
    land(rabbit_uri, 30)
    handle(rabbit_uri, 30)
    log("replay", "landed", "count", "--from", "first")

    async def run() -> Done:
        class Counting:
            name = "counting"

            @log_handler(LANDED, group="count")
            async def landed(self, records: list[Record[Any]]) -> None:
                await asyncio.sleep(0.3)

        async with run_services(Counting, broker=rabbit_uri):
            return await asyncio.to_thread(log, "lag", "landed", "count", "--follow")

    done = asyncio.run(run())

    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "caught up: 30 entries"


def test_who_has_read_enough_ends_the_command_without_a_word(
    tmp_path: Path, rabbit_uri: str
) -> None:
    land(rabbit_uri, 3)
    argv = (*MYCELIA, "log", "tail", "landed", "--from", "first")
    with subprocess.Popen(
        argv,
        cwd=tmp_path,
        env=environment(AMQP_URI=rabbit_uri),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as tail:
        assert tail.stdout is not None
        assert tail.stderr is not None
        first = tail.stdout.readline()
        tail.stdout.close()
        land(rabbit_uri, 30, 3)
        said = tail.stderr.read()

    assert "P" in first
    assert (tail.returncode, said) == (0, "")


def test_looking_on_that_is_ended_says_how_far_the_group_is_and_how_to_go_on(
    tmp_path: Path, rabbit_uri: str
) -> None:
    land(rabbit_uri, 10)
    handle(rabbit_uri, 10)
    argv = (*MYCELIA, "log", "replay", "landed", "count", "--from", "first", "--follow")
    with Process(*argv, cwd=tmp_path, AMQP_URI=rabbit_uri) as replay:
        assert replay.wait_until(lambda lines: any("it has not begun" in one for one in lines), 40)
        replay.send(signal.SIGINT)
        assert replay.wait_until(lambda lines: any("To look on" in one for one in lines), 20)
        said = replay.output

    assert "stopped looking: 0 of 10 entries (0%), 10 to go" in said
    assert "at 0 of" in said
    assert "mycelia log lag landed count --follow" in said
