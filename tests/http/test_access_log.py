"""One access line for a request, whoever answers it, in the form of all calls."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from tests.http.serving import serve

from mycelia import RpcProxy, http, mount, rpc
from mycelia.log_event import LogEvent
from mycelia.testing import eventually


async def _page(request: Any) -> PlainTextResponse:
    return PlainTextResponse("page")


class Web:
    name = "web"
    me = RpcProxy("web", timeout=5)
    site = mount("/site", Starlette(routes=[Route("/page", _page)]))

    @http("GET", "/ok/{n:int}")
    async def ok(self, request: Any, n: int) -> str:
        return "x" * n

    @http("GET", "/calls")
    def calls(self, request: Any) -> Any:
        return self.me.answer()

    @rpc
    async def answer(self) -> int:
        return 42

    @http("GET", "/expected", expected_exceptions=KeyError)
    async def expected(self, request: Any) -> None:
        raise KeyError("x")

    @http("GET", "/gone")
    async def gone(self, request: Any) -> None:
        raise HTTPException(410)

    @http("GET", "/broken")
    def broken(self, request: Any) -> None:
        raise ValueError("no")

    @http("GET", "/breaks-off")
    async def breaks_off(self, request: Any) -> StreamingResponse:
        async def parts() -> Any:
            yield b"half"
            raise ValueError("no")

        return StreamingResponse(parts())

    @http("GET", "/reset/{token}", sensitive_arguments="token")
    async def reset(self, request: Any, token: str) -> str:
        return "done"


def lines_of(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, Any]]]:
    return [
        (record.levelname, dict(record.msg.fields))
        for record in caplog.records
        if record.name == "mycelia.access_log" and isinstance(record.msg, LogEvent)
    ]


@pytest.mark.parametrize(
    ("path", "level", "expected"),
    [
        ("/ok/3", "INFO", {"call": "web.ok", "outcome": "ok", "status": 200, "out_bytes": 3}),
        ("/expected", "WARNING", {"call": "web.expected", "outcome": "refused", "status": 400}),
        ("/gone", "WARNING", {"call": "web.gone", "outcome": "refused", "status": 410}),
        ("/broken", "ERROR", {"call": "web.broken", "outcome": "failed", "status": 500}),
        ("/nothing", "WARNING", {"outcome": "refused", "status": 404}),
        ("/site/page", "INFO", {"outcome": "ok", "status": 200, "out_bytes": 4}),
    ],
)
async def test_each_request_has_one_line(
    caplog: pytest.LogCaptureFixture, path: str, level: str, expected: dict[str, Any]
) -> None:
    caplog.set_level("INFO")
    async with serve(Web, access_log=True) as served:
        await served.client.get(path)

    ((found_level, line),) = lines_of(caplog)
    assert found_level == level
    assert {**line, **expected} == line
    assert (line["kind"], line["verb"], line["path"]) == ("http", "GET", path)
    assert ("call" in line) == ("call_id" in line) == ("call" in expected)
    assert line["duration_ms"] > 0


async def test_a_request_and_the_rpc_that_it_makes_have_a_line_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    async with serve(Web, access_log=True) as served:
        await served.client.get("/calls")

    answer, calls = (line for _, line in lines_of(caplog))
    assert (answer["kind"], calls["kind"]) == ("rpc", "http")
    assert answer["caller"] == calls["call_id"]


async def test_a_response_that_breaks_off_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with serve(Web, access_log=True) as served:
        with pytest.raises(Exception, match="peer closed"):
            await served.client.get("/breaks-off")
        await eventually(lambda: bool(lines_of(caplog)))

    ((level, line),) = lines_of(caplog)
    assert (level, line["outcome"], line["status"]) == ("ERROR", "failed", 200)


async def test_what_is_sensitive_in_a_path_is_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with serve(Web, access_log={"arguments": True}) as served:
        await served.client.get("/reset/t0psecret")
        await served.client.get("/ok/2")

    (_, reset), (_, ok) = lines_of(caplog)
    assert (reset["path"], reset["arguments"]) == ("/reset/{token}", {"token": "***"})
    assert (ok["path"], ok["arguments"]) == ("/ok/2", {"n": 2})
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("mycelia")]
    assert not any("t0psecret" in line for line in ours)


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({"access_log": True, "http_access_log": False}, ["rpc"]),
        ({"http_access_log": True}, ["http"]),
        ({"access_log": True, "http_access_log": True}, ["rpc", "http"]),
        ({"access_log": {"sample": 0.0}}, []),
        ({}, []),
    ],
)
async def test_http_may_be_logged_apart(
    caplog: pytest.LogCaptureFixture, settings: dict[str, Any], kinds: list[str]
) -> None:
    caplog.set_level("INFO")
    async with serve(Web, **settings) as served:
        await served.client.get("/calls")

    assert [line["kind"] for _, line in lines_of(caplog)] == kinds
