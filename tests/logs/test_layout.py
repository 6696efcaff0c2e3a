"""A log at the broker: declared by whoever comes first, the same for all, told where it is not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from mycelia.amqp import Link, Queue
from mycelia.broker.management_api import ManagementApi
from mycelia.errors import ConfigError, TopologyError
from mycelia.logs import layout as layout_module
from mycelia.logs.layout import LogLayout, declare_log, log_layout

LinkFactory = Callable[[], Awaitable[Link]]
LAYOUT = log_layout("flights.departed", 3, "7d", None)


async def test_either_side_declares_it_and_both_may_at_once(
    link: Link, link_factory: LinkFactory
) -> None:
    other = await link_factory()

    await asyncio.gather(declare_log(link, LAYOUT), declare_log(other, LAYOUT))

    await declare_log(link, LAYOUT)
    for partition in range(3):
        assert await other.message_count(f"flights.departed-{partition}") == 0


async def test_log_that_another_declares_between_two_questions_is_no_other_log(
    link: Link, link_factory: LinkFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, asked = await link_factory(), list[str]()
    exists = layout_module.queue_exists

    async def then_it_is_declared(of: Link, queue: str, timeout: float | None) -> bool:
        found = await exists(of, queue, timeout)
        asked.append(queue)
        if asked.count("flights.departed-2") == 1 and of is link:
            await other.declare(*LAYOUT.parts())
        return found

    monkeypatch.setattr(layout_module, "queue_exists", then_it_is_declared)

    await declare_log(link, LAYOUT)

    assert asked.count("flights.departed-2") == 2


@pytest.mark.parametrize("partitions", [2, 4])
async def test_another_number_of_partitions_is_refused(link: Link, partitions: int) -> None:
    await declare_log(link, LAYOUT)

    with pytest.raises(TopologyError, match=rf"with {partitions} partitions, but there are"):
        await declare_log(link, log_layout("flights.departed", partitions, "7d", None))

    with pytest.raises(TopologyError):
        await link.declare(Queue("flights.departed-3", passive=True))


async def test_another_number_is_refused_also_where_both_have_found_nothing(
    link: Link, link_factory: LinkFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two services that start for the first time, at the same moment."""
    other = await link_factory()
    more = log_layout("flights.departed", 5, "7d", None)
    declare = link.declare

    async def declared_behind_the_other(*parts: Any, timeout: float | None = None) -> Any:
        if len(parts) > 1:
            await declare_log(other, more)
        return await declare(*parts, timeout=timeout)

    monkeypatch.setattr(link, "declare", declared_behind_the_other)
    with pytest.raises(TopologyError, match=r"but there are more: flights.departed-3 exists"):
        await declare_log(link, LAYOUT)


async def test_another_retention_is_refused(link: Link, link_factory: LinkFactory) -> None:
    await declare_log(link, LAYOUT)

    with pytest.raises(TopologyError, match=r"exists with other arguments than .*x-max-age=12h"):
        await declare_log(await link_factory(), log_layout("flights.departed", 3, "12h", None))


async def test_a_queue_that_is_in_the_way_is_told(link: Link) -> None:
    for partition in range(3):
        await link.declare(
            Queue(f"flights.departed-{partition}", arguments={"x-queue-type": "quorum"})
        )

    with pytest.raises(TopologyError, match=r"flights\.departed-2"):
        await declare_log(link, LAYOUT)


async def test_it_is_a_super_stream(
    rabbit_uri: str, rabbit_api: ManagementApi, rabbit_vhost: str
) -> None:
    from mycelia.amqp import connect

    link = connect(rabbit_uri)
    await link.open(15)
    await declare_log(link, log_layout("departed", 2, "90m", 10**9))
    await link.aclose()

    def get(path: str) -> object:
        return rabbit_api.request("GET", f"/api/{path}")

    queue = rabbit_api.queue(rabbit_vhost, "departed-1")
    bindings = get(f"exchanges/{rabbit_vhost}/departed/bindings/source")
    exchange = get(f"exchanges/{rabbit_vhost}/departed")
    assert queue["arguments"] == {
        "x-queue-type": "stream",
        "x-max-age": "90m",
        "x-max-length-bytes": 10**9,
        "x-stream-max-segment-size-bytes": 64 * 1024 * 1024,
    }
    assert isinstance(exchange, dict)
    assert (exchange["type"], exchange["durable"]) == ("direct", True)
    assert isinstance(bindings, list)
    assert sorted(
        (one["destination"], one["routing_key"], one["arguments"]["x-stream-partition-order"])
        for one in bindings
    ) == [("departed-0", "0", 0), ("departed-1", "1", 1)]


@pytest.mark.parametrize(
    ("seconds", "age"), [(604800, "7D"), (3600, "1h"), (5400, "90m"), (61, "61s"), (None, None)]
)
def test_retention_is_written_as_by_hand(seconds: float | None, age: str | None) -> None:
    layout = LogLayout("log", 1, seconds, None)

    assert layout.streams()[0].arguments.get("x-max-age") == age


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("", 1, None, None), "name of a log"),
        (("x" * 246, 1, None, None), "name of a log"),
        ((" ", 1, None, None), "name of a log"),
        (("lo\x00g", 1, None, None), "name of a log"),
        (("lo\udc80g", 1, None, None), "name of a log"),
        (("log", 0, None, None), "partitions=0"),
        (("log", 1025, None, None), "partitions=1025"),
        (("log", True, None, None), "partitions=True"),
        (("log", 1, "soon", None), "retain="),
        (("log", 1, 0.5, None), "whole seconds"),
        (("log", 1, None, 0), "retain_bytes=0"),
    ],
)
def test_what_cannot_be_declared_is_refused_at_once(
    arguments: tuple[object, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        log_layout(*arguments)  # type: ignore[arg-type]
