"""Access lines of an existing service: one for each request and call, in one form, without Nameko's beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.nameko.processes import NamekoRun, StockClient


@pytest.fixture(scope="module")
def run(module_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NamekoRun]:
    directory = tmp_path_factory.mktemp("access")
    config = {
        "AMQP_URI": module_uri,
        "SERVICE_CONTAINER_CLS": "mycelia.Container",
        "WEB_SERVER_ADDRESS": "127.0.0.1:0",
        "FROM_CONFIG": "from the file",
        "DB_URIS": {"existing:Base": f"sqlite:///{directory}/planes.db"},
        "mycelia": {"access_log": {"arguments": True}},
    }
    run = NamekoRun("tests.nameko.existing_service:Existing", config=config, directory=directory)
    with run.start():
        run.await_queues("rpc-existing", "work-items")
        run.await_output("ready")
        yield run


def _lines(run: NamekoRun, call: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in run.output.splitlines() if line.startswith("{"))
    return [line for line in lines if line["event"] == "call_ended" and line.get("call") == call]


def test_an_rpc_of_a_stock_caller_has_one_line(run: NamekoRun, stock_client: StockClient) -> None:
    stock_client.call("existing", "echo", {"password": "t0p", "a": 1})

    run.await_output('"call": "existing.echo"'.replace(": ", ":"))
    (line,) = _lines(run, "existing.echo")
    assert (line["kind"], line["outcome"], line["level"]) == ("rpc", "ok", "info")
    assert line["caller"].startswith("standalone_rpc_proxy.")
    assert line["arguments"]["value"] == {"password": "***", "a": 1}
    assert "t0p" not in run.output


def test_a_request_has_one_line_and_none_of_nameko_s(run: NamekoRun) -> None:
    found = re.search(r"http_listening.*?(127\.0\.0\.1:\d+)", run.output)
    assert found, run.output
    with httpx.Client(base_url=f"http://{found[1]}", timeout=10) as web:
        assert web.get("/planes/N1/rows/7?q=secret").status_code == 200

    run.await_output("/planes/N1/rows/7")
    (line,) = [line for line in run.output.splitlines() if "rows/7" in line]
    access = json.loads(line)
    assert (access["event"], access["kind"], access["status"]) == ("call_ended", "http", 200)
    assert "secret" not in line
    assert "nameko.web.server" not in run.output
