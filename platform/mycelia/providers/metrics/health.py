"""Whether a process is ready, and what of it is not. Pure: from what it tells of itself."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import msgspec

from mycelia.amqp import LinkState
from mycelia.entrypoints.statistics import ConsumerStatistics
from mycelia.runtime import HostStatistics, Phase

__all__ = ["Health", "TellsTroubles", "health_of"]

_MAX_TROUBLES = 10
"""Of one extension: a broken flow has one for each partition, and they say the same."""


@runtime_checkable
class TellsTroubles(Protocol):
    """A record that an extension tells of itself, which knows what of it does not go on."""

    def troubles(self) -> list[str]:
        """What it is, each beginning with its name; empty if all goes on."""


_UP = (LinkState.CONNECTED.value, LinkState.BLOCKED.value)
"""A broker that takes no publishings for now is the same for every instance: taking this one out of service helps nobody."""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """What `/ready` answers with."""

    ready: bool
    phase: str
    link: str | None
    """The state of the broker link; `None` where no service needs one, or none has been opened yet."""
    services: list[str]
    not_ready: list[str]
    """What is not, in words, each beginning with its name; empty if all is."""


def health_of(phase: Phase, names: list[str], told: HostStatistics) -> Health:
    """A process is ready when its services have started and not begun to stop, its link is up, its consumers are attached, and its flows go on.

    A consumer that was paused on purpose counts as attached.
    """
    missing: list[str] = []
    if phase is Phase.STARTING:
        waiting = [name for name in names if not _is_started(told, name)]
        missing.append(
            f"start: not finished; waiting for {', '.join(waiting)}"
            if waiting
            else "start: not finished"
        )
    elif phase is not Phase.RUNNING:
        missing.append(f"process: {phase.value}")
    if told.link_state is not None and told.link_state not in _UP:
        missing.append(f"link: {told.link_state}")
    if phase is Phase.RUNNING:
        missing.extend(
            f"service {name}: not started" for name in names if not _is_started(told, name)
        )
        for name, service in told.services.items():
            missing.extend(
                f"consumer of {extension.queue}: not attached (service {name})"
                for extension in service.extensions.values()
                if isinstance(extension, ConsumerStatistics)
                and not extension.is_consuming
                and not extension.is_paused
            )
            for extension in service.extensions.values():
                if isinstance(extension, TellsTroubles):
                    missing.extend(extension.troubles()[:_MAX_TROUBLES])
    return Health(
        ready=not missing,
        phase=phase.value,
        link=told.link_state,
        services=names,
        not_ready=missing,
    )


def _is_started(told: HostStatistics, name: str) -> bool:
    service = told.services.get(name)
    return service is not None and service.is_started
