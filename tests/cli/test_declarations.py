"""What a service module declares, under `nameko run` and `mycelia run`: mistakes in one line, middleware everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.commands import MYCELIA, NAMEKO
from tests.ports import free_port
from tests.processes import Process, run

COMMANDS = {"nameko": [NAMEKO], "mycelia": [*MYCELIA]}

MISTAKES = {
    "misspelt_option": (
        "@rpc(concurency=3)",
        "",
        "ConfigError: Shop.buy: @rpc(concurency=3): unknown option concurency; did you mean concurrency?",
    ),
    "wrong_type": (
        "@timer('ten')",
        "",
        "ConfigError: Shop.buy: @timer('ten'): interval='ten': expected seconds between ticks",
    ),
    "missing_argument": (
        "@event_handler('feed')",
        "",
        "ConfigError: Shop.buy: @event_handler('feed'): missing a required argument: 'event_type'.",
    ),
    "bare": ("@http", "", "ConfigError: Shop.buy: @http: missing a required argument: 'method'."),
    "provider": (
        "@rpc",
        "emit = EventDispatcher(mandatroy=True)",
        "ConfigError: Shop: EventDispatcher(mandatroy=True): unknown option mandatroy; did you mean mandatory?",
    ),
}


@pytest.mark.long_variants(
    "bare-nameko", "missing_argument-nameko", "misspelt_option-nameko", "wrong_type-nameko"
)
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_in_a_declaration_is_one_line(tmp_path: Path, mistake: str, command: str) -> None:
    decorator, provider, said = MISTAKES[mistake]
    (tmp_path / "shop.py").write_text(
        "from mycelia import EventDispatcher, event_handler, http, rpc, timer\n\n"
        f"class Shop:\n    name = 'shop'\n    {provider}\n\n    {decorator}\n    def buy(self): pass\n"
    )

    done = run([*COMMANDS[command], "run", "shop", "--broker", "memory://"], tmp_path)

    assert done.returncode == 1
    assert done.stderr.startswith(said)
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stdout + done.stderr


COUNTED = """
import asyncio
import sys

from mycelia import Config, EventDispatcher, Publisher, Queue, RpcProxy
from mycelia import consume, event_handler, http, rpc, timer


class Count:
    def middleware(self, direction, target):
        async def count(call, next):
            print(f"counted {direction.value} {call.kind.value} {call.target.name}.", flush=True)
            return await next(call)

        return count


class Everything:
    name = "everything"
    myself = RpcProxy("everything")
    emit = EventDispatcher()
    publish = Publisher(queue=Queue("jobs"))
    port = Config("PORT", int)

    @timer(600, eager=True)
    async def tick(self):
        await self.myself.work()
        await self.emit("worked", 1)
        await self.publish(1)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET /page HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
        await reader.read()
        writer.close()

    @rpc
    def work(self): pass

    @event_handler("everything", "worked")
    def worked(self, payload): pass

    @consume(Queue("jobs"))
    async def job(self, payload): pass

    @http("GET", "/page")
    def page(self, request):
        return "page"
"""


def test_middleware_that_the_configuration_names_counts_in_all_directions(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "counted.py").write_text(COUNTED)
    (tmp_path / "config.yaml").write_text(
        f"AMQP_URI: memory://\nPORT: {port}\nWEB_SERVER_ADDRESS: 127.0.0.1:{port}\n"
        "mycelia:\n  middleware: [counted.Count]\n"
    )

    with Process(NAMEKO, "run", "counted", "--config", "config.yaml", cwd=tmp_path) as process:
        process.wait_until_ready()
        for counted in (
            "inbound timer everything.tick",
            "outbound rpc everything.work",
            "inbound rpc everything.work",
            "outbound event everything.worked",
            "inbound event everything.worked",
            "outbound message .jobs",
            "inbound message everything.job",
            "inbound http everything.page",
        ):
            process.wait_for(f"counted {counted}.")

        assert process.stop() == 0
