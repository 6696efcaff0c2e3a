"""What a process can say of itself, as one tree of records: host, link, services, their lanes, threads and extensions.

    HostStatistics
      link            LinkStatistics: published, confirmed, delivered, reconnects, ...
      services        by name: ServiceStatistics
        lanes           by target ("delays.worst"): LaneStatistics
        threads         ThreadStatistics; None where no `def` method has run
        extensions      by "Class:name" ("Timer:tick", "DeadLetters"): what `Extension.statistics()` gives

Each record is a snapshot: whoever wants rates takes two. Counts begin with the process (a link's with the link). All of it
becomes plain JSON with `msgspec.to_builtins()`. Nothing is collected for it: it reads what is counted anyway.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from mycelia.amqp import LinkStatistics
from mycelia.runtime.lane import LaneStatistics
from mycelia.runtime.threads import ThreadStatistics

__all__ = ["HostStatistics", "ServiceStatistics", "by_name"]

T = TypeVar("T")


class ServiceStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """One service of a process."""

    is_started: bool
    """Whether all of it has started, and it has not begun to stop."""
    max_workers: int | None
    """Workers at once over all of its methods; `None` for as many as the lanes allow."""
    active_workers: int
    lanes: dict[str, LaneStatistics]
    """By what their workers do, `service.method`; `service.*` is that of requests for methods that do not exist."""
    threads: ThreadStatistics | None
    extensions: dict[str, msgspec.Struct]
    """What extensions count, by class and by the name of their attribute or method."""


class HostStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """One process."""

    link_state: str | None
    """A value of `LinkState`; `None` where no service needs a broker, or none has been started."""
    link: LinkStatistics | None
    services: dict[str, ServiceStatistics]


def by_name(named: Iterable[tuple[str, T]]) -> dict[str, T]:
    """A dict of them all; the second of one name is called `name#2`."""
    found: dict[str, T] = {}
    for name, value in named:
        key, number = name, 1
        while key in found:
            number += 1
            key = f"{name}#{number}"
        found[key] = value
    return found
