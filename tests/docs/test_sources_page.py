"""The code in docs/sources.md runs."""

from __future__ import annotations

import importlib
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.docs.documents import ROOT
from tests.docs.test_examples import block_with

from mycelia import Client, event_handler
from mycelia.testing import eventually, run_services

MODULES = {
    "delays": (ROOT / "docs" / "flows.md", "class HourlyDelay"),
    "sources": (ROOT / "docs" / "sources.md", "class Sources"),
}


async def test_events_and_lines_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, (page, part) in MODULES.items():
        (tmp_path / f"{name}.py").write_text(block_with(page, part).text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    delays, sources = (importlib.import_module(name) for name in MODULES)
    (tmp_path / "readings.txt").write_text("alarm 1\nnothing\nalarm 2\nalar")
    heard: list[Any] = []

    class Listening:
        name = "listening"

        @event_handler("sources", "hourly")
        def hourly(self, hour: Any) -> None:
            heard.append(hour["mean"])

        @event_handler("sources", "alarm")
        def alarm(self, line: str) -> None:
            heard.append(line)

    broker = "memory://sources-page"
    async with run_services(sources.Sources, Listening, broker=broker), Client(broker) as client:
        for delay, hour in ((10, 12), (20, 12), (0, 15)):
            at = datetime(2013, 1, 1, hour, tzinfo=UTC)
            await client.publish("tower", "departed", delays.Departed("JFK", delay, at))
        with (tmp_path / "readings.txt").open("a") as file:
            file.write("m 3\n")
        await eventually(lambda: len(heard) == 4, 20)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name)

    assert sorted(map(str, heard)) == ["15.0", "alarm 1", "alarm 2", "alarm 3"]
