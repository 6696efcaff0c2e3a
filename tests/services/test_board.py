"""The board: its JSON, its stream, and its page in Chromium."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from services.flights.board import Board
from services.flights.delays import Delays
from services.flights.feed import Feed, new_run_id
from services.flights.flows import Flows
from services.flights.records import HAPPENED, OBSERVED, Happening, Observation
from services.flights.registry import Registry
from tests.ports import free_port
from tests.services.chromium import Page, browser, find_chromium
from tests.services.pipeline_by_hand import enriched_events
from tests.services.tables import EIGHTH
from tests.tools import require_tool

from mycelia import Client, Runner
from mycelia.errors import ConfigError
from mycelia.testing import eventually

pytestmark = pytest.mark.timeout(120)


def config(name: str, address: str, state: Path) -> dict[str, Any]:
    return {
        "AMQP_URI": f"memory://{name}",
        "WEB_SERVER_ADDRESS": address,
        "feed": {"speed": 3600},
        "mycelia": {"flows": {"state": str(state)}},
    }


@dataclass
class Counted:
    """A board over statistics of the blizzard's first day, all counted, and ways to talk to both."""

    url: str
    loop: asyncio.AbstractEventLoop
    client: Client
    http: httpx.AsyncClient

    async def call(self, *arguments: Any) -> Any:
        """Call one of the services, on the loop that they run on."""
        calling = asyncio.run_coroutine_threadsafe(self.client.call(*arguments), self.loop)
        return await asyncio.wrap_future(calling)


_Serving = tuple[str, asyncio.AbstractEventLoop, Client]


@pytest.fixture(scope="module")
def _counted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Serving]:
    """In a thread, as the tests that share it only read, and each has a loop of its own."""
    begun: Future[_Serving] = Future()
    ended = asyncio.Event()

    async def serve() -> None:
        address = f"127.0.0.1:{free_port()}"
        made = config("counted", address, tmp_path_factory.mktemp("counted"))
        events = enriched_events(EIGHTH, run=new_run_id())
        async with Runner(made, [Delays, Feed, Board]), Client(made["AMQP_URI"]) as client:
            async with asyncio.TaskGroup() as group:
                for event in events:
                    group.create_task(client.publish("enrich", "flight_enriched", event))
            async with asyncio.timeout(30):
                while (await client.call("delays", "summary"))["counted"] < len(events):  # noqa: ASYNC110  it is counted elsewhere
                    await asyncio.sleep(0.05)
            begun.set_result((f"http://{address}", asyncio.get_running_loop(), client))
            await ended.wait()

    with ThreadPoolExecutor(1) as threads:
        serving = threads.submit(asyncio.run, serve())
        wait((begun, serving), return_when=FIRST_COMPLETED)
        if serving.done():
            serving.result()
        url, loop, client = begun.result()
        try:
            yield url, loop, client
        finally:
            loop.call_soon_threadsafe(ended.set)


@pytest.fixture
async def counted(_counted: _Serving) -> AsyncIterator[Counted]:
    url, loop, client = _counted
    async with httpx.AsyncClient(base_url=url, timeout=10) as http:
        yield Counted(url, loop, client, http)


