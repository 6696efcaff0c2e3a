"""The part of a process that counts its calls and answers probes and scrapes, where the configuration asks for it."""

from __future__ import annotations

import asyncio
import logging
import os
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec

from mycelia.call import Direction, Middleware, Target
from mycelia.entrypoints.statistics import ConsumerStatistics
from mycelia.errors import ConfigError, MyceliaError
from mycelia.extras import require_extra
from mycelia.log_event import event
from mycelia.providers.metrics.answers import Answering
from mycelia.providers.metrics.cells import Cells, CellsFull, Reading
from mycelia.providers.metrics.exposition import Merged, exposition, merge
from mycelia.providers.metrics.files import MULTIPROCESS_VARIABLE, MemberFiles, take_files
from mycelia.providers.metrics.health import Health, health_of
from mycelia.providers.metrics.measures import Measures
from mycelia.providers.metrics.server import Answer, Handler, ProbeServer
from mycelia.providers.metrics.told import consumer_labels, samples_of
from mycelia.runtime import RunningProcess
from mycelia.runtime.settings import MetricsSection, MyceliaSection

__all__ = ["Monitoring", "health_answer", "live_answer", "metrics_answer", "servers_of"]

log = logging.getLogger("mycelia.metrics")

BEAT = 0.25
"""Seconds between two timers that tell how late the loop is."""

SIGN_OF_LIFE_S = 1.0
"""Seconds between two signs of life, and between two looks at what a process tells of itself, where it is one of several."""

LOOP_DELAY = "mycelia_event_loop_delay_seconds"

MAX_QUEUES = 200
"""Queues whose messages are counted. Arbitrary: a bound for what is asked of the broker."""


class Monitoring:
    """Counts, and answers. Lives on the event loop of its process.

    Args:
        section: what is asked for.
        files: those of this process, if it is one of several: then the first process answers for it.

    Raises:
        ConfigError: `prometheus_client` is not installed, or its files cannot be made.
    """

    def __init__(self, section: MyceliaSection, files: MemberFiles | None) -> None:
        self._section = section
        self._files = files
        self._process: RunningProcess | None = None
        self._servers: list[ProbeServer] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._scraping = asyncio.Lock()
        self._counters: dict[tuple[str, tuple[str, ...]], tuple[int, float]] = {}
        """Cells of what is told, and what was in them before this process."""
        self.measures: Measures | None = None
        metrics = section.metrics
        if metrics is not None:
            require_extra("metrics", "mycelia.metrics")
            try:
                cells = Cells(None if files is None else files.path)
            except OSError as exc:
                raise ConfigError(f"mycelia.metrics: no place to count in: {exc}") from exc
            cells.forget_gauges()
            self.measures = Measures(cells, metrics.buckets)
            self._delays = cells.series(LOOP_DELAY, {}, "histogram", metrics.buckets)

    @classmethod
    def of(cls, section: MyceliaSection) -> Monitoring | None:
        """What `section` asks for; `None` where it asks for nothing."""
        if section.metrics is None and section.health is None:
            return None
        return cls(section, take_files())

    @property
    def ports(self) -> list[int]:
        """Where it listens."""
        return [server.port for server in self._servers]

    def middleware(self, direction: Direction, target: Target) -> Middleware | None:
        return None if self.measures is None else self.measures.middleware(direction, target)

    # --- life cycle ---------------------------------------------------------------------------

    async def start(self, process: RunningProcess) -> None:
        self._process = process
        loop = asyncio.get_running_loop()
        if self.measures is not None:
            self._due = loop.time() + BEAT
            self._timer = loop.call_at(self._due, self._beat)
            metrics = self._section.metrics
            assert metrics is not None
            if metrics.queue_depth_every > 0:
                looking = self._look_at_queues(metrics.queue_depth_every)
                self._tasks.append(asyncio.create_task(looking, name="mycelia:metrics:queues"))
        if self._files is not None:
            self._tell()
            self._tasks.append(
                asyncio.create_task(self._keep_telling(), name="mycelia:metrics:tell")
            )
            return
        self._servers = servers_of(self._section, self._live, self._ready, self._metrics)
        for server in self._servers:
            await server.start()

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._files is not None and self._process is not None:
            self._tell()
        for server in self._servers:
            await server.stop()
        if self.measures is not None:
            self.measures.cells.close()

    def _beat(self) -> None:
        assert self.measures is not None
        loop = asyncio.get_running_loop()
        now = loop.time()
        late = max(0.0, now - self._due)
        series, values = self._delays, self.measures.cells.values
        values[series.at + bisect_left(series.bounds, late)] += 1.0
        values[series.at + len(series.bounds) + 1] += late
        self._due = now + BEAT
        self._timer = loop.call_at(self._due, self._beat)

    async def started(self) -> None:
        metrics, process = self._section.metrics, self._process
        assert process is not None
        if self._files is not None:
            self._tell()
        if metrics is None or not metrics.answers_top:
            return
        if process.statistics().link_state is not None:  # without a broker nobody can ask
            answering = Answering(process.host.link, self.health, self.read)
            task = asyncio.create_task(answering.start(), name="mycelia:metrics:answer")
            self._tasks.append(task)

    async def _keep_telling(self) -> None:
        while True:
            await asyncio.sleep(SIGN_OF_LIFE_S)
            self._tell()

    def _tell(self) -> None:
        """Put all that the first process is to know into the files."""
        assert self._files is not None
        try:
            self.refresh()
            self._files.say(self.health())
        except OSError as exc:
            log.warning(event("metrics_files_unwritable", reason=exc))

    async def _look_at_queues(self, every: float) -> None:
        while True:
            await asyncio.sleep(every)
            for labels in self._queues():
                await self._count_messages(labels)

    def _queues(self) -> list[dict[str, str]]:
        """The labels of the queues that are consumed."""
        assert self._process is not None
        told = self._process.statistics()
        if told.link_state != "connected":
            return []
        found = [
            consumer_labels(name, extension, statistics)
            for name, service in told.services.items()
            for extension, statistics in service.extensions.items()
            if isinstance(statistics, ConsumerStatistics)
        ]
        return found[:MAX_QUEUES]

    async def _count_messages(self, labels: dict[str, str]) -> None:
        assert self._process is not None
        assert self.measures is not None
        try:
            count = await self._process.host.link.message_count(labels["queue"])
            cells = self.measures.cells
            at = cells.series("mycelia_queue_messages", labels, "max").at
        except (MyceliaError, CellsFull):
            return  # the queue is not there now; what was last seen stays
        cells.values[at] = float(count)

    # --- what it knows ------------------------------------------------------------------------

    def health(self) -> Health:
        """Whether this process is ready."""
        assert self._process is not None
        process = self._process
        return health_of(process.phase, process.service_names, process.statistics())

    def refresh(self) -> None:
        """Put into cells what the process tells of itself."""
        if self.measures is None or self._process is None:
            return
        cells = self.measures.cells
        values = cells.values
        totals: dict[int, float] = {}
        for sample in samples_of(self._process.statistics()):
            key = (sample.name, tuple(sample.labels.values()))
            cell = self._counters.get(key)
            if cell is None:
                try:
                    at = cells.series(sample.name, sample.labels, sample.kind).at
                except CellsFull:
                    continue
                before = values[at] if sample.kind == "counter" else 0.0
                cell = self._counters[key] = (at, before)
            at, before = cell
            totals[at] = totals.get(at, before) + sample.value  # two extensions may be one series
        for at, total in totals.items():
            values[at] = total

    def read(self) -> list[Reading]:
        """All that is counted, as it is now."""
        assert self.measures is not None
        self.refresh()
        return self.measures.cells.read()

    # --- what it answers ----------------------------------------------------------------------

    async def _live(self, headers: Mapping[str, str]) -> Answer:
        return live_answer([])

    async def _ready(self, headers: Mapping[str, str]) -> Answer:
        return health_answer(self.health())

    async def _metrics(self, headers: Mapping[str, str]) -> Answer:
        async with self._scraping:
            users = os.environ.get(MULTIPROCESS_VARIABLE)
            return await metrics_answer(
                merge([(True, self.read())]), headers, None if users is None else Path(users)
            )


