"""Parts of a process beside its services, which the configuration asks for: metrics, probes, traces.

Whoever has one registers a function that looks at the settings and makes it, or makes nothing. So a floor above the runtime
adds to every process that runs services, whoever started it, and what nobody has asked for is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Protocol

from mycelia.call import Direction, Middleware, Target
from mycelia.runtime.settings import Settings
from mycelia.runtime.statistics import HostStatistics

__all__ = ["Phase", "ProcessPart", "RunningProcess", "parts_for", "register_process_part"]


class Phase(Enum):
    """How far a process has come with its services."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"


class RunningProcess(Protocol):
    """What a part may ask of the process. `Runner` is one."""

    @property
    def phase(self) -> Phase: ...

    @property
    def service_names(self) -> list[str]: ...

    @property
    def host(self) -> Any:
        """What the services share: `Host`."""
        ...

    def statistics(self) -> HostStatistics: ...


class ProcessPart(Protocol):
    """A part of a process, in the order of its life: asked for middleware, started before the link, stopped after it."""

    def middleware(self, direction: Direction, target: Target) -> Middleware | None:
        """What to put around calls of `target`, outside all others; as `Extension.middleware()`."""
        ...

    async def start(self, process: RunningProcess) -> None:
        """Begin. What it raises stops the start of the process."""
        ...

    async def started(self) -> None:
        """All services have started. Must not raise, nor wait for long."""
        ...

    async def stop(self) -> None:
        """End; the services have stopped and the link is closed. Also called where `start()` has raised. Must not raise."""
        ...


Maker = Callable[[Settings, Mapping[str, Any]], ProcessPart | None]

_makers: list[Maker] = []


def register_process_part(maker: Maker) -> None:
    """Have `maker(settings, config)` asked for a part of each process that runs services; `None` for nothing."""
    if maker not in _makers:
        _makers.append(maker)


def parts_for(settings: Settings, config: Mapping[str, Any]) -> list[ProcessPart]:
    """The parts that these settings ask for, in the order in which they were registered."""
    made = (maker(settings, config) for maker in _makers)
    return [part for part in made if part is not None]
