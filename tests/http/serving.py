"""A running service with `@http` methods, and a client on its real socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx

from mycelia import Middleware, Runner
from mycelia.entrypoints import Http

__all__ = ["CONFIG", "Served", "address_of", "connect", "is_refused", "serve"]

CONFIG = {"AMQP_URI": "memory://http", "WEB_SERVER_ADDRESS": "127.0.0.1:0"}


class Served(NamedTuple):
    """What a test works with."""

    runner: Runner
    client: httpx.AsyncClient
    address: str


def address_of(runner: Runner) -> str:
    """`host:port` of the server that the services of `runner` share."""
    for container in runner.containers:
        for entrypoint in container.entrypoints:
            if isinstance(entrypoint, Http):
                return entrypoint.address
    raise AssertionError("no service with @http")


@asynccontextmanager
async def serve(
    *services: type, inbound: tuple[Middleware, ...] = (), **section: Any
) -> AsyncIterator[Served]:
    """Run `services` with the settings `mycelia: section` on a free port."""
    async with Runner({**CONFIG, "mycelia": section}, services, inbound=inbound) as runner:
        address = address_of(runner)
        async with httpx.AsyncClient(
            base_url=f"http://{address}", timeout=10, trust_env=False
        ) as client:
            yield Served(runner, client, address)


@asynccontextmanager
async def connect(address: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection, for clients that behave badly."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def is_refused(address: str) -> bool:
    """Whether nobody listens there."""
    host, _, port = address.rpartition(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) != 0
