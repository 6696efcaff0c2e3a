"""A machine that can die without a word: a network namespace with a relay to the broker in it, and a cable that can be cut."""

from __future__ import annotations

import asyncio
import ctypes
import os
import secrets
import socket
import subprocess
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

__all__ = ["CannotBuild", "DeadMachine", "machine"]

_CLONE_NEWNET = 0x40000000


class CannotBuild(Exception):
    """This system lets us make no network namespace."""


class DeadMachine:
    """Where to reach the broker through it, and how to let it die."""

    def __init__(self, namespace: str, interface: str, address: str) -> None:
        self._namespace = namespace
        self._interface = interface
        self.address = address
        self.port = 0

    async def die(self) -> None:
        """From now on nothing comes from it any more: no byte, no acknowledgement, no reset."""
        command = ("ip", "-n", self._namespace, "link", "set", self._interface, "down")
        await asyncio.to_thread(_run, *command)


@asynccontextmanager
async def machine(broker_port: int) -> AsyncIterator[DeadMachine]:
    """A machine beside this one, on which the broker seems to listen.

    Raises:
        CannotBuild: no root, no `ip`, or no namespaces.
    """
    tag = secrets.token_hex(3)
    namespace, ours, theirs = f"myc-{tag}", f"mo-{tag}", f"mt-{tag}"
    third = secrets.randbelow(250) + 1
    network = f"10.231.{third}"
    relays: set[asyncio.Task[None]] = set()
    try:
        await asyncio.to_thread(_build, namespace, ours, theirs, network)
        found = DeadMachine(namespace, theirs, f"{network}.2")
        listening = await asyncio.to_thread(_listen_in, namespace, found.address)
    except (OSError, subprocess.SubprocessError) as exc:
        await asyncio.to_thread(_remove, namespace, ours)
        raise CannotBuild(str(exc)) from exc

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs_in, theirs_out = await asyncio.open_connection("127.0.0.1", broker_port)
        for source, sink in ((reader, theirs_out), (theirs_in, writer)):
            task = asyncio.create_task(_pump(source, sink))
            relays.add(task)
            task.add_done_callback(relays.discard)

    server = await asyncio.start_server(serve, sock=listening)
    found.port = listening.getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        for task in list(relays):
            task.cancel()
        await asyncio.gather(*relays, return_exceptions=True)
        await asyncio.to_thread(_remove, namespace, ours)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(1 << 16):
            sink.write(data)
    except OSError:
        pass
    finally:
        sink.transport.abort()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=10)


def _build(namespace: str, ours: str, theirs: str, network: str) -> None:
    _run("ip", "netns", "add", namespace)
    _run("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", namespace)
    _run("ip", "addr", "add", f"{network}.1/30", "dev", ours)
    _run("ip", "link", "set", ours, "up")
    _run("ip", "-n", namespace, "addr", "add", f"{network}.2/30", "dev", theirs)
    _run("ip", "-n", namespace, "link", "set", theirs, "up")


def _remove(namespace: str, ours: str) -> None:
    for command in (("ip", "link", "del", ours), ("ip", "netns", "del", namespace)):
        subprocess.run(command, check=False, capture_output=True, timeout=10)


def _listen_in(namespace: str, address: str) -> socket.socket:
    """A listening socket that belongs to `namespace`: made by a thread that has moved there, and ends."""
    made: list[socket.socket | OSError] = []

    def make() -> None:
        with Path(f"/run/netns/{namespace}").open() as handle:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(handle.fileno(), _CLONE_NEWNET):
                made.append(OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno())))
                return
            try:
                made.append(socket.create_server((address, 0)))
            except OSError as exc:
                made.append(exc)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    [result] = made
    if isinstance(result, OSError):
        raise result
    return result
