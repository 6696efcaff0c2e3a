"""The board: one page that shows the replay live, and the same as JSON.

nameko run --config services/config.yaml services.flights.board
# then open http://127.0.0.1:8000/
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from mycelia import Logger, RpcProxy, ServerSentEvents, SharedDependency, http, timer
from mycelia.errors import CallError, LinkError
from services.flights.flow_view import FlowView
from services.flights.live_view import LiveView

__all__ = ["Board", "Live"]

PAGE = Path(__file__).with_name("page.html")
REFRESH_S = 0.5

# The page brings everything with it; the browser is told to hold it to that.
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'"
)


class Live(SharedDependency):
    """The state of the page, shared by its viewers."""

    def __init__(self) -> None:
        self.view = LiveView()
        """There before the start, because a service that does not come to it is stopped all the same."""

    async def start(self) -> None:
        """Makes a new view: that of a service which has been stopped is closed."""
        self.view = LiveView()

    async def stop(self) -> None:
        """Ends the viewers' streams: they would keep the service from stopping."""
        self.view.close()


class Board:
    """Serves the page. Asks `delays` twice a second while somebody looks, and not at all otherwise."""

    name = "board"
    delays = RpcProxy("delays", timeout=5)
    feed = RpcProxy("feed", timeout=5)
    flow_view = FlowView("flows.delays", clock="time_of_departure")
    live = Live()
    log = Logger()

    @timer(interval=REFRESH_S)
    async def refresh(self) -> None:
        """Brings the view up to date."""
        view = self.live.view
        if not view.viewers:
            return
        try:
            changes = await self.delays.changes(since=view.version)
            if not view.fits(changes):
                changes = await self.delays.changes(since=0)
                view.reset(changes["run"])
            status = await self.feed.status()
        except (CallError, LinkError) as exc:
            self.log.warning("statistics_unavailable", reason=str(exc))
            return
        view.merge(changes, status)

    @http("GET", "/")
    async def page(self, request: Request) -> HTMLResponse:
        """The live page."""
        return HTMLResponse(
            PAGE.read_text("utf-8"), headers={"Content-Security-Policy": PAGE_POLICY}
        )

    @http("GET", "/api/live")
    async def stream(self, request: Request) -> ServerSentEvents:
        """The state of the page as server-sent events."""
        return ServerSentEvents(self.live.view.stream())

    @http("GET", "/api/flow.svg")
    async def flow(self, request: Request) -> Response:
        """The flow as it runs, drawn; a word in its place where nothing runs it."""
        return Response(await self.flow_view.svg(), media_type="image/svg+xml")

    @http("GET", "/api/summary")
    async def summary(self, request: Request) -> Any:
        """The totals."""
        return await self.delays.summary()

    @http("GET", "/api/hourly")
    async def hourly(self, request: Request) -> Any:
        """The figures by hour, origin and carrier; `?origin=JFK&carrier=B6` selects."""
        query = request.query_params
        return await self.delays.hourly(origin=query.get("origin"), carrier=query.get("carrier"))

    @http("GET", "/api/worst")
    async def worst(self, request: Request) -> Any:
        """The longest delays; `?n=20` for more than five."""
        number = request.query_params.get("n", "5")
        if not number.isdecimal():
            raise HTTPException(400, f"n must be a whole number, got {number!r}.")
        return await self.delays.worst(int(number))

    @http("GET", "/api/aircraft/{tail_number}")
    async def aircraft(self, request: Request, tail_number: str) -> Any:
        """One aircraft's legs and running delay."""
        found = await self.delays.aircraft(tail_number.upper())
        if not found["legs"]:
            raise HTTPException(404, f"No flight of {tail_number} so far.")
        return found

    @http("POST", "/api/replay")
    async def replay(self, request: Request) -> Any:
        """Starts a replay: `{"speed": 3600}`; `{"stop": true}` ends it."""
        if request.headers.get("content-type", "").split(";")[0] != "application/json":
            raise HTTPException(415, "Send application/json.")
        wish = await request.json()
        if not isinstance(wish, dict):
            raise HTTPException(400, 'Expected an object such as {"speed": 3600}.')
        if wish.get("stop"):
            return await self.feed.stop()
        speed = wish.get("speed", 3600)
        if type(speed) not in (int, float) or not 0 <= speed < math.inf:
            raise HTTPException(400, f"speed must be a number, 0 or more, got {speed!r}.")
        return await self.feed.start(speed=speed)
