"""Several processes with the same services: `mycelia run --processes N`; and those that start anew: `--reload`.

The first process runs no service. It starts the others with its own command, restarts one that dies, passes signals on and
says `ready` once, when all of them are. They write to the same standard error, each line with the number of its process.

- The second and later ones are started when the first is up: what stops a start is said once, and ends the command.
- One that dies is started again after a pause that grows while it goes on dying, up to half a minute; the others run on.
- One that ends by itself with 0, because a service asked for it, stops the others.
- SIGTERM and Ctrl-C stop all of them in good order; a second signal at once. The command ends when all have.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from mycelia.cli.member import MEMBER_VARIABLE
from mycelia.cli.signals import SIGNALS, SignalCount, Step
from mycelia.errors import ConfigError
from mycelia.extras import require_extra
from mycelia.handover import PATH_VARIABLE, interpreter_flags
from mycelia.log_event import event

if TYPE_CHECKING:
    from mycelia.providers.metrics.together import MonitoredTogether

__all__ = ["Processes", "changes_of"]

log = logging.getLogger("mycelia.cli")

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0
"""A process that has run for so long begins with the first pause again. All three are arbitrary."""

LAST_S = 15.0
"""Seconds that the processes have after a second signal, which they end by themselves upon; then SIGKILL."""

STOPPED = (0, -signal.SIGTERM)
"""How a process ends that was stopped: the second before it had its handlers."""


class Processes:
    """Runs `count` processes of one command until they are stopped.

    Args:
        arguments: those of `mycelia run`, for one process.
        count: how many.
        first_only: more arguments of the first of them, for what only one process can have (a port).
        measured: what answers for all of them, if anything does.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        count: int,
        first_only: Sequence[str] = (),
        measured: MonitoredTogether | None = None,
    ) -> None:
        self._measured = measured
        self._arguments = list(arguments)
        self._count = count
        self._first_only = list(first_only)
        self._members: dict[int, _Running] = {}
        self._signals = SignalCount()
        self._stopping = asyncio.Event()
        self._is_over = asyncio.Event()
        """A signal came: no reload starts them again."""
        self._first_is_up = asyncio.Event()
        self._said_ready = False
        self._code = 0
        self._killing: asyncio.Task[None] | None = None
        self._environment: dict[str, str] = {}
        """What the processes have beside this one's."""

    async def run(self, changes: AsyncIterator[list[str]] | None = None) -> int:
        """Run them; return the exit code of the command.

        Args:
            changes: files that have changed, each time some have: all are then started anew. What stops a start is
                then said, and the next change awaited.
        """
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        # The leash of all: its other end is read in each of them, and ends with this process.
        leash, self._leash_end = os.pipe()
        self._leash = leash
        try:
            if self._measured is not None:
                await self._measured.start(self._members.__contains__, self._is_over.is_set)
            if changes is None:
                return await self._generation()
            # Python takes what it has compiled for a file of the same size and second: of two changes in one second it
            # would run the first.
            self._environment = {"PYTHONDONTWRITEBYTECODE": "1"}
            return await self._reloading(changes)
        finally:
            if self._measured is not None:
                await self._measured.stop()
            for number in SIGNALS:
                loop.remove_signal_handler(number)
            os.close(self._leash_end)
            os.close(leash)
            if self._killing is not None:
                self._killing.cancel()

    async def _reloading(self, changes: AsyncIterator[list[str]]) -> int:
        over = asyncio.ensure_future(self._is_over.wait())
        change: asyncio.Future[Any] = asyncio.ensure_future(anext(changes))
        try:
            while True:
                running = asyncio.ensure_future(self._generation())
                await asyncio.wait((running, change), return_when=asyncio.FIRST_COMPLETED)
                if not change.done() and not self._is_over.is_set():
                    log.warning(event("reload_waiting", detail="until a file changes"))
                    await asyncio.wait((change, over), return_when=asyncio.FIRST_COMPLETED)
                if self._is_over.is_set():
                    return await running
                files = change.result()
                log.info(event("reloading", files=files))
                change = asyncio.ensure_future(anext(changes))
                self._stop()
                await running
                if self._is_over.is_set():
                    return self._code
        finally:
            over.cancel()
            change.cancel()

    async def _generation(self) -> int:
        """Run them once: until they are stopped, or cannot start."""
        self._stopping = asyncio.Event()
        self._first_is_up = asyncio.Event()
        self._said_ready = False
        self._code = 0
        if self._is_over.is_set():
            return 0
        await asyncio.gather(*(self._keep(number) for number in range(1, self._count + 1)))
        return self._code

    async def _keep(self, number: int) -> None:
        """Keep one of them up."""
        if number > 1:
            await _first(self._first_is_up, self._stopping)
        pause = FIRST_PAUSE_S
        while not self._stopping.is_set():
            began = time.monotonic()
            measured = self._measured
            extra = self._environment | ({} if measured is None else measured.environment(number))
            member = await _Running.start(number, self._command(number), self._leash, extra)
            self._members[number] = member
            if self._stopping.is_set():  # a signal came meanwhile
                member.send(signal.SIGTERM)
            await _first(member.is_up, member.has_ended)
            if member.is_up.is_set():
                self._on_up(member)
            code = await member.wait()
            del self._members[number]
            if measured is not None:
                measured.ended(number)
            if self._stopping.is_set():
                self._note(code)
                return
            if not self._first_is_up.is_set() or code == 0:  # it cannot start, or was asked to end
                self._note(code)
                self._stop()
                return
            if time.monotonic() - began > STEADY_S:
                pause = FIRST_PAUSE_S
            log.error(
                event(
                    "process_died",
                    process=number,
                    pid=member.pid,
                    exit_code=_shell_code(code),
                    restart_in_s=pause,
                )
            )
            await _first(self._stopping, timeout=pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)

    def _command(self, number: int) -> list[str]:
        flags = interpreter_flags(sys.orig_argv)
        more = self._first_only if number == 1 else []
        return [sys.executable, *flags, "-m", "mycelia_command", "run", *self._arguments, *more]

    def _on_up(self, member: _Running) -> None:
        self._first_is_up.set()
        if self._said_ready:
            log.info(event("process_restarted", process=member.number, pid=member.pid))
        elif sum(other.is_up.is_set() for other in self._members.values()) == self._count:
            self._said_ready = True
            log.info(event("ready", services=member.services, processes=self._count))

    def _note(self, code: int) -> None:
        if not (self._stopping.is_set() and code in STOPPED):
            self._code = max(self._code, _shell_code(code))

    # --- the end ------------------------------------------------------------------------------

    def _stop(self) -> None:
        self._stopping.set()
        for member in self._members.values():
            member.send(signal.SIGTERM)

    def _on_signal(self, number: signal.Signals) -> None:
        step = self._signals.next(time.monotonic())
        self._is_over.set()
        if step is Step.STOP:
            log.info(event("stopping", signal=number.name, detail="a second signal kills"))
            self._stop()
        elif step is Step.KILL:
            log.warning(event("killing", signal=number.name, detail="unfinished work is requeued"))
            self._stop()
            if self._killing is None:
                self._killing = asyncio.create_task(self._kill_later(), name="mycelia:kill")

    async def _kill_later(self) -> None:
        await asyncio.sleep(LAST_S)
        for member in self._members.values():
            member.send(signal.SIGKILL)


