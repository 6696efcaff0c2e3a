"""What docs/operating.md says of logs, dead letters and permissions is so."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import secrets
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from tests.docs.documents import ROOT, blocks_of, table_rows
from tests.source import parse

from mycelia import Client, EventDispatcher, Runner, event_handler, rpc
from mycelia.amqp import Link
from mycelia.broker.node import PrivateNode
from mycelia.entrypoints.dead_letters import dead_letter_queue
from mycelia.errors import AccessRefused
from mycelia.testing import eventually, run_services

DOCUMENT = ROOT / "docs" / "operating.md"
LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}


def section(heading: str) -> str:
    return DOCUMENT.read_text("utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]


# --- logs ------------------------------------------------------------------------------------------


def _log_calls() -> Iterator[tuple[str, ast.expr, str]]:
    """Place, message and level of each line that the platform can log."""
    for module in sorted((ROOT / "platform" / "mycelia").rglob("*.py")):
        for node in ast.walk(parse(module.read_text("utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log" | "_log"), attr=level),
                    args=[message, *_],
                ) if level in LEVELS:
                    place = f"{module.relative_to(ROOT)}:{node.lineno}"
                    yield place, message, "error" if level == "exception" else level


def _names(message: ast.expr) -> list[str]:
    """The names in `event("…", …)`, or in `event("…" if … else "…", …)`; none for anything else."""
    match message:
        case ast.Call(func=ast.Name(id="event"), args=[ast.Constant(value=str(name))]):
            return [name]
        case ast.Call(
            func=ast.Name(id="event"),
            args=[
                ast.IfExp(body=ast.Constant(value=str(one)), orelse=ast.Constant(value=str(other)))
            ],
        ):
            return [one, other]
    return []


def _logged() -> set[tuple[str, str]]:
    return {(name, level) for _, message, level in _log_calls() for name in _names(message)}


def _documented() -> set[tuple[str, str]]:
    """Event and level of each row, the n-th level being the n-th event's where there are several."""
    documented = set()
    for row in table_rows(section("Logs")):
        names = re.findall(r"`(\w+)`", row[0])
        levels = row[1].split(", ")
        documented |= set(zip(names, levels * len(names), strict=False))
    return documented


def test_every_line_of_our_own_is_an_event_with_typed_fields() -> None:
    """`log.warning(event("name_in_snake_case", key=value))`: nothing is formatted, so nothing is parsed back."""
    calls = list(_log_calls())
    prose = [place for place, message, _ in calls if not _names(message)]
    odd = {name for name, _ in _logged() if not re.fullmatch(r"[a-z]+(_[a-z]+)*", name)}

    assert len(calls) > 50
    assert (prose, odd) == ([], set())


def test_every_event_is_documented_and_every_documented_one_is_logged_at_its_level() -> None:
    documented, logged = _documented(), _logged()

    assert {name for name, _ in logged} - {name for name, _ in documented} == set()
    assert documented - logged == set()


async def test_what_is_handled_without_trouble_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with run_services(Hello) as bed:
        caplog.set_level("DEBUG", "mycelia")
        caplog.clear()
        assert await bed.client.call("hello", "greet", "Ada") == "Hello, Ada!"
        lanes = bed.runner.statistics().services["hello"].lanes
        await eventually(
            lambda: bed.runner.statistics().services["hello"].lanes["hello.count"].finished == 1
        )
        said = [record.getMessage() for record in caplog.records if record.name[:7] == "mycelia"]

    assert "hello.count" in lanes
    assert said == []


# --- dead letters ----------------------------------------------------------------------------------


class Hello:
    name = "hello"
    emit = EventDispatcher()

    @rpc
    async def greet(self, who: str) -> str:
        await self.emit("greeted", {"who": who})
        return f"Hello, {who}!"

    @event_handler("hello", "greeted")
    def count(self, event: dict[str, str]) -> None:
        event["who"]


DEAD = "evt-hello-greeted--hello.count.dead"


async def _await_dead_letter(link: Link) -> None:
    async def is_there() -> bool:
        return await link.message_count(DEAD) == 1

    await link.declare(dead_letter_queue(DEAD))
    await eventually(is_there, 30)


async def test_dead_letter_is_seen_as_shown(
    rabbit_node: PrivateNode, rabbit_vhost: str, rabbit_uri: str
) -> None:
    (command,) = [b.text for b in blocks_of(DOCUMENT, "console") if "/api/queues" in b.text]
    found = re.search(r"(/api/\S+).*-d '(.*)'", command, re.DOTALL)
    assert found is not None
    path = found[1].replace("%2F", quote(rabbit_vhost, safe=""), 1)

    async with run_services(Hello, broker=rabbit_uri) as bed:
        await bed.client.publish("hello", "greeted", {"whom": "Ada"})
        link = bed.container(Hello).host.link
        await _await_dead_letter(link)
        (letter,) = await asyncio.to_thread(
            rabbit_node.api.request, "POST", path, json.loads(found[2])
        )

    headers = letter["properties"]["headers"]
    documented = set(re.findall(r"`(x-mycelia-[\w-]+)`", section("Dead letters").split("**")[0]))
    assert documented == {name for name in headers if name.startswith("x-mycelia-")}
    assert letter["payload"] == '{"whom":"Ada"}'


# --- permissions -----------------------------------------------------------------------------------


@pytest.fixture
def restricted_uri(rabbit_node: PrivateNode, rabbit_vhost: str) -> Iterator[str]:
    """The broker, for a user with the documented permissions and no others."""
    (command,) = [b.text for b in blocks_of(DOCUMENT, "console") if "set_permissions" in b.text]
    rights = dict(
        zip(("configure", "write", "read"), re.findall(r"'([^']+)'", command), strict=True)
    )
    user = f"hello-{secrets.token_hex(4)}"
    api = rabbit_node.api
    api.request("PUT", f"/api/users/{user}", {"password": "secret", "tags": ""})
    api.request("PUT", f"/api/permissions/{quote(rabbit_vhost, safe='')}/{user}", rights)
    yield rabbit_node.uri(rabbit_vhost).replace("guest:guest", f"{user}:secret")
    api.request("DELETE", f"/api/users/{user}")


async def test_documented_permissions_suffice(restricted_uri: str) -> None:
    async with Runner({"AMQP_URI": restricted_uri}, [Hello]) as runner:
        async with Client(restricted_uri, name="hello") as client:
            assert await client.call("hello", "greet", "Ada") == "Hello, Ada!"
            await client.publish("hello", "greeted", {"whom": "Ada"})
            link = runner.host.link
            await _await_dead_letter(link)


async def test_other_queues_than_the_documented_are_refused(restricted_uri: str) -> None:
    class Other(Hello):
        name = "other"

    with pytest.raises(AccessRefused, match="Give the user the permission"):
        await Runner({"AMQP_URI": restricted_uri}, [Other]).start(timeout=10)
