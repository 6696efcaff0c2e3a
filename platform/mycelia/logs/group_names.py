"""One group of a log has one method: two of them would each have some of its partitions, and neither all of its records."""

from __future__ import annotations

from typing import Final
from weakref import WeakKeyDictionary

from mycelia.errors import ConfigError
from mycelia.runtime import Host

__all__ = ["claim_group"]

_METHODS: Final[WeakKeyDictionary[Host, dict[tuple[str, str], str]]] = WeakKeyDictionary()
"""Of each process's services, which method is a group of a log."""


def claim_group(host: Host, log: str, group: str, method: str) -> None:
    """
    Raises:
        ConfigError: another method of the services that run here is the same group.
    """
    claimed = _METHODS.setdefault(host, {}).setdefault((log, group), method)
    if claimed != method:
        raise ConfigError(
            f'{claimed} and {method} are both the group "{group}" of log "{log}", so that each would have a part of its partitions. Give one of '
            "them another group=, or none."
        )
