"""Metrics and probes. Nothing of it is imported into a process that asks for none of it, but this file and `provider`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mycelia.providers.metrics.provider import MetricFactory, Metrics
from mycelia.runtime import ProcessPart, Settings, register_process_part

if TYPE_CHECKING:
    from mycelia.providers.metrics.together import MonitoredTogether

__all__ = ["MetricFactory", "Metrics", "join_measured", "measured_together"]


def _monitoring(settings: Settings, config: Mapping[str, Any]) -> ProcessPart | None:
    if settings.mycelia.metrics is None and settings.mycelia.health is None:
        return None
    from mycelia.providers.metrics.monitoring import Monitoring

    return Monitoring.of(settings.mycelia)


register_process_part(_monitoring)


def measured_together(config: Mapping[str, Any], count: int) -> MonitoredTogether | None:
    """What answers for `count` processes of one command; `None` where the configuration asks for nothing.

    Raises:
        ConfigError: the configuration is wrong, `prometheus_client` is missing, or there is no place for the files.
    """
    section = config.get("mycelia")
    if not isinstance(section, Mapping) or not (
        section.get("metrics") is not None or section.get("health")
    ):
        return None
    from mycelia.providers.metrics.together import MonitoredTogether

    return MonitoredTogether.of(config, count)


def join_measured(number: int) -> None:
    """Have this process, number `number` of several, count where its predecessor of that number did. Before services are imported.

    `prometheus_client` names its files by process id: one that is started again and again would leave files without end.
    """
    from mycelia.providers.metrics.files import FILES_VARIABLE, MULTIPROCESS_VARIABLE

    if FILES_VARIABLE not in os.environ or MULTIPROCESS_VARIABLE not in os.environ:
        return
    try:
        from prometheus_client import values
    except ImportError:
        return  # its absence is said where it is needed
    own = os.getpid()
    # A child of this process is another one, and keeps files of its own.
    values.ValueClass = values.MultiProcessValue(  # type: ignore[no-untyped-call]
        lambda: number if os.getpid() == own else os.getpid()
    )
