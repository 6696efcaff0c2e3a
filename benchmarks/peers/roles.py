"""The command line of an asyncio peer: `python -m benchmarks.peers.NAME ROLE [options]`."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping

import uvloop

from benchmarks.peers.protocol import say
from benchmarks.peers.rpc_load import Levels

Role = Callable[[], Awaitable[None]]


def play(roles: Mapping[str, Role]) -> None:
    """Run the role named on the command line, on uvloop, as Mycelia runs by default."""
    uvloop.run(_awaited(roles[sys.argv[1]]))


def levels() -> Levels:
    """The options of the `rpc-client` role."""
    return Levels.from_arguments(sys.argv[2:])


async def serve_until_stopped() -> None:
    """Tell the harness that the server may be used, and wait for SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    say("ready")
    await stopped.wait()


async def _awaited(role: Role) -> None:
    await role()
