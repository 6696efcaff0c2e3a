"""What cannot be taken, many at once among good records: dead letters with partition, offset and reason; handlers and flows go on."""

from __future__ import annotations

import sys
import time
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.flows.counting import Tally, config

from mycelia import Client, Log, Record, log_handler
from mycelia.amqp import Link, Message, Properties
from mycelia.errors import ConfigError
from mycelia.flow import FlowOutput, Stream, flow
from mycelia.logs import LogHandler
from mycelia.logs.batch_format import encode_columns, entry_properties
from mycelia.testing import TakenLetter, eventually, run_services, take_dead_letters
from mycelia.wire import compressor_of

YEAR_MS = 365 * 86_400_000
NOW_MS = int(time.time() * 1000)


@dataclass
class Landed:
    plane: str
    number: int

    def __post_init__(self) -> None:
        if self.number == -13:
            raise KeyError("a type's own check")
        if self.number == -14:
            sys.exit("a type's own check")


LANDED = Log("landed", of=Landed, key="plane", partitions=2)
PASSED: Log[Landed] = Log("passed", of=Landed, partitions=1)

pack = msgspec.msgpack.encode


def batch(
    *values: Any, times: list[int | None] | None = None, count: int | None = None
) -> tuple[Properties, bytes]:
    body = encode_columns(
        ["P1"] * len(values), times or [None] * len(values), None, [pack(one) for one in values]
    )
    properties = entry_properties(len(values) if count is None else count, "foreign", 0)
    for header in ("x-log-producer", "x-log-sequence"):
        assert properties.headers is not None
        del properties.headers[header]
    return properties, body


def compressed(name: str, body: bytes) -> tuple[Properties, bytes]:
    content_type, compress = compressor_of(name)
    properties, _ = batch(Landed("P1", 0))
    assert properties.headers is not None
    properties.headers["compression"] = content_type
    return properties, compress(body)


def corrupted(made: tuple[Properties, bytes]) -> tuple[Properties, bytes]:
    properties, body = made
    middle = len(body) // 2
    return properties, body[:middle] + bytes([body[middle] ^ 0xFF]) + body[middle + 1 :]


def plain(content_type: str, body: bytes, **headers: Any) -> tuple[Properties, bytes]:
    return Properties(content_type=content_type, headers=headers), body


def hostile() -> dict[str, tuple[Properties, bytes]]:
    """Entries each of which is one dead letter."""
    whole = batch(*(Landed("P1", number) for number in range(50)))
    long = encode_columns(
        ["P1"] * 500, [None] * 500, None, [pack(Landed("P1", n)) for n in range(500)]
    )
    return {
        "ends too soon": (whole[0], whole[1][:-7]),
        "says more than there is": batch(Landed("P1", -1), count=7),
        "four billion values": (whole[0], b"\x94\xc0\xc0\xc0\xdd\xff\xff\xff\xff"),
        "a string of four billion": (whole[0], b"\x94\xc0\xc0\xc0\x91\xdb\xff\xff\xff\xff"),
        "nested": (whole[0], b"\x94\xc0\xc0\xc0" + b"\x91" * 100_000),
        "zlib bomb": compressed("zlib", bytes(17 * 1024 * 1024)),
        "zlib, wrong checksum": corrupted(compressed("zlib", long)),
        "zlib, cut": (compressed("zlib", long)[0], zlib.compress(long)[:-9]),
        "zstd bomb": compressed("zstd", bytes(17 * 1024 * 1024)),
        "zstd, corrupted": corrupted(compressed("zstd", long)),
        "not compressed": (compressed("zstd", long)[0], long),
        "no such compression": (
            Properties(
                content_type=whole[0].content_type,
                headers={**(whole[0].headers or {}), "compression": "application/x-none"},
            ),
            whole[1],
        ),
        "another version": (
            Properties(
                content_type=whole[0].content_type,
                headers={**(whole[0].headers or {}), "x-log-format": 9},
            ),
            whole[1],
        ),
        "columns of other lengths": (
            Properties(content_type=whole[0].content_type, headers={"x-log-format": 1}),
            pack([["P1"], None, None, [Landed("P1", 1), Landed("P1", 2)]]),
        ),
        "no text": plain("application/json", b"\xff\xfe"),
        "another type": plain("application/json", b'{"plane": 7}'),
        "its type raises": plain("application/json", b'{"plane": "P1", "number": -13}'),
        "its type quits": batch({"plane": "P1", "number": -14}),
        "nothing known": plain("text/html", b"<p>"),
        "empty": plain("application/x-msgpack", b""),
        "a key that is none": plain(
            "application/json", b'{"plane": "P1", "number": 1}', **{"x-log-key": 1.5}
        ),
        "before 1970": batch(Landed("P1", -2), times=[-1]),
        "far ahead": batch(Landed("P1", -3), times=[NOW_MS + YEAR_MS + 86_400_000]),
        "plain and far ahead": plain(
            "application/json", b'{"plane": "P1", "number": -4}', **{"x-log-time-ms": 2**62}
        ),
    }


