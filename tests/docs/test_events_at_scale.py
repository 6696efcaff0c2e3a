"""docs/pipelines.md, "Events at scale": its services run as they are shown."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.docs.documents import ROOT, blocks_of

from mycelia.testing import ServiceBed, eventually, run_services

PIPELINES = ROOT / "docs" / "pipelines.md"
FILES = ("registry", "store", "archive")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files that the section shows, to be imported."""
    shown = {block.name: block.text for block in blocks_of(PIPELINES, "python") if block.name}
    for name in FILES:
        (tmp_path / f"{name}.py").write_text(shown[f"{name}.py"], "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name, None)


def service(name: str) -> Any:
    return getattr(importlib.import_module(name), name.title())


async def publish(bed: ServiceBed, flights: list[dict[str, Any]]) -> None:
    await asyncio.gather(*(bed.client.publish("feed", "departed", flight) for flight in flights))


async def test_registry_handles_each_aircraft_s_departures_in_order(folder: Path) -> None:
    registry = service("registry")
    seen: dict[str, list[int]] = {}
    running: set[str] = set()
    most = 0

    async def departed(self: object, flight: dict[str, Any]) -> None:
        nonlocal most
        tail = flight["tail_number"]
        assert tail not in running
        running.add(tail)
        most = max(most, len(running))
        for _ in range(flight["n"] % 3):
            await asyncio.sleep(0)
        running.discard(tail)
        seen.setdefault(tail, []).append(flight["n"])

    (handler,) = registry.departed.nameko_entrypoints
    registry.departed = _with_entrypoints(departed, handler)
    async with run_services(registry) as bed:
        for n in range(10):
            for tail in ("N1", "N2", "N3"):
                await bed.client.publish("feed", "departed", {"tail_number": tail, "n": n})
        await eventually(lambda: sum(map(len, seen.values())) == 30, 30)

    assert seen == {tail: list(range(10)) for tail in ("N1", "N2", "N3")}


def _with_entrypoints(method: Any, *entrypoints: Any) -> Any:
    method.nameko_entrypoints = set(entrypoints)
    return method


async def test_store_gets_lists_and_archive_a_prefetch_that_adapts(folder: Path) -> None:
    store, archive = service("store"), service("archive")
    lists: list[int] = []

    async def departed(self: object, flights: list[dict[str, Any]]) -> list[str] | None:
        lists.append(len(flights))
        return None

    (handler,) = store.departed.nameko_entrypoints
    store.departed = _with_entrypoints(departed, handler)
    async with run_services(store, archive) as bed:
        await publish(bed, [{"tail_number": "N1"}] * 500)
        await eventually(lambda: sum(lists) == 500, 30)
        (entrypoint,) = bed.container(archive).entrypoints
        assert 20 <= entrypoint.statistics().prefetch <= 2000

    assert max(lists) > 1