def live_answer(stuck: Iterable[str]) -> Answer:
    """`/live`: the loop turns, or nobody would answer; of several processes, none is stuck."""
    names = list(stuck)
    status = HTTPStatus.SERVICE_UNAVAILABLE if names else HTTPStatus.OK
    return _json(status, {"live": not names, "not_live": names})


def health_answer(health: Health) -> Answer:
    """`/ready`."""
    return _json(HTTPStatus.OK if health.ready else HTTPStatus.SERVICE_UNAVAILABLE, health)


async def metrics_answer(
    series: list[Merged], headers: Mapping[str, str], users: Path | None
) -> Answer:
    """`/metrics`; written in a thread, because many series take their time."""
    accept = headers.get("accept", "")
    content_type, body = await asyncio.to_thread(exposition, series, accept, users)
    return Answer(HTTPStatus.OK.value, content_type, body)


def _json(status: HTTPStatus, content: Any) -> Answer:
    return Answer(status.value, "application/json", msgspec.json.encode(content) + b"\n")


def servers_of(
    section: MyceliaSection, live: Handler, ready: Handler, metrics: Handler
) -> list[ProbeServer]:
    """The servers that `section` asks for: one where both sections name one address."""
    probes = {"/live": live, "/ready": ready}
    asked: MetricsSection | None = section.metrics
    servers = []
    at: set[tuple[str, int]] = set()
    if asked is not None and asked.port is not None:
        at.add((asked.host, asked.port))
        handlers = {**probes, "/metrics": metrics}
        servers.append(ProbeServer(asked.host, asked.port, handlers, key="mycelia.metrics.port"))
    if section.health is not None and (section.health.host, section.health.port) not in at - {
        (section.health.host, 0)
    }:
        servers.append(
            ProbeServer(section.health.host, section.health.port, probes, key="mycelia.health.port")
        )
    return servers