def good(number: int) -> list[tuple[Properties, bytes]]:
    """Two records, of programs that know nothing of us."""
    return [
        plain("application/json", b'{"plane": "P1", "number": %d}' % number),
        plain("application/x-msgpack", pack(Landed("P1", number + 1)), **{"x-log-key": "P1"}),
    ]


async def publish(link: Link, times: int) -> tuple[list[int], int]:
    """Bad entries, each `times` times, among good records; which numbers are good, and how many are bad."""
    await LANDED.declare(link)
    numbers: list[int] = []
    bad = list(hostile().values())
    for round_ in range(times):
        for at, one in enumerate(bad):
            number = 2 * (round_ * len(bad) + at)
            numbers += [number, number + 1]
            for properties, body in (one, *good(number)):
                await link.publish(
                    Message("landed", str(at % 2), body, properties, mandatory=True), timeout=20
                )
    return numbers, times * len(bad)


def check(letters: list[TakenLetter], bad: int) -> None:
    assert len(letters) == bad
    places = [(one.headers["x-log-partition"], one.headers["x-log-offset"]) for one in letters]
    assert len(set(places)) == bad
    assert Counter(one.reason for one in letters) == {
        "undecodable": bad * 21 // 24,
        "rejected": bad * 3 // 24,
    }
    for letter, (partition, offset) in zip(letters, places, strict=True):
        assert f"partition {partition}, offset {offset}" in letter.error


async def test_handler_goes_on_and_each_bad_entry_is_a_dead_letter_with_its_place(
    broker: str,
) -> None:
    handled: list[int] = []

    class Counting:
        name = "counting"

        @log_handler(LANDED)
        async def landed(self, records: list[Record[Landed]]) -> None:
            handled.extend(record.value.number for record in records)

    async with Client(broker) as client:
        numbers, bad = await publish(client.link, 2)
        async with run_services(Counting, broker=broker):
            await eventually(lambda: len(handled) >= len(numbers), 40)
            letters = await take_dead_letters(
                client.link, "log-landed--counting.landed", bad, timeout=30
            )

    assert sorted(handled) == sorted(numbers)
    check(letters, bad)


async def test_flow_goes_on_and_each_bad_entry_is_a_dead_letter_with_its_place(
    broker: str, tmp_path: Path
) -> None:
    class Passing:
        name = "passing"

        @flow(LANDED, commit_every="20ms")
        def on(self, landed: Stream[Landed]) -> FlowOutput:
            return landed.map(lambda one: one).to(PASSED)

    async with Client(broker) as client:
        numbers, bad = await publish(client.link, 2)
        tally = Tally(client, PASSED)
        async with run_services(Passing, broker=broker, config=config(tmp_path)):
            await eventually(lambda: tally.has(len(numbers)), 40)
            letters = await take_dead_letters(
                client.link, "log-landed--passing.on", bad, timeout=30
            )
        await tally.aclose()

    assert sorted(record.value.number for record in tally.records) == sorted(numbers)
    check(letters, bad)


async def test_many_bad_records_of_one_entry_are_a_dead_letter_each(broker: str) -> None:
    """With their keys and headers, so that they may be appended again; the others are handled together."""
    handled: list[list[int]] = []

    class Counting:
        name = "counting"

        @log_handler(LANDED)
        async def landed(self, records: list[Record[Landed]]) -> None:
            handled.append([record.value.number for record in records])

    values: list[Any] = [
        {"plane": "P1", "number": n if n % 2 else "no number"} for n in range(1000)
    ]
    times = [-5 if n % 10 == 1 else n for n in range(1000)]
    headers = [{"row": n} for n in range(1000)]
    body = encode_columns(["P1"] * 1000, times, headers, [pack(one) for one in values])
    properties = Properties(
        content_type="application/x-mycelia-records", headers={"x-log-format": 1}
    )
    async with Client(broker) as client:
        await LANDED.declare(client.link)
        await client.link.publish(Message("landed", "0", body, properties, mandatory=True))
        async with run_services(Counting, broker=broker):
            await eventually(lambda: bool(handled), 30)
            letters = await take_dead_letters(
                client.link, "log-landed--counting.landed", 600, timeout=30
            )

    assert handled == [[n for n in range(1000) if n % 2 and n % 10 != 1]]
    assert sorted(one.headers["x-log-index"] for one in letters) == [
        n for n in range(1000) if not n % 2 or n % 10 == 1
    ]
    assert all(one.headers["row"] == one.headers["x-log-index"] for one in letters)
    assert {one.headers["x-log-key"] for one in letters} == {"P1"}


async def test_times_that_are_allowed_are_handled(broker: str) -> None:
    handled: list[int] = []

    class History:
        name = "history"

        @log_handler(LANDED, ahead=None)
        async def landed(self, records: list[Record[Landed]]) -> None:
            handled.extend(record.value.number for record in records)

    async with Client(broker) as client, run_services(History, broker=broker):
        await client.append_many(
            LANDED, [Landed("P1", 1), Landed("P1", 2)], times=[-1, NOW_MS + 3 * YEAR_MS]
        )
        await eventually(lambda: handled == [1, 2], 20)


def test_what_is_no_time_ahead_is_refused_where_it_is_written() -> None:
    with pytest.raises(ConfigError, match="ahead="):
        LogHandler(LANDED, ahead="soon")
