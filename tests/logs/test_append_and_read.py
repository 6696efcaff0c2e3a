"""What is appended to a log is read from it: in order, once, from where one likes, and what does not fit is told."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from tests.logs.shapes import Departed, layout, read, records_of, shape, writing

from mycelia.amqp import Delivery, Link, LinkConsumer, Message, Properties
from mycelia.errors import (
    ConfigError,
    ContractError,
    OffsetGone,
    RuntimeStateError,
    TopologyError,
    UnserializableValueError,
)
from mycelia.logs import Record, partition_of
from mycelia.logs.batch_format import encode_columns, entry_properties
from mycelia.logs.layout import declare_log, log_layout, stream_name
from mycelia.logs.log_diff import DiffRoom, LogComparison
from mycelia.logs.log_tail import LogTail
from mycelia.logs.position import LogPosition
from mycelia.logs.reader import LogReader
from mycelia.logs.stream_ends import first_offset, last_offset
from mycelia.logs.writer import LogWriter
from mycelia.testing import eventually
from mycelia.wire import compressor_of

LinkFactory = Callable[[], Awaitable[Link]]

ONE = layout(1)


def entry_of(*numbers: int, producer: str = "p", sequence: int) -> tuple[bytes, Properties]:
    values = [Departed("JFK", number) for number in numbers]
    columns = (["JFK"] * len(values), [1] * len(values), None, [shape().codec.encode(values)])
    return encode_columns(*columns), entry_properties(len(values), producer, sequence)


async def publish(link: Link, body: bytes, properties: Properties) -> None:
    await link.publish(Message("flights.departed", "0", body, properties, mandatory=True))


async def numbers_read(link: Link, count: int, start: Any = "first") -> list[int]:
    return [record.value.number for record in records_of(await read(link, ONE, 0, count, start))]


async def test_records_are_read_with_all_they_had(link: Link) -> None:
    async with writing(link, ONE) as writer:
        await writer.append(Departed("JFK", 1, 5), headers={"trace": "4bf9"})
        await writer.append(Departed("LGA", 2), key=17, time=datetime(2026, 11, 26, tzinfo=UTC))
        await writer.append(Departed("LGA", 3), key=None)

    records = records_of(await read(link, ONE, 0, 3))

    assert [(one.key, one.time, one.headers, one.value.number) for one in records] == [
        ("JFK", 5, {"trace": "4bf9"}, 1),
        (17, 1795651200000, None, 2),
        (None, 0, None, 3),
    ]


async def test_records_of_a_key_are_in_its_partition_in_order(link: Link) -> None:
    of = layout(4)
    flights = [Departed(f"K{number % 13}", number) for number in range(500)]
    async with writing(link, of, linger=0.001) as writer:
        await writer.append_many(flights[:200])
        await asyncio.gather(*(writer.append(flight) for flight in flights[200:300]))
        for begin in range(300, 500, 50):
            await writer.append_many(flights[begin : begin + 50])

    for partition in range(4):
        expected = [one for one in flights if partition_of(one.origin, 4) == partition]
        read_back = records_of(await read(link, of, partition, len(expected)))
        by_key: dict[Any, list[int]] = {}
        for record in read_back:
            by_key.setdefault(record.key, []).append(record.value.number)
        assert sorted(one.value.number for one in read_back) == [one.number for one in expected]
        assert all(numbers == sorted(numbers) for numbers in by_key.values())


async def test_appends_of_a_moment_share_a_message(link: Link) -> None:
    async with writing(link, ONE) as writer:
        await asyncio.gather(*(writer.append(Departed("JFK", number)) for number in range(100)))

        assert writer.statistics().batches == 1
        assert writer.statistics().records == 100

    (entry,) = await read(link, ONE, 0, 100)
    assert [record.value.number for record in entry.records] == list(range(100))
    assert list(entry.indexes) == list(range(100))


async def test_batches_are_no_larger_than_asked(link: Link) -> None:
    async with writing(link, ONE, batch_bytes=1000, compression=None) as writer:
        await writer.append_many([Departed("JFK", number) for number in range(200)])

    entries = await read(link, ONE, 0, 200)

    assert len(entries) > 10
    assert max(entry.size for entry in entries) < 1500
    assert [one.value.number for one in records_of(entries)] == list(range(200))


async def test_keys_and_headers_count_in_what_a_batch_may_have(link: Link) -> None:
    """Small records under keys of 8 KB would be more together than a reader takes."""
    async with writing(link, ONE) as writer:
        records = [Departed("JFK", number) for number in range(3000)]
        await writer.append_many(records, keys=[f"{number:08000}" for number in range(3000)])
        await writer.append(Departed("JFK", 3000), headers={"note": "\N{AIRPLANE}" * 2_000_000})

    entries = await read(link, ONE, 0, 3001)

    assert [fault for entry in entries for fault in entry.faults] == []
    assert [one.value.number for one in records_of(entries)] == list(range(3001))


async def test_large_batches_are_compressed_and_read(link: Link) -> None:
    async with writing(link, ONE, compression="zlib") as writer:
        await writer.append_many([Departed("JFK", number) for number in range(2000)])

    entries = await read(link, ONE, 0, 2000)

    assert sum(entry.size for entry in entries) < 30_000
    assert [one.value.number for one in records_of(entries)] == list(range(2000))


@pytest.mark.parametrize(
    ("value", "changes", "error"),
    [
        (Departed("JFK", "x"), {}, UnserializableValueError),  # type: ignore[arg-type]
        ({"number": 1}, {"key": "k"}, ContractError),
        (Departed("JFK", 1), {"key": True}, ContractError),
        (Departed("JFK", 1), {"key": 2**64}, ContractError),
        (Departed("JFK", 1), {"time": "now"}, ContractError),
        (Departed("JFK", 1), {"time": 2**70}, ContractError),
        (Departed("JFK", 1), {"headers": {"x": object()}}, UnserializableValueError),
        (Departed("JFK", 1), {"headers": {1: "x"}}, UnserializableValueError),
        (Departed("\ud800", 1), {}, (UnserializableValueError, ContractError)),
        (Departed("x" * 9_000_000, 1), {}, UnserializableValueError),
        (Departed("JFK", 1), {"key": "x" * 9_000_000}, UnserializableValueError),
        (Departed("JFK", 1), {"key": b"x" * 9_000_000}, UnserializableValueError),
        (Departed("JFK", 1), {"headers": {"x": "\N{SEAT}" * 3_000_000}}, UnserializableValueError),
        (7, {}, ContractError),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_what_cannot_be_appended_is_told_and_harms_nobody_else(
    link: Link, value: Any, changes: dict[str, Any], error: Any
) -> None:
    async with writing(link, ONE) as writer:
        before, bad, after = await asyncio.gather(
            writer.append(Departed("JFK", 1)),
            writer.append(value, **changes),
            writer.append(Departed("JFK", 2)),
            return_exceptions=True,
        )
        many = {f"{name.removesuffix('s')}s": [None, one] for name, one in changes.items()}
        with pytest.raises(error):
            await writer.append_many([Departed("JFK", 9), value], **many)

    assert (before, after) == (None, None)
    assert isinstance(bad, error), bad
    assert await numbers_read(link, 2) == [1, 2]


async def test_one_bad_key_among_many_is_told_before_anything_is_appended(link: Link) -> None:
    async with writing(link, ONE) as writer:
        for key in ("\ud800", True, 2**64, 1.5):
            with pytest.raises(ContractError, match="key "):
                await writer.append_many([Departed("JFK", 1)] * 3, keys=["a", key, "b"])  # type: ignore[list-item]
        with pytest.raises(ContractError):
            await writer.append_many([Departed("JFK", 1), Departed("\ud800", 1)])

        assert writer.statistics().unconfirmed_bytes == 0
        await writer.append_many([Departed("JFK", 1)] * 3, keys=["a", 7, None])

    assert [r.key for r in records_of(await read(link, ONE, 0, 3))] == ["a", 7, None]


async def test_repeated_batch_is_read_once_also_behind_later_ones(link: Link) -> None:
    await declare_log(link, ONE)
    for numbers, sequence in [((1, 2), 0), ((3,), 1), ((1, 2), 0), ((5,), 3), ((4,), 2), ((3,), 1)]:
        await publish(link, *entry_of(*numbers, sequence=sequence))
    await publish(link, *entry_of(6, producer="q", sequence=0))

    async with LogReader(link, ONE, shape(), 0) as reader:
        entries = [await reader.take(10) for _ in range(5)]

        assert [one.value.number for one in records_of(entries)] == [1, 2, 3, 5, 4, 6]  # type: ignore[arg-type]
        assert reader.statistics().repeated == 2


async def test_position_remembers_what_came_before_it(link: Link) -> None:
    await declare_log(link, ONE)
    await publish(link, *entry_of(1, sequence=0))
    async with LogReader(link, ONE, shape(), 0) as reader:
        await reader.take(10)
        position = msgspec.json.decode(msgspec.json.encode(reader.position), type=LogPosition)
    await publish(link, *entry_of(1, sequence=0))
    await publish(link, *entry_of(2, sequence=1))

    assert position.offset == 1
    assert await numbers_read(link, 1, position) == [2]


async def test_position_of_a_reader_is_behind_what_it_has_handed_out(link: Link) -> None:
    async with writing(link, ONE, linger=0) as writer:
        for number in range(10):
            await writer.append(Departed("JFK", number))
    async with LogReader(link, ONE, shape(), 0) as reader:
        for _ in range(4):
            await reader.take(10)

        assert reader.position is not None
        assert reader.position.offset == 4
        assert await numbers_read(link, 6, reader.position) == [4, 5, 6, 7, 8, 9]


async def test_reading_begins_where_one_likes(link: Link) -> None:
    async with writing(link, ONE, linger=0) as writer:
        for number in range(5):
            await writer.append(Departed("JFK", number))

        assert await numbers_read(link, 5, "first") == [0, 1, 2, 3, 4]
        assert await numbers_read(link, 2, 3) == [3, 4]
        for year in (1, 1969, 2001):
            long_ago = datetime(year, 1, 1, tzinfo=UTC)
            assert await numbers_read(link, 5, long_ago) == [0, 1, 2, 3, 4]
        last = await numbers_read(link, 1, "last")
        assert last[0] in range(5)
        async with (
            LogReader(link, ONE, shape(), 0, "next") as following,
            LogReader(link, ONE, shape(), 0, 5) as beyond,
        ):
            await writer.append(Departed("JFK", 5))

            for reader in (following, beyond):
                entry = await reader.take(10)
                assert entry is not None
                assert entry.offset == 5


async def test_end_of_a_log_that_never_rests_is_found(link: Link) -> None:
    stop = asyncio.Event()
    async with writing(link, ONE, linger=0) as writer:

        async def append() -> None:
            number = 0
            while not stop.is_set():
                await writer.append(Departed("JFK", number))
                number += 1

        appending = asyncio.ensure_future(append())
        async with asyncio.timeout(10), LogReader(link, ONE, shape(), 0, "next") as reader:
            assert await reader.take() is not None
        stop.set()
        await appending


@pytest.mark.parametrize(
    "start",
    ["begin", -1, True, 1.5, datetime(2026, 1, 1), None],  # noqa: DTZ001  no time zone is the mistake
)
async def test_start_that_is_none_is_refused(link: Link, start: Any) -> None:
    with pytest.raises(ConfigError, match="start="):
        LogReader(link, ONE, shape(), 0, start)


async def test_reader_of_an_offset_that_the_log_has_not_come_to_is_told(link: Link) -> None:
    async with writing(link, ONE) as writer:
        await writer.append(Departed("JFK", 1))

    with pytest.raises(OffsetGone, match=r"offset 7, but the log ends at 0: .* made anew"):
        await LogReader(link, ONE, shape(), 0, 7).open()


async def test_reader_of_an_offset_that_retention_has_passed_is_told(rabbit_uri: str) -> None:
    """Never a silent jump to what is left."""
    from mycelia.amqp import connect
    from mycelia.testing import eventually

    link = connect(rabbit_uri)
    await link.open(15)
    of = log_layout("flights.departed", 1, None, 20_000, 10_000)
    async with writing(link, of, compression=None) as writer:
        for number in range(40):
            await writer.append(Departed("J" * 4000, number))

        async def is_gone() -> bool:
            await writer.append(Departed("J" * 4000, 99))
            return await first_offset(link, "flights.departed-0") != 0

        await eventually(is_gone, 60, what="the first segments are deleted", interval=0.3)
    with pytest.raises(OffsetGone, match=r"go on from offset 0, but the log begins at \d+ now"):
        await LogReader(link, of, shape(), 0, LogPosition(offset=0)).open()
    assert len(await read(link, of, 0, 1, "first")) == 1
    await link.aclose()


async def test_plain_message_of_any_client_is_a_record(link: Link) -> None:
    await declare_log(link, ONE)
    body = b'{"origin": "JFK", "number": 7, "at_ms": 3}'
    await publish(link, body, Properties(content_type="application/json", headers={"x": "y"}))

    (record,) = records_of(await read(link, ONE, 0, 1))

    assert (record.key, record.time, record.headers) == ("JFK", 3, {"x": "y"})
    assert record.value == Departed("JFK", 7, 3)


async def test_what_cannot_be_read_is_told_with_its_place_and_the_rest_is_read(link: Link) -> None:
    await declare_log(link, ONE)
    await publish(link, *entry_of(1, sequence=0))
    await publish(link, b"\x93garbage", entry_properties(3, "p", 1))
    await publish(link, b"no json", Properties(content_type="application/json"))
    await publish(link, *entry_of(2, sequence=2))

    entries = await read(link, ONE, 0, 4)

    assert [(e.offset, len(e.records), len(e.faults)) for e in entries] == [
        *((0, 1, 0), (1, 0, 1)),
        *((2, 0, 1), (3, 1, 0)),
    ]
    assert entries[1].faults[0].body == b"\x93garbage"


async def test_what_waits_for_a_slow_reader_is_bounded(link: Link) -> None:
    await declare_log(link, ONE)
    for sequence in range(100):
        values = [Departed("x" * 1000, number) for number in range(100)]
        body = encode_columns(["x"] * 100, [1] * 100, None, [shape().codec.encode(values)])
        await publish(link, body, entry_properties(100, "p", sequence))
    most = 0
    count = 0
    async with LogReader(link, ONE, shape(), 0, buffer_bytes=500_000) as reader:
        while count < 100:
            assert await reader.take(10)
            count += 1
            if count > 50:
                most = max(most, reader.statistics().buffered_bytes)
                await asyncio.sleep(0.005)

    assert most <= 700_000


async def test_closed_writer_and_reader_say_so(link: Link) -> None:
    async with writing(link, ONE) as writer:
        pass
    reader = LogReader(link, ONE, shape(), 0)

    with pytest.raises(RuntimeStateError, match="nothing was appended: its writer is closed"):
        await writer.append(Departed("JFK", 1))
    with pytest.raises(RuntimeStateError, match="not open"):
        await reader.take()
    async with reader:
        taking = asyncio.ensure_future(reader.take())
        await asyncio.sleep(0)
    with pytest.raises(RuntimeStateError, match="is closed"):
        await taking


async def test_reading_what_was_never_declared_is_an_error(link: Link) -> None:
    with pytest.raises(TopologyError):
        await LogReader(link, ONE, shape(), 0, "last").open()


async def test_deleted_partition_is_made_anew_for_the_next_append(link: Link) -> None:
    async with writing(link, ONE) as writer:
        await writer.append(Departed("JFK", 1))
        await link.delete_queue("flights.departed-0")

        await writer.append(Departed("JFK", 2))

    assert await numbers_read(link, 1) == [2]


@pytest.mark.long_variants("memory-*-none", "memory-*-short", "rabbit-*-short", "rabbit-*-any")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("patience", [0.0, 0.25, None], ids=["none", "short", "any"])
@pytest.mark.parametrize(
    ("again", "said"), [(1, "ends at 0"), (5, "another entry 4"), (9, "4 now")]
)
async def test_partition_that_is_made_anew_under_a_reader_is_told(
    link: Link, patience: float | None, again: int, said: str
) -> None:
    """What the new one holds is not passed over in silence, whether it has become as long as the old one or not."""

    async def read_on() -> None:
        while True:
            assert await reader.take(patience) is None
            await asyncio.sleep(0.01)

    async with writing(link, ONE, linger=0) as writer:
        for number in range(5):
            await writer.append(Departed("JFK", number))
        async with LogReader(link, ONE, shape(), 0) as reader:
            for _ in range(4):
                assert await reader.take(10) is not None
            await eventually(lambda: reader.statistics().buffered == 1, 30)
            await link.delete_queue(stream_name(ONE.name, 0))
            assert await reader.take(10) is not None, "what is buffered stays good"
            for number in range(again):
                await writer.append(Departed("JFK", number))
            with pytest.raises(OffsetGone, match=f"the log .*{said}.* made anew"):
                await read_on()
            kept = reader.position
        assert kept is not None
        with pytest.raises(OffsetGone, match="made anew"):  # a checkpoint knows it, too
            async with LogReader(link, ONE, shape(), 0, kept) as reader:
                await read_on()


@pytest.mark.timeout(60)
async def test_log_that_nobody_declares_anew_is_waited_for_and_told_until_somebody_does(
    link: Link, link_factory: LinkFactory, caplog: pytest.LogCaptureFixture
) -> None:
    async with writing(link, ONE, linger=0) as writer:
        await writer.append(Departed("JFK", 0))
    reading = await link_factory()
    async with LogReader(reading, ONE, shape(), 0) as reader:
        assert await reader.take(30) is not None
        caplog.clear()

        await link.delete_queue(stream_name(ONE.name, 0))
        await eventually(lambda: "no queue" in caplog.text, 30)
        assert await reader.take(0.1) is None

        await declare_log(link, ONE)
        with pytest.raises(OffsetGone, match="made anew"):
            await reader.take(30)


@asynccontextmanager
async def looking_again(
    link: Link,
) -> AsyncIterator[tuple[LogWriter[Departed], LogReader[Departed]]]:
    """A reader that has read all there is, and lost its connection since: after three seconds it looks up the end."""
    async with (
        writing(link, ONE, linger=0) as writer,
        LogReader(link, ONE, shape(), 0) as reader,
    ):
        await writer.append(Departed("JFK", 0))
        assert await reader.take(30) is not None
        reader._on_lost()
        yield writer, reader


async def test_log_that_goes_on_while_its_end_is_looked_up_is_the_same(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an outage: what has been found out by then is older than what has come."""
    looked: list[int | None] = []

    async def looked_up(of: Link, stream: str, enough: int | None = None) -> int | None:
        found = await last_offset(of, stream, enough)
        if not looked:
            for number in (1, 2, 3):
                await writer.append(Departed("JFK", number))
            await eventually(lambda: reader.statistics().buffered == 3, 30)
        looked.append(found)
        return found

    monkeypatch.setattr("mycelia.logs.reader.last_offset", looked_up)
    async with looking_again(link) as (writer, reader):
        entries = [await reader.take(30) for _ in range(3)]

    assert looked == [0]
    assert [one.value.number for one in records_of(entries)] == [1, 2, 3]


