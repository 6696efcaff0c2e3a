"""The README's code runs, on `memory://` and on RabbitMQ, and prints what the README says."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.docs.documents import ROOT, blocks_of
from tests.docs.terminal import Terminal

from mycelia import rpc
from mycelia.testing import eventually, run_services

README = ROOT / "README.md"


@pytest.fixture
def hello() -> Iterator[ModuleType]:
    """The module `hello`, as the README shows it."""
    (block,) = [block for block in blocks_of(README, "python") if block.name == "hello.py"]
    module = ModuleType("readme_hello")
    sys.modules[module.__name__] = module
    exec(compile(block.text, str(block), "exec"), vars(module))
    yield module
    del sys.modules[module.__name__]


async def test_hello_runs_in_memory(hello: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with run_services(hello.Hello) as bed:
        assert await bed.client.call("hello", "greet", "Ada") == "Hello, Ada!"
        await eventually(lambda: "counted" in caplog.text and "who=Ada" in caplog.text)


def test_hello_runs_as_shown_on_rabbitmq(tmp_path: Path, rabbit_uri: str) -> None:
    play(tmp_path, rabbit_uri, "hello.py", 3)


def test_pipeline_runs_as_shown_on_rabbitmq(tmp_path: Path, rabbit_uri: str) -> None:
    play(tmp_path, rabbit_uri, "departures.py", 3)


def play(folder: Path, uri: str, program: str, count: int) -> None:
    """The block that shows a program, and those after it, `count` in all."""
    blocks = blocks_of(README)
    (begin,) = [at for at, block in enumerate(blocks) if block.name == program]

    with Terminal(folder, uri) as terminal:
        for block in blocks[begin : begin + count]:
            assert block.name or block.language == "console"
            terminal.play(block)


async def test_client_example_runs() -> None:
    class Delays:
        name = "delays"

        @rpc
        def worst(self, n: int) -> list[int]:
            return [n]

    (block,) = [block for block in blocks_of(README, "python") if "Client(" in block.text]
    async with run_services(Delays) as bed:
        scope: dict[str, Any] = {}
        text = block.text.replace("amqp://localhost", bed.broker)
        indented = "\n".join(f"    {line}" for line in text.splitlines())
        exec(f"async def example():\n{indented}\n    return worst", scope)

        assert await scope["example"]() == [5]
