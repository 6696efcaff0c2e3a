"""The code in docs/sinks.md runs."""

from __future__ import annotations

import importlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.docs.documents import ROOT
from tests.docs.test_examples import block_with

from mycelia import Client
from mycelia.flow import FlowOutput, Stream, flow
from mycelia.testing import eventually, run_services

FLOWS, PAGE = ROOT / "docs" / "flows.md", ROOT / "docs" / "sinks.md"
MODULES = {
    "delays": (FLOWS, "class HourlyDelay"),
    "stored": (PAGE, "sql_table("),
    "live": (PAGE, "Broadcast(keep"),
    "own": (PAGE, "class Printing"),
}


async def test_results_are_stored_shown_and_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    modules: dict[str, Any] = {}
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, (page, part) in MODULES.items():
        (tmp_path / f"{name}.py").write_text(block_with(page, part).text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in MODULES:
        modules[name] = importlib.import_module(name)
    delays, stored, live, own = modules.values()

    class Printed:
        name = "printed"

        @flow(stored.DEPARTED)
        def hourly(self, flights: Stream[Any]) -> FlowOutput:
            given: FlowOutput = delays.hourly(flights).to(own.Printing())
            return given

    class Live(live.Delays):  # type: ignore[misc,name-defined]
        name = "live"

    hours = [datetime(2013, 1, 1, hour, tzinfo=UTC) for hour in (12, 12, 15)]
    flights = [delays.Departed("JFK", 10 * n, at) for n, at in enumerate(hours, 1)]
    broker, address = "memory://sinks-page", {"WEB_SERVER_ADDRESS": "127.0.0.1:0"}
    async with (
        run_services(stored.Delays, Printed, Live, broker=broker, config=address),
        Client(broker) as client,
    ):
        await client.append_many(stored.DEPARTED, flights)
        shown = await anext(live.Delays.live.follow())
        printed: list[str] = []
        await eventually(lambda: printed.append(capsys.readouterr().out) or any(printed), 20)
    engine = sa.create_engine("sqlite:///results.db")
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT origin, flights, mean FROM hourly")).all()
    engine.dispose()
    (part,) = (tmp_path / "out" / "hourly").iterdir()

    assert [tuple(row) for row in rows] == [("JFK", 2, 15.0)]
    assert json.loads(part.read_text())["mean"] == 15.0
    assert (shown.origin, shown.mean) == ("JFK", 15.0)
    assert "".join(printed).endswith(" JFK 1357045199999 15.0\n")
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name)
