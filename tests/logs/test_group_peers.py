"""Two methods that are one group, in two processes: the one that comes later takes no part, says so, and goes on when the other has gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.logs.test_log_handler import (
    LANDED,
    PARTITIONS,
    Book,
    Landed,
    counting,
    land,
    owned,
)

from mycelia import Client, Record, log_handler
from mycelia.clients.broker_questions import AnsweringQueue
from mycelia.errors import AccessRefused
from mycelia.flow import FlowHandler, FlowOutput, Stream, flow
from mycelia.logs import LogHandler
from mycelia.logs.membership import Membership
from mycelia.testing import ServiceBed, eventually, run_services

GROUP = "shared"


def other(book: Book) -> type:
    class Other:
        name = "other"

        @log_handler(LANDED, group=GROUP)
        async def landed(self, records: list[Record[Landed]]) -> None:
            book.lines += [("other", one.key, one.value.number) for one in records]

    return Other


class Flows:
    name = "flows"

    @flow(LANDED, group=GROUP)
    def landed(self, landings: Stream[Landed]) -> FlowOutput:
        return landings.emit("landed")


def troubles(bed: ServiceBed, service: type) -> list[str]:
    (handler,) = [
        one
        for one in bed.container(service).entrypoints
        if isinstance(one, LogHandler | FlowHandler)
    ]
    return handler.statistics().troubles()


def everything() -> list[int]:
    return list(range(PARTITIONS))


@pytest.fixture
def state(tmp_path: Path) -> dict[str, Any]:
    return {"mycelia": {"flows": {"state": str(tmp_path)}}}


async def test_another_method_stays_out_of_the_group_until_the_first_has_gone(
    rabbit_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    book = Book()
    first, second = counting(book, "one", group=GROUP), other(book)
    async with Client(rabbit_uri) as client:
        async with run_services(first, broker=rabbit_uri) as bed:
            await eventually(lambda: owned(bed, first) == everything(), 20)
            async with run_services(second, broker=rabbit_uri) as late:
                await eventually(lambda: troubles(late, second) != [], 20)
                (trouble,) = troubles(late, second)
                await land(client, 200)
                await eventually(lambda: len(book.lines) == 200, 20)
                before = owned(bed, first), owned(late, second), troubles(bed, first)

                await bed.container(first).stop()
                await eventually(lambda: owned(late, second) == everything(), 30)
                after = troubles(late, second)
                await land(client, 100, 200)
                await eventually(lambda: len(book.lines) == 300, 20)

    assert before == (everything(), [], []), "the first has all, and the second nothing"
    assert {who for who, _, number in book.lines if number < 200} == {"one"}
    assert {who for who, _, number in book.lines if number >= 200} == {"other"}
    for part in (
        "counting.landed in ",
        'group "shared" of log "landed"',
        "other.landed takes none",
    ):
        assert part in trouble
    assert after == []
    assert len([one for one in caplog.messages if "log_group_is_anothers" in one]) == 1


async def test_a_flow_stays_out_of_a_handlers_group(rabbit_uri: str, state: dict[str, Any]) -> None:
    first = counting(Book(), group=GROUP)
    async with run_services(first, broker=rabbit_uri) as bed:
        await eventually(lambda: owned(bed, first) == everything(), 20)
        async with run_services(Flows, broker=rabbit_uri, config=state) as late:
            await eventually(lambda: troubles(late, Flows) != [], 20)
            (trouble,) = troubles(late, Flows)
            has = owned(bed, first)

    assert trouble.startswith("flow shared: counting.landed in ")
    assert has == everything()


async def test_of_two_methods_that_joined_together_one_leaves_again(
    rabbit_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the broker was away while the second looked."""

    may_join, have_joined = Membership._may_join, set[Membership]()

    async def may_join_once_unasked(self: Membership) -> bool:
        if self in have_joined:
            return await may_join(self)
        have_joined.add(self)
        return True

    first, second = counting(Book(), group=GROUP), other(Book())
    monkeypatch.setattr(Membership, "_may_join", may_join_once_unasked)
    async with (
        run_services(first, broker=rabbit_uri) as bed,
        run_services(second, broker=rabbit_uri) as late,
    ):
        for one, service in ((bed, first), (late, second)):
            await eventually(
                lambda one=one, service=service: bool(
                    owned(one, service) or troubles(one, service)
                ),
                20,
            )  # type: ignore[misc]
        await eventually(lambda: owned(bed, first) == everything(), 30)
        told = troubles(late, second), owned(late, second)

    assert told[1] == []
    assert "counting.landed in " in told[0][0]


async def test_new_code_of_the_same_method_shares_the_partitions(
    rabbit_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A rolling upgrade."""
    book = Book()
    first, second = counting(book, "old", group=GROUP), counting(book, "new", group=GROUP)
    async with (
        run_services(first, broker=rabbit_uri) as bed,
        run_services(second, broker=rabbit_uri) as late,
    ):
        await eventually(lambda: {len(owned(bed, first)), len(owned(late, second))} == {3}, 30)

    assert not [one for one in caplog.messages if "log_group_is_anothers" in one]


async def test_where_nobody_may_ask_groups_are_shared_as_ever(
    rabbit_uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By a user who may not declare what it takes; said once."""

    async def refused(self: AnsweringQueue, *keys: str) -> None:
        raise AccessRefused("no")

    monkeypatch.setattr(AnsweringQueue, "start", refused)
    first, second = counting(Book(), group=GROUP), counting(Book(), group=GROUP)
    async with (
        run_services(first, broker=rabbit_uri) as bed,
        run_services(second, broker=rabbit_uri) as late,
    ):
        await eventually(lambda: {len(owned(bed, first)), len(owned(late, second))} == {3}, 30)

    lines = [one for one in caplog.messages if "log_group_unasked" in one]
    assert len(lines) == 2, "one for each"