async def test_look_at_the_end_that_is_broken_off_is_taken_up_again(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flow with two sources breaks off one `take()` as soon as the other has something."""
    began = asyncio.Event()

    async def looked_up(of: Link, stream: str, enough: int | None = None) -> int | None:
        if not began.is_set():
            began.set()
            await asyncio.Event().wait()
        return None

    monkeypatch.setattr("mycelia.logs.reader.last_offset", looked_up)
    async with looking_again(link) as (_, reader):
        taking = asyncio.ensure_future(reader.take())
        await began.wait()
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        with pytest.raises(OffsetGone, match="made anew"):
            await reader.take(30)


async def test_end_that_a_busy_broker_is_slow_to_tell_is_waited_for(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has just been started counts nothing yet, and its messages come with pauses between them."""
    consume = link.consume
    pauses = iter((0.8, 0.4, 0.4))

    async def slowly(queue: str, on_deliveries: Any, *args: Any, **options: Any) -> LinkConsumer:
        def come(deliveries: list[Delivery]) -> None:
            nonlocal at
            for delivery in deliveries:
                at = max(at, loop.time()) + next(pauses)
                loop.call_at(at, on_deliveries, [delivery])

        loop = asyncio.get_running_loop()
        at = loop.time()
        return await consume(queue, come, *args, **options)

    async def none_yet(queue: str) -> int:
        return 0

    async with writing(link, ONE, linger=0) as writer:
        await writer.append(Departed("JFK", 0))
    await asyncio.gather(*(publish(link, *entry_of(n, sequence=n)) for n in (1, 2)))
    monkeypatch.setattr(link, "consume", slowly)
    monkeypatch.setattr(link, "message_count", none_yet)

    last = await last_offset(link, stream_name(ONE.name, 0), 2)

    assert last == 2


async def test_reader_that_has_got_nothing_yet_is_told_as_well(link: Link) -> None:
    async with writing(link, ONE, linger=0) as writer:
        for number in range(3):
            await writer.append(Departed("JFK", number))
        async with LogReader(link, ONE, shape(), 0, 3) as reader:
            assert await reader.take(0.25) is None
            await link.delete_queue(stream_name(ONE.name, 0))
            for number in range(3):
                await writer.append(Departed("JFK", number))
            with pytest.raises(OffsetGone, match="the log has another entry 2 now"):
                await reader.take()


async def test_deleted_partition_is_not_taken_for_another_that_is_written_at_the_same_time(
    link: Link,
) -> None:
    """What comes back as unroutable is told apart by its message id."""
    of = layout(2)
    async with writing(link, of, linger=0) as writer:
        await link.delete_queue("flights.departed-0")

        await asyncio.gather(
            writer.append(Departed("JFK", 1)),  # to partition 1
            writer.append(Departed("LGA", 2)),  # to partition 0
        )

    assert [r.value.number for r in records_of(await read(link, of, 0, 1))] == [2]
    assert [r.value.number for r in records_of(await read(link, of, 1, 1))] == [1]


@asynccontextmanager
async def turning() -> AsyncIterator[Callable[[], int]]:
    """Counts how often the event loop has come round."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.ensure_future(count())
    yield lambda: turns
    counting.cancel()


async def test_what_is_buffered_is_not_read_in_one_turn_of_the_loop(link: Link) -> None:
    """Entries of 64 KiB: five of them at the most."""
    of = layout(1)
    async with writing(link, of, linger=0, batch_bytes=64 * 1024, compression=None) as writer:
        for number in range(64):
            await writer.append(Departed("J" * 64 * 1024, number))
    seen: list[int] = []
    async with LogReader(link, of, shape(), 0) as reader, turning() as turns:
        await eventually(lambda: reader.statistics().buffered >= 16, 30)
        for _ in range(16):
            assert await reader.take(0) is not None
            seen.append(turns())

    assert max(Counter(seen).values()) <= 5


async def test_a_large_entry_is_read_beside_the_loop(link: Link) -> None:
    """And one that is small only because it is compressed."""
    of = layout(1)
    await declare_log(link, of, 30)
    value = msgspec.msgpack.encode(Departed("JFK", 1))
    body = encode_columns(["JFK"] * 60_000, [None] * 60_000, None, [value] * 60_000)
    content_type, compress = compressor_of("zlib")
    headers = {"x-log-format": 1, "compression": content_type}
    for packed, of_it in ((body, {"x-log-format": 1}), (compress(body), headers)):
        properties = Properties(content_type="application/x-mycelia-records", headers=of_it)
        await link.publish(Message(of.name, "0", packed, properties, mandatory=True), timeout=15)

    async with LogReader(link, of, shape(), 0) as reader, turning() as turns:
        await eventually(lambda: reader.statistics().buffered == 2, 30)
        seen = [turns()]
        for _ in range(2):
            await reader.take(0)
            seen.append(turns())
        assert reader.statistics().records == 120_000

    assert seen[1] - seen[0] >= 5
    assert seen[2] - seen[1] >= 5


async def test_a_large_entry_whose_reading_is_cancelled_is_read_by_the_next(link: Link) -> None:
    of = layout(1)
    async with writing(link, of, linger=0, compression=None) as writer:
        await writer.append(Departed("J" * 600_000, 1))
    async with LogReader(link, of, shape(), 0) as reader:
        await eventually(lambda: reader.statistics().buffered == 1, 30)
        reading = asyncio.ensure_future(reader.take())
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        entry = await reader.take(15)

    assert entry is not None
    assert entry.records[0].value.number == 1


async def test_numbered_batches_that_are_appended_again_are_read_once(
    link_factory: LinkFactory,
) -> None:
    """A program dies behind any of its batches, and the next one begins anew at an earlier one. Records go to several partitions."""
    of = layout(3)
    batches = [[Departed(f"K{n % 7}", 10 * n + m) for m in range(10)] for n in range(8)]
    for begin, end in ((0, 3), (1, 6), (0, 8), (7, 8)):
        link = await link_factory()
        async with writing(link, of) as writer:
            for sequence in range(begin, end):
                await asyncio.gather(
                    writer.append(Departed("beside", 1000 * begin + sequence)),
                    writer.append_many(batches[sequence], producer="import", sequence=sequence),
                )

    found: list[Record[Departed]] = []
    for partition in range(3):
        async with LogReader(link, of, shape(), partition) as reader:
            while (entry := await reader.take(0.5)) is not None:
                found += entry.records
    imported = [one.value for one in found if one.key != "beside"]
    assert sorted(one.number for one in imported) == list(range(80))
    for key in {one.origin for one in imported}:
        numbers = [one.number for one in imported if one.origin == key]
        assert numbers == sorted(numbers)
    assert sum(one.key == "beside" for one in found) == 3 + 5 + 8 + 1


async def test_numbered_records_without_a_key_go_to_the_same_partition_again(link: Link) -> None:
    of = layout(3)
    async with writing(link, of) as writer:
        for _ in range(2):
            for sequence in range(6):
                await writer.append_many(
                    [Departed("x", sequence)], keys=[None], producer="import", sequence=sequence
                )
    found = []
    for partition in range(3):
        async with LogReader(link, of, shape(), partition) as reader:
            while (entry := await reader.take(0.5)) is not None:
                found += [(partition, one.value.number) for one in entry.records]

    assert found == [(0, 0), (0, 3), (1, 1), (1, 4), (2, 2), (2, 5)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"producer": "p"}, "sequence=None"),
        ({"sequence": 1}, "producer=None"),
        ({"producer": "", "sequence": 1}, "producer=''"),
        ({"producer": "p", "sequence": -1}, "sequence=-1"),
        ({"producer": "p", "sequence": True}, "sequence=True"),
        ({"producer": "p" * 201, "sequence": 1}, "up to 200 bytes"),
    ],
)
async def test_a_number_that_is_none_is_refused(link: Link, options: Any, said: str) -> None:
    async with writing(link, layout(1)) as writer:
        with pytest.raises(ConfigError, match=re.escape(said)):
            await writer.append_many([Departed("x", 1)], **options)


async def test_numbered_records_that_do_not_fit_into_a_batch_are_refused(link: Link) -> None:
    async with writing(link, layout(1)) as writer:
        with pytest.raises(UnserializableValueError, match="with one sequence"):
            await writer.append_many(
                [Departed("x", n) for n in range(10_001)], producer="p", sequence=0
            )
        assert writer.statistics().unconfirmed_bytes == 0


async def test_what_is_kept_of_a_log_to_be_compared_is_bounded_and_of_its_time(link: Link) -> None:
    comparison = LogComparison(["key", "time"])
    async with writing(link, ONE, linger=0) as writer:
        for number in range(10):
            await writer.append(Departed("JFK", number), time=1000 * number)
        some = LogTail(link, ONE.name, comparison, DiffRoom(max_records=5))
        some.from_ms, some.until_ms = 3000, 8000
        await some.read()
        many = LogTail(link, ONE.name, comparison, DiffRoom(max_records=5))
        with pytest.raises(ConfigError, match="5 records"):
            await many.read()
        await writer.append(Departed("JFK", 11), time=5500)
        with pytest.raises(ConfigError, match="5 records"):
            await some.read()
        for tail in (some, many):
            await tail.aclose()

    assert [one.time for one in some.records] == [3000, 4000, 5000, 6000, 7000]


@pytest.mark.parametrize(
    "values",
    [{"JFK": 1}, "text", b"bytes", {"a", "b"}, (n for n in range(3)), 7],
    ids=lambda value: type(value).__name__,
)
async def test_what_is_no_sequence_of_records_is_refused(link: Link, values: Any) -> None:
    async with writing(link, ONE) as writer:
        with pytest.raises(TypeError, match=r"append_many\(\): .* expected a list"):
            await writer.append_many(values)
        with pytest.raises(TypeError, match=r"append_many\(keys=\): .* expected a list"):
            await writer.append_many([Departed("JFK", 1)] * 3, keys=values)

        assert writer.statistics().records == 0
