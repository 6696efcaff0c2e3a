"""A flow of several stages with changelogs: its savepoint is taken, and put back, where it has never run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.flows.carriers import BY_CARRIER, closing, flights
from tests.flows.counting import Tally
from tests.flows.machines import changelog_config as config
from tests.flows.test_stage_savepoints import (
    BETWEEN,
    GROUP,
    Gated,
    append,
    given,
    has_counted,
    has_given,
    has_taken,
    wanted,
)

from mycelia import Client
from mycelia.flow.reset import reset_flow
from mycelia.flow.stage_savepoints import save_flow
from mycelia.flow.state_home import logged_state_home
from mycelia.runtime.settings import FlowsSection
from mycelia.testing import run_services


@pytest.mark.long
async def test_stages_go_back_to_a_savepoint_by_force_and_on_to_another_machine(
    broker: str, tmp_path: Path
) -> None:
    gate = Gated.gate = asyncio.Event()
    left = flights(1_500)
    async with Client(broker) as client:
        tally = Tally(client, BY_CARRIER)
        section = FlowsSection(state=str(tmp_path / "console"), changelog=True)
        console = logged_state_home(section, client.link)
        await asyncio.to_thread(console.prepare, "test", GROUP, ["left", BETWEEN])
        async with run_services(Gated, broker=broker, config=config(tmp_path / "one")) as bed:
            gate.set()
            await append(client, left[:500])
            await has_counted(bed, left[:500])
            gate.clear()
            await append(client, left[500:1_000])
            await has_taken(bed, 1_000)
            saved = await save_flow(client.link, console, GROUP, tmp_path / "saved")
            gate.set()
            await append(client, left[1_000:])
            await has_counted(bed, left)
            await reset_flow(client.link, console, GROUP, tmp_path / "saved", force=True)
            await has_taken(bed, len(left) + 500)
        async with run_services(Gated, broker=broker, config=config(tmp_path / "other")):
            await append(client, closing())
            await has_given(tally, left)
        await tally.read()
        await tally.aclose()

    (between,) = saved.between
    assert between.entries > 0
    assert given(tally) == wanted(left)
