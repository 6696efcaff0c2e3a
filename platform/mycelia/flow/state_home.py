"""Where the states of flows are kept: files of SQLite in a directory, with a changelog at the broker or without, or a PostgreSQL by its URL.

Chosen by `mycelia.flows.state` and `mycelia.flows.changelog`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol

from mycelia.amqp import Link
from mycelia.flow.logged_home import LoggedHome
from mycelia.flow.partition_state import PartitionState, StatePlace
from mycelia.flow.state import StoreReader
from mycelia.flow.state_directory import StateDirectory
from mycelia.flow.state_file import FlowCheckpoint
from mycelia.nearest import nearest
from mycelia.runtime.settings import FlowsSection

__all__ = ["StateHome", "is_database", "logged_state_home", "meant_flow", "state_home"]


_NAMED: Final = 10


class StateHome(Protocol):
    """Keeps the states of all partitions of flows. Calls block; they are made in threads, several at a time.

    Attributes:
        where: the place, for people. Without passwords.
        is_shared: whether several machines may use it.
    """

    where: str
    is_shared: bool

    def prepare(self, what: str, group: str, sources: Sequence[str]) -> None:
        """Make it, and try it.

        Args:
            what: who asks: `service.method`.
            group: the flow.
            sources: what its stages are leased by, of all of them.

        Raises:
            ConfigError: it cannot be used; or there is state of a stage that the flow does not have any more.
            StateUnavailable: it does not answer now, which may pass.
        """

    def open(self, place: StatePlace) -> PartitionState:
        """
        Raises:
            StateUnavailable, StateIncompatible: see `StateFile`.
        """

    def reading(self, place: StatePlace) -> AbstractContextManager[StoreReader]:
        """The state of a partition as of its last commit, read beside its owner; empty where there is none."""

    def checkpoint(self, place: StatePlace) -> FlowCheckpoint | None:
        """That of a partition's last commit, read beside its owner; None where there is none.

        Raises:
            StateUnavailable: it cannot be read.
        """

    def flows(self) -> list[str]:
        """The groups of all flows that have been run with it."""

    def kept(self, group: str) -> list[tuple[str, int]]:
        """The partitions of a flow that have state: what their stage is leased by, and their number."""

    def copy(self, place: StatePlace, to: Path) -> None:
        """Copy a partition's state as of its last commit into a file that is not there yet, as `StateFile` keeps it."""

    def size_bytes(self, place: StatePlace) -> int | None:
        """How large a partition's state is, where that can be said at once. The only one of these that may be called on an event loop."""

    def close(self) -> None:
        """Idempotent."""


def meant_flow(home: StateHome, group: str) -> str:
    """For the error that a flow has no state: which has, and may have been meant. Begins with a space, if there is something to say.

    Raises:
        StateUnavailable: it cannot be read.
    """
    known = [one for one in home.flows() if one != group]
    meant = nearest(group, known)
    if meant is not None:
        return f' Did you mean "{meant}"?'
    return f" There is that of: {', '.join(known[:_NAMED])}." if known else ""


def is_database(state: str) -> bool:
    """Whether the setting `mycelia.flows.state` is a URL."""
    return state.startswith(("postgresql://", "postgres://"))


def state_home(state: str) -> StateHome:
    """The place that the setting `mycelia.flows.state` names. Opens nothing.

    Raises:
        ConfigError: it is a URL that cannot be read, or what it needs is not installed.
    """
    if is_database(state):
        from mycelia.flow.state_database import StateDatabase  # psycopg, which not everybody has

        return StateDatabase(state)
    return StateDirectory(state)


def logged_state_home(section: FlowsSection, link: Link) -> StateHome:
    """The place that the section `mycelia: flows:` names, with changelogs if it says so. Called on the link's event loop; opens nothing.

    Raises:
        ConfigError: see `state_home()`.
    """
    if section.changelog:
        return LoggedHome(StateDirectory(section.state), link, section.changelog_bytes)
    return state_home(section.state)
