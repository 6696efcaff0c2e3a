"""Existing services catch errors by Nameko's and kombu's names, as on stock Nameko in the same run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from tests.nameko.processes import NamekoRun
from tests.ports import free_port

from mycelia.testing import eventually
from mycelia.testing.tcp_proxy import Fault, TcpProxy

SIDES = {
    "stock": {},
    "here": {"SERVICE_CONTAINER_CLS": "mycelia.Container", "mycelia": {"publish_timeout": 0.5}},
}

Ask = Callable[[str], Awaitable[dict[str, str]]]


@pytest.fixture
async def wire(module_uri: str) -> AsyncIterator[TcpProxy]:
    """Between both processes and the broker."""
    parts = urlsplit(module_uri)
    async with TcpProxy(str(parts.hostname), int(parts.port or 0)) as proxy:
        yield proxy


@pytest.fixture
async def ask(
    wire: TcpProxy, module_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Ask]:
    """What both say to an HTTP request, which needs no broker."""
    urls = {side: f"127.0.0.1:{free_port()}" for side in SIDES}
    with ExitStack() as stack:
        for side, config in SIDES.items():
            monkeypatch.setenv("SIDE", side)
            run = NamekoRun(
                "tests.nameko.named_errors_service:Named",
                config={
                    "AMQP_URI": wire.uri(module_uri),
                    "WEB_SERVER_ADDRESS": urls[side],
                    **config,
                },
                directory=tmp_path,
            )
            stack.enter_context(run)
        async with httpx.AsyncClient(timeout=30, trust_env=False) as client:

            async def ask(path: str) -> dict[str, str]:
                said = {}
                for side, url in urls.items():
                    said[side] = (await client.get(f"http://{url}/{path}")).text
                return said

            async with asyncio.timeout(60):
                for url in urls.values():
                    await eventually(partial(_answers, client, url), 30)
            yield ask


async def _answers(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(f"http://{url}/message")).text == "nothing"
    except httpx.TransportError:
        return False


async def test_errors_are_caught_by_the_names_they_have_on_stock_nameko(
    ask: Ask, wire: TcpProxy
) -> None:
    for path in ("unwritable-event", "unwritable-message", "unwritable-argument"):
        assert await ask(path) == dict.fromkeys(SIDES, "EncodeError"), path
    assert await ask("unknown-serializer") == dict.fromkeys(SIDES, "SerializerNotInstalled")

    await wire.fail(Fault.REFUSED)

    assert await ask("message") == dict.fromkeys(SIDES, "OperationalError")
    await wire.heal()  # or both take long to stop
