"""Runs the services: each in a process of its own by `nameko run`, or all in this one on an embedded broker."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

__all__ = ["Fleet", "ServiceDied", "child_fleet", "in_process_fleet"]

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "services" / "config.yaml"
SERVICES = ("registry", "delays", "flows", "enrich", "feed", "board")
"""Consumers before what feeds them, so that nothing is emitted into the void."""

STOP_S = 30.0
LOG_LINES = 15


class ServiceDied(RuntimeError):
    """A service ended by itself; the message has the end of its log."""


class Fleet(Protocol):
    """Running services."""

    async def restart(self, service: str, config: Path) -> None:
        """Stops a service and starts it with another configuration.

        Raises:
            NotImplementedError: it has no process of its own.
        """

    async def kill(self, service: str) -> None:
        """Ends a service with SIGKILL and starts it again.

        Raises:
            NotImplementedError: it has no process of its own.
        """

    def check(self) -> None:
        """Raises `ServiceDied` if a service has ended."""


class _Children:
    """One `nameko run` for each service."""

    def __init__(self, log_folder: Path, environment: Mapping[str, str]) -> None:
        log_folder.mkdir(parents=True, exist_ok=True)
        self._log_folder = log_folder
        self._environment = environment
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._configs: dict[str, Path] = {}

    async def start(self, service: str, config: Path, *, is_again: bool = False) -> None:
        self._configs[service] = config
        command = (
            Path(sys.executable).with_name("nameko"),
            *("run", "--config", config, f"services.flights.{service}"),
        )
        with self._log(service).open("ab" if is_again else "wb") as log:
            self._processes[service] = await asyncio.create_subprocess_exec(
                *command,
                cwd=ROOT,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Of its own session, so that Ctrl-C reaches this process alone, which then stops the services in order.
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )

    def check(self) -> None:
        for service, process in self._processes.items():
            if process.returncode is not None:
                raise ServiceDied(
                    f"{service} ended with exit code {process.returncode}. "
                    f"The end of {self._log(service)}:\n{self._tail(service)}"
                )

    async def restart(self, service: str, config: Path) -> None:
        await self._stop([self._processes.pop(service)])
        await self.start(service, config, is_again=True)

    async def kill(self, service: str) -> None:
        process, config = self._processes.pop(service), self._configs[service]
        process.kill()
        await process.wait()
        await self.start(service, config, is_again=True)

    async def stop(self) -> None:
        """SIGTERM to all, feed first; SIGKILL to what is still there after half a minute."""
        await self._stop(reversed(self._processes.values()))

    async def _stop(self, processes: Iterable[asyncio.subprocess.Process]) -> None:
        running = [process for process in processes if process.returncode is None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        waits = [asyncio.create_task(process.wait()) for process in running]
        if waits:
            await asyncio.wait(waits, timeout=STOP_S)
        for process, wait in zip(running, waits, strict=True):
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await wait

    def _log(self, service: str) -> Path:
        return self._log_folder / f"{service}.log"

    def _tail(self, service: str) -> str:
        lines = self._log(service).read_text("utf-8", "replace").splitlines()[-LOG_LINES:]
        return "\n".join(f"    {line}" for line in lines) or "    (empty)"


def _die_with_parent() -> None:
    """In the child: SIGTERM when the parent dies, however it dies (`PR_SET_PDEATHSIG`); kept across `exec`."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


@asynccontextmanager
async def child_fleet(
    amqp_uri: str,
    board_address: str,
    log_folder: Path,
    services: Sequence[str] = SERVICES,
    *,
    config: Path = CONFIG,
    more: Mapping[str, str] | None = None,
) -> AsyncIterator[Fleet]:
    """Runs each service by `nameko run` in a process of its own, its output in `log_folder/<service>.log`.

    Args:
        config: their configuration.
        more: of their environment.
    """
    environment = os.environ | {
        "AMQP_URI": amqp_uri,
        "BOARD_ADDRESS": board_address,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "platform"))),
        "PYTHONUNBUFFERED": "1",
        **(more or {}),
    }
    children = _Children(log_folder, environment)
    try:
        for service in services:
            await children.start(service, config)
        yield children
    finally:
        await asyncio.shield(children.stop())


class _Embedded:
    """The services in this process: they cannot end without it."""

    async def restart(self, service: str, config: Path) -> None:
        raise NotImplementedError(f"{service} has no process of its own")

    async def kill(self, service: str) -> None:
        raise NotImplementedError(f"{service} has no process of its own")

    def check(self) -> None:
        return


@asynccontextmanager
async def in_process_fleet(amqp_uri: str, board_address: str) -> AsyncIterator[Fleet]:
    """Runs all services in this process, on this event loop."""
    from mycelia.runtime import Runner, load_config
    from services.flights.board import Board
    from services.flights.delays import Delays
    from services.flights.enrich import Enrich
    from services.flights.feed import Feed
    from services.flights.flows import Flows
    from services.flights.registry import Registry

    with tempfile.TemporaryDirectory(prefix="flights-") as state:
        config = load_config(CONFIG) | {"AMQP_URI": amqp_uri, "WEB_SERVER_ADDRESS": board_address}
        # The broker's logs go with the process, and so does what the flows keep of them.
        config["mycelia"] = {**config["mycelia"], "flows": {"state": state}}
        async with Runner(config, [Registry, Delays, Flows, Enrich, Feed, Board]):
            yield _Embedded()
