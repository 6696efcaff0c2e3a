"""The examples in the guides run, and do what the text around them says."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from tests.docs.documents import ROOT, Block, blocks_of
from tests.tools import our_pytest_plugin

from mycelia import Client, rpc
from mycelia.testing import PrivateNode, eventually, run_services

DOCS = ROOT / "docs"


def block_with(document: Path, text: str) -> Block:
    (block,) = [block for block in blocks_of(document, "python") if text in block.text]
    return block


def load(block: Block) -> dict[str, Any]:
    """The names that a block defines."""
    module = ModuleType(f"example_{block.document.stem}")
    sys.modules[module.__name__] = module
    exec(compile(block.text, str(block), "exec"), vars(module))
    return vars(module)


async def test_every_entrypoint_of_the_tower_works() -> None:
    tower = load(block_with(DOCS / "concepts.md", "class Tower"))["Tower"]

    async with run_services(tower, config={"WEB_SERVER_ADDRESS": "127.0.0.1:0"}) as bed:
        assert await bed.client.call("tower", "state", "31L") == "open"
        await bed.client.publish("feed", "departed", {"runway": "31L"}, mandatory=True)
        await eventually(lambda: tower.runways == {"31L": "busy"})

        (page,) = (e for e in bed.container(tower).entrypoints if e.method_name == "page")
        async with httpx.AsyncClient() as http:
            answer = await http.get(f"http://{page.address}/runways/31L")
        assert answer.json() == {"runway": "31L", "state": "busy"}


async def test_provider_of_ones_own_injects_a_connection() -> None:
    guests = load(block_with(DOCS / "concepts.md", "class Guests"))["Guests"]

    async with run_services(guests) as bed:
        assert await bed.client.call("guests", "answer") == 42


async def test_middleware_sees_each_call(capsys: pytest.CaptureFixture[str]) -> None:
    runner = load(block_with(DOCS / "concepts.md", "class Clock"))["runner"]

    async with runner, Client("memory://concepts") as client:
        assert await client.call("clock", "now") > 0
    assert "clock.now: done in 0." in capsys.readouterr().out


def test_registered_error_is_still_an_exception() -> None:
    no_such_plane = load(block_with(DOCS / "concepts.md", "register_remote_error"))["NoSuchPlane"]

    assert issubclass(no_such_plane, Exception)


@pytest.mark.parametrize(("config", "pace"), [({}, 3600.0), ({"feed": {"speed": "60"}}, 60.0)])
async def test_config_injects_a_checked_value(config: dict[str, Any], pace: float) -> None:
    feed = load(block_with(DOCS / "configuration.md", "class Feed"))["Feed"]

    async with run_services(feed, config=config) as bed:
        assert await bed.client.call("feed", "pace") == pace


async def test_service_moved_from_nameko_runs() -> None:
    fares = load(block_with(DOCS / "from-nameko.md", "class Fares"))["Fares"]

    class Planes:
        name = "planes"

        @rpc
        def get(self, tail_number: str) -> dict[str, int]:
            return {"seats": len(tail_number)}

    async with run_services(fares, Planes) as bed:
        assert await bed.client.call("fares", "seats", "N1") == 2
        assert await bed.client.call("fares", "seats_of_all", ["N1", "N12"]) == [2, 3]


async def test_tests_in_the_testing_guide_pass(tmp_path: Path, rabbit_node: PrivateNode) -> None:
    write_files(DOCS / "testing.md", tmp_path)
    # The guide's fixture starts a node as tests/conftest.py does; one node is enough for this run.
    conftest = tmp_path / "conftest.py"
    own, replaced = re.subn(
        r"    node = PrivateNode.*?node\.remove\(\)\n",
        f"    from pathlib import Path\n\n    return PrivateNode(Path({str(rabbit_node.directory)!r}))\n",
        conftest.read_text("utf-8"),
        flags=re.DOTALL,
    )
    conftest.write_text(own, "utf-8")
    assert replaced == 1

    assert "11 passed" in await run_tests(tmp_path)


async def test_tests_in_the_guide_to_providers_pass(tmp_path: Path) -> None:
    write_files(DOCS / "providers.md", tmp_path)
    (told,) = re.findall(
        r"^(\d+ passed)$", (DOCS / "providers.md").read_text("utf-8"), re.MULTILINE
    )

    assert told in await run_tests(tmp_path, "-p", "no:pytest_nameko")


def write_files(document: Path, folder: Path) -> None:
    """The files that a document shows."""
    for block in blocks_of(document):
        if block.name:
            (folder / block.name).write_text(block.text, "utf-8")


async def run_tests(folder: Path, *options: str) -> str:
    """What pytest says of the tests in a folder, which pass."""
    done = await asyncio.to_thread(
        subprocess.run,
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs"),
            *(*our_pytest_plugin(), "-p", "no:nameko_sqlalchemy", *options, "."),
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT / "platform")},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