@pytest.fixture
async def pipeline(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The address of a board over the services of the logs' way, nothing replayed yet."""
    address = f"127.0.0.1:{free_port()}"
    made = config(request.node.name, address, tmp_path)
    async with Runner(made, [Registry, Delays, Flows, Feed, Board]):
        yield f"http://{address}"


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    require_tool("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    assert find_chromium()
    async with browser(tmp_path / "profile") as tab:
        await tab.size(1280, 900)
        yield tab


async def test_json_is_what_delays_says(counted: Counted) -> None:
    answers = {
        path: (await counted.http.get(f"/api/{path}")).raise_for_status().json()
        for path in (
            "summary",
            "worst",
            "worst?n=2",
            "hourly?origin=JFK&carrier=B6",
            "aircraft/n15980",
        )
    }
    call = counted.call

    assert answers["summary"] == await call("delays", "summary")
    assert answers["worst"] == await call("delays", "worst", 5)
    assert answers["worst?n=2"] == await call("delays", "worst", 2)
    assert answers["hourly?origin=JFK&carrier=B6"] == await call("delays", "hourly", "JFK", "B6")
    assert answers["aircraft/n15980"] == await call("delays", "aircraft", "N15980")
    assert len(answers["aircraft/n15980"]["legs"]) > 0


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("GET", "/api/worst?n=all", None, 400, "n must be a whole number"),
        ("GET", "/api/aircraft/NONE", None, 404, "No flight of NONE"),
        ("POST", "/api/replay", {"speed": -1}, 400, "speed must be a number"),
        ("POST", "/api/replay", {"speed": "fast"}, 400, "speed must be a number"),
        ("POST", "/api/replay", {"speed": True}, 400, "speed must be a number"),
        ("POST", "/api/replay", [3600], 400, "Expected an object"),
        ("POST", "/api/replay", None, 415, "application/json"),
    ],
)
async def test_a_wrong_request_is_told_what_is_wrong(
    counted: Counted, method: str, path: str, body: Any, status: int, says: str
) -> None:
    answer = await counted.http.request(method, path, json=body)

    assert answer.status_code == status
    assert says in answer.json()["detail"]


async def test_a_body_that_is_no_json_is_told_so(counted: Counted) -> None:
    headers = {"content-type": "application/json"}

    answer = await counted.http.post("/api/replay", content=b"{speed", headers=headers)

    assert answer.status_code == 400
    assert "not JSON" in answer.json()["detail"]


async def test_the_stream_begins_with_everything(counted: Counted) -> None:
    async with counted.http.stream("GET", "/api/live") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines: list[str] = []
        async for line in answer.aiter_lines():
            lines.append(line)
            if lines[-1] == "" and any(line.startswith("data: ") for line in lines):
                break

    assert "event: state" in lines
    state = json.loads("".join(line[6:] for line in lines if line.startswith("data: ")))
    assert state["reset"]
    assert state["total"]["scheduled"] == 930
    assert sum(figures["cancelled"] for figures in state["hours"].values()) == 472


async def test_the_page_shows_the_figures(counted: Counted, page: Page) -> None:
    await page.open(counted.url)
    await page.until("document.querySelectorAll('#figures div').length === 6")
    summary = await counted.call("delays", "summary")

    shown = await page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('#figures div')].map("
        "d => [d.children[0].textContent, d.children[1].firstChild.textContent]))"
    )
    carriers = await page.evaluate("document.querySelectorAll('#carriers tr').length")
    assert shown["Scheduled"] == "930"
    assert shown["Cancelled"] == str(summary["total"]["cancelled"]) == "472"
    assert shown["Departed"] == str(summary["total"]["departed"])
    assert carriers == len(summary["carriers"])
    assert page.errors == []


async def test_the_page_asks_for_nothing_elsewhere(counted: Counted, page: Page) -> None:
    await page.open(counted.url)
    await page.until("document.querySelector('#chart svg') !== null")

    assert {
        request.split("?")[0] for request in page.requests if not request.startswith("data:")
    } == {
        f"{counted.url}/",
        f"{counted.url}/api/live",
        f"{counted.url}/api/flow.svg",
    }


async def test_an_aircraft_is_shown_when_its_number_is_clicked(
    counted: Counted, page: Page
) -> None:
    await page.open(counted.url)
    await page.until("document.querySelector('#worst a') !== null")
    tail = await page.evaluate("document.querySelector('#worst a').textContent")
    await page.evaluate("document.querySelector('#worst a').click()")
    await page.until("document.querySelector('#aircraft table') !== null")

    legs = await page.evaluate("document.querySelectorAll('#aircraft tbody tr').length")
    aircraft = await counted.call("delays", "aircraft", tail)
    assert legs == len(aircraft["legs"])
    assert page.errors == []


async def test_the_page_fits_a_phone_and_both_colour_schemes(
    counted: Counted, page: Page, tmp_path: Path
) -> None:
    await page.size(390, 844, phone=True)
    await page.open(counted.url)
    await page.until("document.querySelector('#chart svg')?.viewBox.baseVal.width < 400")
    pictures = {}
    backgrounds = {}
    for scheme in ("light", "dark"):
        await page.colours(scheme)
        backgrounds[scheme] = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        pictures[scheme] = await page.picture()

    assert await page.evaluate("document.documentElement.scrollWidth") == 390
    assert backgrounds["light"] != backgrounds["dark"]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())
    assert pictures["light"] != pictures["dark"]