class _Running:
    """One of them, as the first process sees it."""

    def __init__(self, number: int, process: asyncio.subprocess.Process, told: int) -> None:
        self.number = number
        self.pid = process.pid
        self.services = ""
        self.is_up = asyncio.Event()
        self.has_ended = asyncio.Event()
        self._process = process
        self._told = told
        asyncio.get_running_loop().add_reader(told, self._on_told)
        self._waiting = asyncio.create_task(self._wait(), name=f"mycelia:process:{number}")

    @classmethod
    async def start(
        cls, number: int, command: Sequence[str], leash: int, extra: dict[str, str]
    ) -> _Running:
        told, tell = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                env=os.environ
                | {
                    MEMBER_VARIABLE: f"{number}:{tell}:{leash}",
                    PATH_VARIABLE: os.pathsep.join(sys.path),
                }
                | extra,
                pass_fds=(tell, leash),
                # A terminal's Ctrl-C reaches the first process alone, which passes it on.
                process_group=0,
            )
        finally:
            os.close(tell)
        return cls(number, process, told)

    def _on_told(self) -> None:
        text = os.read(self._told, 65536)
        if text:
            self.services = text.decode().strip()
            self.is_up.set()
        else:  # it has ended
            asyncio.get_running_loop().remove_reader(self._told)

    async def _wait(self) -> int:
        code = await self._process.wait()
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._told)
        os.close(self._told)
        self.has_ended.set()
        return code

    async def wait(self) -> int:
        """Its exit code, below zero after a signal."""
        return await self._waiting

    def send(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            self._process.send_signal(number)


def _shell_code(code: int) -> int:
    """As a shell gives it: 128 and the signal's number."""
    return code if code >= 0 else 128 - code


async def _first(*wanted: asyncio.Event, timeout: float | None = None) -> None:
    """Wait for the first of some events."""
    waits = [asyncio.ensure_future(one.wait()) for one in wanted]
    try:
        await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def changes_of(*paths: str) -> AsyncIterator[list[str]]:
    """Python and YAML files below `paths`, each time some have changed. Caches and virtual environments do not count.

    Raises:
        ConfigError: watchfiles is not installed.
    """
    require_extra("reload", "--reload")
    return _changes([os.path.realpath(path) for path in paths])


async def _changes(paths: list[str]) -> AsyncIterator[list[str]]:
    from watchfiles import PythonFilter, awatch

    files = PythonFilter(extra_extensions=(".yaml", ".yml"))
    async for changed in awatch(*paths, watch_filter=files):
        yield sorted(map(_shown, {path for _, path in changed}))


def _shown(path: str) -> str:
    return os.path.relpath(path)


def refuse_memory(uri: str, count: int) -> None:
    """Raise where several processes could not talk with each other.

    Raises:
        ConfigError: a broker in memory is each process's own.
    """
    if uri.startswith("memory:"):
        raise ConfigError(
            f"{count} processes cannot share {uri}: it lives in one process. Name a RabbitMQ, or run one process."
        )
