"""Several processes of one command, measured and probed as one: what the first process does, which runs no service."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from mycelia.errors import ConfigError
from mycelia.extras import require_extra
from mycelia.providers.metrics.cells import read_cells
from mycelia.providers.metrics.exposition import Merged, merge
from mycelia.providers.metrics.files import MemberFiles, make_folder
from mycelia.providers.metrics.health import Health
from mycelia.providers.metrics.monitoring import (
    health_answer,
    live_answer,
    metrics_answer,
    servers_of,
)
from mycelia.providers.metrics.server import Answer, ProbeServer
from mycelia.runtime import Phase, Settings

__all__ = ["MonitoredTogether"]

READY_S = 5.0
LIVE_S = 15.0
"""Seconds without a sign of life (they give one each second) after which a process counts as not ready, and as stuck. Arbitrary."""


class MonitoredTogether:
    """Answers probes and scrapes for `count` processes.

    Args:
        settings: of all of them.
        count: how many there are to be.

    Raises:
        ConfigError: `prometheus_client` is not installed, or there is no place for the files.
    """

    def __init__(self, settings: Settings, count: int) -> None:
        section = settings.mycelia
        self._counts = section.metrics is not None
        if self._counts:
            require_extra("metrics", "mycelia.metrics")
        try:
            self._folder = make_folder()
        except OSError as exc:
            raise ConfigError(f"mycelia.metrics: no place to count in: {exc}") from exc
        self._files = {n: MemberFiles(self._folder, n) for n in range(1, count + 1)}
        self._is_running: Callable[[int], bool] = lambda number: False
        self._is_stopping: Callable[[], bool] = lambda: False
        self._scraping = asyncio.Lock()
        self._servers: list[ProbeServer] = servers_of(
            section, self._live, self._ready, self._metrics
        )

    @classmethod
    def of(cls, config: Mapping[str, Any], count: int) -> MonitoredTogether | None:
        """What the configuration asks for; `None` where it asks for nothing."""
        settings = Settings.from_config(config)
        if settings.mycelia.metrics is None and settings.mycelia.health is None:
            return None
        return cls(settings, count)

    async def start(
        self, is_running: Callable[[int], bool], is_stopping: Callable[[], bool]
    ) -> None:
        """Listen.

        Args:
            is_running: whether process N runs now.
            is_stopping: whether all are to end.

        Raises:
            ConfigError: an address cannot be had.
        """
        self._is_running = is_running
        self._is_stopping = is_stopping
        for server in self._servers:
            await server.start()

    def environment(self, number: int) -> dict[str, str]:
        """Variables that make a process number `number`."""
        return self._files[number].environment(counts=self._counts)

    def ended(self, number: int) -> None:
        """Process `number` has ended, in whichever way. What it has counted stays."""
        self._files[number].ended()

    async def stop(self) -> None:
        """Hang up, and remove the files."""
        for server in self._servers:
            await server.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    # --- what it answers ----------------------------------------------------------------------

    async def _live(self, headers: Mapping[str, str]) -> Answer:
        return live_answer(
            f"process {number}: no sign of life for {silent:.0f} s"
            for number, files in self._files.items()
            if self._is_running(number)
            and (said := files.health()) is not None
            and (silent := said[1]) > LIVE_S
        )

    async def _ready(self, headers: Mapping[str, str]) -> Answer:
        return health_answer(self.health())

    def health(self) -> Health:
        """That of all: ready when each of them is."""
        missing: list[str] = []
        links: list[str] = []
        services: dict[str, None] = {}
        phases = [Phase.STOPPING.value] if self._is_stopping() else []
        for number, files in self._files.items():
            said = files.health() if self._is_running(number) else None
            if said is None:
                missing.append(f"process {number}: not started")
                phases.append(Phase.STARTING.value)
                continue
            health, silent = said
            services |= dict.fromkeys(health.services)
            phases.append(health.phase)
            if health.link is not None:
                links.append(health.link)
            missing.extend(f"process {number}: {reason}" for reason in health.not_ready)
            if silent > READY_S:
                missing.append(f"process {number}: no sign of life for {silent:.0f} s")
        if self._is_stopping():
            missing.insert(0, f"process: {Phase.STOPPING.value}")
        return Health(
            ready=not missing,
            phase=min(phases, key=_PHASES.index),
            link=next((link for link in links if link != "connected"), next(iter(links), None)),
            services=list(services),
            not_ready=missing,
        )

    async def _metrics(self, headers: Mapping[str, str]) -> Answer:
        async with self._scraping:
            series = await asyncio.to_thread(self._read)
            return await metrics_answer(series, headers, self._files[1].users)

    def _read(self) -> list[Merged]:
        return merge(
            (self._is_running(number), read_cells(files.path))
            for number, files in self._files.items()
        )


_PHASES = [Phase.STOPPING.value, Phase.STOPPED.value, Phase.STARTING.value, Phase.RUNNING.value]
"""Which of several is that of all: the first of these that one of them is in."""