async def test_the_page_follows_a_replay_that_it_starts(pipeline: str, page: Page) -> None:
    await page.open(pipeline)
    await page.until(
        "(document.getElementById('status')?.textContent.trim() ?? 'connecting') !== 'connecting'"
    )
    await page.evaluate("document.querySelector('[data-speed=\"21600\"]').click()")
    await page.until("document.getElementById('status').dataset.state === 'running'")
    await page.until("Number(document.querySelector('#figures dd')?.firstChild.textContent) > 20")

    await page.evaluate("document.querySelector('[data-stop]').click()")
    await page.until("document.getElementById('status').dataset.state === 'stopped'")

    assert "Feb" in await page.evaluate("document.getElementById('clock').textContent")
    assert page.errors == []


async def test_the_page_draws_the_flow_with_its_rates_watermarks_and_lag(
    pipeline: str, page: Page
) -> None:
    await page.open(pipeline)
    await page.until("document.querySelector('[data-speed=\"21600\"]') !== null")
    await page.evaluate("document.querySelector('[data-speed=\"21600\"]').click()")
    await page.until("document.getElementById('flow').naturalWidth > 600", within=60)
    await page.until("!document.getElementById('flow').hidden")

    async def is_live() -> bool:
        drawn = await page.evaluate("fetch('/api/flow.svg').then(answer => answer.text())")
        assert re.search(r">[1-9][\d.]*k?/s<", drawn), drawn  # of the lines between the steps
        assert re.search(r">lag \d+<", drawn), drawn
        assert re.search(r">watermark \d+ (s|min|h) (behind|ahead)<", drawn), (
            drawn
        )  # of the replay's clock
        return True

    await eventually(is_live, 60, interval=0.2)
    assert page.errors == []


async def test_a_board_whose_port_is_taken_says_that_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match="cannot listen on"):
            await Runner(config("taken", address, tmp_path), [Board]).start(timeout=20)

    assert [line.getMessage() for line in caplog.records if line.levelname == "ERROR"] == []


async def test_names_from_anywhere_are_text_on_the_page(pipeline: str, page: Page) -> None:
    noon, hostile = 1_360_324_800_000, "<img src=x onerror=document.title='x'>"
    flight = Happening(
        run=new_run_id(),
        kind="departed",
        at_ms=noon,
        scheduled_ms=noon,
        shift_ms=0,
        emitted_at=0.0,
        origin=hostile,
        flight_id=f"2013-02-08-{hostile}-1-JFK",
        date="2013-02-08",
        carrier=hostile,
        dest="\u202e\0</script>",
        tail_number=hostile.upper(),  # as the board asks for it
        dep_delay=2**62,
    )
    async with Client("memory://test_names_from_anywhere_are_text_on_the_page") as client:
        await client.append(HAPPENED, flight)
        # Three hours later the flight's hour has its weather, or will have none.
        later = noon + 3 * 3_600_000
        closed = msgspec.structs.replace(flight, kind="closed", at_ms=later, scheduled_ms=later)
        await client.append(HAPPENED, closed)
        await client.append(OBSERVED, Observation(origin=hostile, at_ms=later))
    await page.open(pipeline)
    await page.until("document.querySelectorAll('#worst a, #origins tr').length === 2")
    await page.evaluate("document.querySelector('#worst a').click()")
    await page.until("document.querySelector('#aircraft tbody') !== null")

    shown = await page.evaluate(
        "['worst', 'origins', 'carriers', 'plane'].map(id => document.getElementById(id).textContent)"
    )
    assert [hostile in text or hostile.upper() in text for text in shown] == [True] * 4
    assert await page.evaluate("document.querySelectorAll('img:not(#flow)').length") == 0
    assert await page.evaluate("document.title") == "Departures out of New York"
    assert page.errors == []


async def test_the_browser_is_told_to_load_nothing_from_elsewhere(counted: Counted) -> None:
    answer = await counted.http.get("/")

    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
