"""What the viewers of the live page get."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from services.flights.board import Board
from services.flights.live_view import LiveView

from mycelia.errors import BrokerUnavailable, RpcTimeout
from mycelia.testing import make_worker

FEED = {"state": "running"}


def changes(version: int, run: str = "r1", **hours: int) -> dict[str, Any]:
    return {
        "run": run,
        "version": version,
        "counted": version,
        "hours": {hour: {"version": at} for hour, at in hours.items()},
    }


async def next_state(stream: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    message = await asyncio.wait_for(anext(stream), 5)
    assert message["event"] == "state"
    return dict(message["data"])


async def test_first_state_is_whole_and_later_ones_only_what_changed() -> None:
    view = LiveView()
    view.reset("r1")
    view.merge(changes(2, h1=1, h2=2), FEED)
    stream = view.stream()

    first = await next_state(stream)
    view.merge(changes(3, h2=3), FEED)
    second = await next_state(stream)
    await stream.aclose()

    assert (first["reset"], list(first["hours"])) == (True, ["h1", "h2"])
    assert (second["reset"], list(second["hours"])) == (False, ["h2"])
    assert second["feed"] == FEED


async def test_late_viewer_gets_all_and_slow_viewer_skips_states() -> None:
    view = LiveView()
    view.reset("r1")
    view.merge(changes(1, h1=1), FEED)
    slow = view.stream()
    await next_state(slow)
    view.merge(changes(2, h2=2), FEED)
    view.merge(changes(3, h3=3), FEED)
    late = view.stream()

    caught_up, whole = await next_state(slow), await next_state(late)
    await slow.aclose()
    await late.aclose()

    assert (caught_up["version"], list(caught_up["hours"])) == (3, ["h2", "h3"])
    assert list(whole["hours"]) == ["h1", "h2", "h3"]


async def test_another_run_begins_anew() -> None:
    view = LiveView()
    view.reset("r1")
    view.merge(changes(9, h1=9), FEED)
    stream = view.stream()
    await next_state(stream)
    other = changes(1, run="r2", h7=1)

    assert not view.fits(other)
    view.reset("r2")
    view.merge(other, FEED)
    state = await next_state(stream)
    await stream.aclose()

    assert (state["reset"], list(state["hours"])) == (True, ["h7"])


async def test_statistics_that_went_back_begin_anew() -> None:
    """As after a restart of `delays`, which begins with empty books."""
    view = LiveView()
    view.reset("r1")
    view.merge(changes(9, h1=9), FEED)

    assert view.fits(changes(9))
    assert not view.fits(changes(3))


async def test_nothing_new_wakes_nobody() -> None:
    view = LiveView()
    view.reset("r1")
    view.merge(changes(1, h1=1), FEED)
    stream = view.stream()
    await next_state(stream)
    waiting = asyncio.ensure_future(anext(stream))
    view.merge(changes(1), FEED)
    done, _ = await asyncio.wait([waiting], timeout=0.05)

    assert not done
    view.merge(changes(2, h1=2), FEED)
    assert (await asyncio.wait_for(waiting, 5))["data"]["version"] == 2
    await stream.aclose()


async def test_closing_ends_the_streams_and_viewers_are_counted() -> None:
    view = LiveView()
    view.reset("r1")
    view.merge(changes(1, h1=1), FEED)
    stream = view.stream()
    await next_state(stream)
    assert view.viewers == 1

    view.close()
    left = [message async for message in stream]

    assert (left, view.viewers) == ([], 0)


@pytest.mark.parametrize("error", [BrokerUnavailable("no broker"), RpcTimeout("delays.changes", 5)])
async def test_statistics_that_cannot_be_asked_for_are_a_warning(error: Exception) -> None:
    """The broker may be away for a while: that is no fault of the board."""
    said: list[str] = []

    async def changes(**_: Any) -> None:
        raise error

    view = LiveView()
    view.viewers = 1
    board = make_worker(
        Board,
        live=SimpleNamespace(view=view),
        delays=SimpleNamespace(changes=changes),
        log=SimpleNamespace(warning=lambda name, **_: said.append(name)),
    )
    await board.refresh()

    assert said == ["statistics_unavailable"]
