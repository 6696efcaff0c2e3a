"""docs/http.md: its services run, the last one under `nameko run`, and answer as the text says."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
from tests.docs.documents import ROOT, blocks_of
from tests.processes import Process, environment

from mycelia.entrypoints import Http
from mycelia.testing import run_services

BLOCKS = {block.name: block for block in blocks_of(ROOT / "docs" / "http.md", "python")}
CONFIG = {"WEB_SERVER_ADDRESS": "127.0.0.1:0"}


def load(name: str, cls: str) -> Any:
    module = ModuleType(name.removesuffix(".py"))
    sys.modules[module.__name__] = module
    exec(compile(BLOCKS[name].text, name, "exec"), vars(module))
    return vars(module)[cls]


def client_of(bed: Any, service: Any) -> httpx.AsyncClient:
    address = next(e.address for e in bed.container(service).entrypoints if isinstance(e, Http))
    return httpx.AsyncClient(base_url=f"http://{address}", trust_env=False)


async def test_planes_answer_with_statuses_headers_and_problems() -> None:
    planes = load("planes.py", "Planes")
    tower = {"Authorization": "Bearer tower"}
    new = {"tail": "N1", "seats": "9"}

    async with run_services(planes, config=CONFIG) as bed, client_of(bed, planes) as client:
        large = await client.get("/planes", params={"least": 150})
        missing = await client.get("/planes/N0")
        stranger = await client.post("/planes", json=new)
        made = await client.post("/planes", json=new, headers=tower)
        wrong = await client.post("/planes", json={"tail": "N2"}, headers=tower)
        got = await client.get(made.headers["location"])
        removed = await client.delete("/planes/N1")

    assert large.json() == ["N619AA"]
    assert (missing.status_code, missing.json()["detail"]) == (404, "There is no plane N0.")
    assert (stranger.status_code, stranger.headers["www-authenticate"]) == (401, "Bearer")
    assert (made.status_code, got.json()) == (201, {"tail": "N1", "seats": 9})
    assert (wrong.status_code, wrong.headers["content-type"]) == (400, "application/problem+json")
    assert (removed.status_code, removed.content) == (204, b"")


async def test_live_goes_on_after_what_a_browser_has_seen() -> None:
    live = load("live.py", "Live")

    async with run_services(live, config=CONFIG) as bed, client_of(bed, live) as client:
        for n in range(3):
            await bed.client.publish("feed", "departed", {"n": n}, mandatory=True)
        headers = {"Last-Event-ID": "2"}
        async with client.stream("GET", "/live", headers=headers) as response:
            lines = response.aiter_lines()
            event = [await anext(lines) for _ in range(3)]

    assert sorted(event)[1:] == ["event: departed", "id: 3"]


def test_shop_serves_its_application_under_nameko_run(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(BLOCKS["shop.py"].text)
    with _nameko_run(tmp_path, "shop") as client:
        order = client.get("/admin/orders/7")
        health = client.get("/admin/health")
        documents = client.get("/admin/docs")

    assert order.json() == {"number": "7", "state": "paid"}
    assert health.text == "well"
    assert "/admin/openapi.json" in documents.text


EXISTING = """
from nameko.web.handlers import http
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from mycelia import mount


async def index(request):
    return PlainTextResponse("new")


class Existing:
    name = "existing"
    admin = mount("/admin", Starlette(routes=[Route("/", index)]))

    @http("GET", "/old/<int:number>")
    def old(self, request, number):
        return f"old {number}"
"""


def test_existing_service_may_mount_an_application_as_well(tmp_path: Path) -> None:
    (tmp_path / "existing.py").write_text(EXISTING)
    with _nameko_run(tmp_path, "existing") as client:
        answers = [client.get(path) for path in ("/old/7", "/admin/", "/nothing")]

    assert [answer.status_code for answer in answers] == [200, 200, 404]
    assert [answer.text for answer in answers[:2]] == ["old 7", "new"]


@contextmanager
def _nameko_run(folder: Path, module: str) -> Iterator[httpx.Client]:
    config = {"AMQP_URI": "memory://", **CONFIG, "mycelia": {"log_format": "json"}}
    (folder / "config.yaml").write_text(json.dumps(config))
    nameko = str(Path(sys.executable).parent / "nameko")
    arguments = ("run", "--config", "config.yaml", module)

    with Process(nameko, *arguments, cwd=folder, env=environment()) as process:
        process.wait_until_ready()
        line = next(line for line in process.lines if "http_listening" in line)
        address = json.loads(line)["address"]
        with httpx.Client(base_url=f"http://{address}", trust_env=False) as client:
            yield client
        assert process.stop() == 0, process.output
