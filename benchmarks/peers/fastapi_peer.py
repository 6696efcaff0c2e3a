"""FastAPI on uvicorn and an httpx client: RPC with no broker between. It has no events."""

from __future__ import annotations

import os
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from benchmarks.peers import rpc_load
from benchmarks.peers.protocol import ANSWER_WITHIN, ECHOED, say
from benchmarks.peers.roles import levels, play

HOST = "127.0.0.1"
PORT = int(os.environ["BENCH_HTTP_PORT"])

app = FastAPI()


@app.post("/echo")
async def echo(request: dict[str, Any]) -> dict[str, Any]:
    """The echo, as an HTTP resource."""
    return {"result": request["args"][0], "error": None}


class _Announced(uvicorn.Server):
    """A server that tells the harness when its socket listens."""

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        say("ready")


async def rpc_server() -> None:
    """One uvicorn worker, as the other peers have one process; no access log."""
    config = uvicorn.Config(app, host=HOST, port=PORT, access_log=False, log_level="warning")
    await _Announced(config).serve()


async def rpc_client() -> None:
    """Call through one `AsyncClient`, with as many kept-alive connections as calls in flight."""
    wanted = levels()
    limits = httpx.Limits(
        max_connections=max(wanted.in_flight), max_keepalive_connections=max(wanted.in_flight)
    )
    async with httpx.AsyncClient(
        base_url=f"http://{HOST}:{PORT}", limits=limits, timeout=ANSWER_WITHIN
    ) as client:

        async def call() -> object:
            reply = await client.post("/echo", json={"args": [ECHOED], "kwargs": {}})
            return reply.raise_for_status().json()["result"]

        await rpc_load.drive(call, wanted)


if __name__ == "__main__":
    play({"rpc-server": rpc_server, "rpc-client": rpc_client})
