"""The commits of a partition: one at a time, beside the engine; what one fails with is told by the next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.unit.flow.test_partition_run import at, entries, started

from mycelia.amqp import Message
from mycelia.call import CallKind, Direction, Target
from mycelia.errors import BrokerUnavailable
from mycelia.flow.delivery import SinkDelivery
from mycelia.flow.flow_call import CallsAround, PartitionCalls
from mycelia.flow.group_commit import GroupCommit
from mycelia.flow.partition_run import PartitionRun
from mycelia.flow.stage_host import PartitionCommit, StageCounts
from mycelia.logs import LogPosition


class SlowBroker:
    """A link whose confirms come when `confirms` is set, or that is away."""

    def __init__(self) -> None:
        self.confirms = asyncio.Event()
        self.is_away = False
        self.published: list[Message] = []

    async def publish(self, message: Message, timeout: float) -> None:
        self.published.append(message)
        await self.confirms.wait()
        if self.is_away:
            raise BrokerUnavailable("away")


class Host:
    """What a commit asks of a service."""

    def __init__(self) -> None:
        self.link: Any = SlowBroker()
        self.told: list[PartitionCommit] = []

    async def publish(self, message: Message) -> None:
        await self.link.publish(message, timeout=1.0)

    def now_ms(self) -> int:
        return 0

    async def in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.to_thread(function, *args)

    def committed(self, commit: PartitionCommit) -> None:
        self.told.append(commit)


class Reading:
    """Says how far entries were taken, and is told how far they are committed."""

    def __init__(self) -> None:
        self.taken = 0
        self.done: list[int] = []

    def positions(self) -> dict[str, LogPosition]:
        return at(self.taken)

    def committed(self, positions: Mapping[str, LogPosition]) -> None:
        self.done.append(positions["in"].offset)


class Partition:
    """A run with its commits, over a link of which a test says when it confirms."""

    def __init__(self, path: Path) -> None:
        self.host = Host()
        self.link: SlowBroker = self.host.link
        self.run: PartitionRun = started(path)
        self.reading = Reading()
        self.counts = StageCounts()
        calls = PartitionCalls(
            CallsAround(Target(Direction.INBOUND, CallKind.LOG, "svc", "flow"), ()), "g", 0
        )
        host: Any = self.host
        inflow: Any = self.reading
        self.commits = GroupCommit(
            host,
            "g",
            self.counts,
            self.run,
            SinkDelivery({}, "g", "svc.flow"),
            inflow,
            calls,
            None,
            None,
            lambda watermarks: None,
        )

    async def take(self, until: int) -> None:
        some = entries()[self.reading.taken : until]
        await asyncio.to_thread(self.run.feed, {"in": some}, 0)
        self.reading.taken = until


@pytest.fixture
async def partition(tmp_path: Path) -> AsyncIterator[Partition]:
    one = Partition(tmp_path / "a")
    yield one
    await one.commits.aclose()
    one.run.close()


async def test_more_is_taken_while_a_commit_waits_for_its_confirm(partition: Partition) -> None:
    await partition.take(20)
    await partition.commits.begin(0.0)
    await partition.take(40)

    assert partition.commits.is_under_way
    assert partition.host.told == []
    partition.link.confirms.set()
    await partition.commits.settled()
    (commit,) = partition.host.told
    assert (commit.records, commit.positions) == (20 * 20, at(20))
    assert partition.reading.done == [20], "what was taken by then, and not what came since"
    assert partition.run.uncommitted == 20 * 20


async def test_the_next_commit_waits_for_the_one_before(partition: Partition) -> None:
    await partition.take(20)
    await partition.commits.begin(0.0)
    await partition.take(40)
    second = asyncio.create_task(partition.commits.begin(0.0))
    await asyncio.wait([second], timeout=0.05)

    assert not second.done()
    assert partition.counts.commits <= 1
    partition.link.confirms.set()
    await second
    await partition.commits.settled()
    assert partition.reading.done == [20, 40]
    assert [one.records for one in partition.host.told] == [400, 400]


async def test_what_a_commit_fails_with_is_raised_where_the_next_begins(
    partition: Partition,
) -> None:
    await partition.take(40)
    await partition.commits.begin(0.0)
    partition.link.is_away = True
    partition.link.confirms.set()
    with pytest.raises(BrokerUnavailable):
        await partition.commits.begin(0.0)

    assert partition.counts.commits == 1, "it is written, and what leaves is in the outbox"
    assert partition.host.told == []


async def test_commit_that_cannot_be_prepared_raises_at_once(
    partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(partition.run, "prepare", refuse)
    await partition.take(1)
    with pytest.raises(ZeroDivisionError):
        await partition.commits.begin(0.0)
    assert not partition.commits.is_under_way
