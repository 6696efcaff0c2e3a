"""The groups that read a log, log handlers' and flows' alike: how far they have come in each of its partitions.

Log handlers say it in their group's progress stream. Flows say it when they are asked; and what nobody says stands in their state.
"""

from __future__ import annotations

import asyncio
from typing import Final, Literal, Protocol

import msgspec

from mycelia.amqp import Link, Queue
from mycelia.control.flows import FlowAsker
from mycelia.errors import RuntimeStateError, StateUnavailable, TopologyError
from mycelia.flow.partition_state import StatePlace
from mycelia.flow.standing import FlowFigures
from mycelia.flow.state_home import StateHome
from mycelia.logs.group_places import PROGRESS_SUFFIX, progress_stream, read_places
from mycelia.logs.layout import queue_exists
from mycelia.logs.partition_lease import consumers_of, group_queue_name, lease_queue

__all__ = ["GroupPartition", "LogGroup", "LogGroups", "offsets_of"]

_ASK_TIMEOUT: Final = 10.0


class GroupPartition(msgspec.Struct, frozen=True, kw_only=True):
    """How far a group has come in a partition."""

    at: int | None
    """The offset of the next entry; None: it has not begun, or nobody says."""
    owner: str | None = None
    """`host:pid`; None: nobody has it."""
    said_ms: int | None = None
    """When `at` was said, milliseconds since 1970; None where it is what the state says."""
    standing_still: str | None = None
    """Why it does not go on, as its owner says."""


class LogGroup(Protocol):
    """A group of one log, looked at as often as one likes.

    Attributes:
        name: the group's; of a flow, that of its state.
    """

    name: str

    @property
    def kind(self) -> Literal["handler", "flow"]: ...

    async def look(self) -> dict[int, GroupPartition]:
        """How far it is now, by partition; without those of which nothing is known.

        Raises:
            LinkError: the broker does not answer.
            StateUnavailable: it stands in a state that cannot be read.
        """


class HandlerGroup:
    """Of a log handler: by what its owners have said, running or not."""

    kind: Literal["handler", "flow"] = "handler"

    def __init__(self, link: Link, log: str, name: str) -> None:
        self._link = link
        self._log = log
        self.name = name

    async def look(self) -> dict[int, GroupPartition]:
        found: dict[int, GroupPartition] = {}
        for partition, place in (await read_places(self._link, self._log, self.name)).items():
            queue = lease_queue(self._log, self.name, partition).name
            is_owned = bool(place.owner) and await consumers_of(self._link, queue)
            found[partition] = GroupPartition(
                at=place.offset,
                owner=place.owner if is_owned else None,
                said_ms=place.at_ms,
                standing_still=place.standing_still if is_owned else None,
            )
        return found


class FlowGroup:
    """Of a flow: by what its instances answer; of partitions that nobody has, or has committed in, by its state.

    Where several of its stages read the log, the one that is furthest behind counts.
    """

    kind: Literal["handler", "flow"] = "flow"

    def __init__(self, asker: FlowAsker, home: StateHome, log: str, name: str) -> None:
        self._asker = asker
        self._home = home
        self._log = log
        self.name = name

    async def look(self) -> dict[int, GroupPartition]:
        await self._asker.ask()
        return await self.told(await self._asker.figures(self.name))

    async def told(self, figures: list[FlowFigures]) -> dict[int, GroupPartition]:
        """As `look()`, by answers that are there."""
        said: list[tuple[str, int, GroupPartition]] = []
        for one in figures:
            self.name = one.flow
            sources = {stage.name: stage for stage in one.stages}
            for it in one.partitions:
                stage = sources[it.stage]
                for source in stage.sources:
                    if source.log == self._log and it.partition < source.partitions:
                        place = GroupPartition(
                            at=it.offsets.get(source.name),
                            owner=it.owner,
                            said_ms=it.committed_ms,
                            standing_still=it.standing_still,
                        )
                        said.append((stage.leased_as, it.partition, place))
        kept: dict[tuple[str, int], int] = {}
        if not said or any(place.at is None for _, _, place in said):
            try:
                kept = await asyncio.to_thread(self.kept)
            except StateUnavailable:
                if not said:
                    raise
        if not figures:
            said += [(*place, GroupPartition(at=at)) for place, at in kept.items()]
        found: dict[int, GroupPartition] = {}
        for leased_as, partition, place in said:
            if place.at is None:
                at_last = kept.get((leased_as, partition))
                place = msgspec.structs.replace(place, at=at_last, said_ms=None)
            before = found.get(partition)
            if before is None or (place.at or 0) < (before.at or 0):
                found[partition] = place
        return found

    def kept(self) -> dict[tuple[str, int], int]:
        """Of the stages and partitions that have state here, where it goes on in the log. Blocks.

        Raises:
            StateUnavailable: it cannot be read.
        """
        found: dict[tuple[str, int], int] = {}
        for source, partition in self._home.kept(self.name):
            place = StatePlace(source, self.name, source, partition)
            checkpoint = self._home.checkpoint(place)
            for name, position in checkpoint.positions_of(source).items() if checkpoint else ():
                # The positions of logs between stages are by their steps' names.
                if self._log in (name, f"{self.name}.{name}"):
                    found[source, partition] = position.offset
        return found


class LogGroups:
    """Finds the groups of logs.

    Args:
        link: an open link.
        home: where the state of flows is that do not run.
    """

    def __init__(self, link: Link, home: StateHome) -> None:
        self._link = link
        self._home = home
        self._asker: FlowAsker | None = None

    async def find(self, log: str, group: str) -> LogGroup:
        """The group, whosever it is.

        Raises:
            RuntimeStateError: it is a flow's, of which nobody says anything here.
            TopologyError: there is none.
        """
        if await self._is_there(progress_stream(log, group)):
            return HandlerGroup(self._link, log, group)
        flow = FlowGroup(await self._asked(), self._home, log, group)
        if await flow.look():
            return flow
        if await self._is_there(lease_queue(log, group, 0)):
            raise RuntimeStateError(
                f'group "{group}" of log "{log}" is a flow\'s that does not run, and has no state in {self._home.where} that says how far it has come. '
                "Say where its state is: --config of its service, or --state."
            )
        raise TopologyError(
            f'log "{log}" has no group "{group}" here. It is `service.method`, or what @log_handler(group=…) or @flow(group=…) says.'
        )

    async def flows(self, log: str) -> list[tuple[LogGroup, dict[int, GroupPartition]]]:
        """The flows that run and read the log, with how far they are."""
        asker = await self._asked()
        await asker.ask()
        found: list[tuple[LogGroup, dict[int, GroupPartition]]] = []
        for one in await asker.figures():
            if any(source.log == log for stage in one.stages for source in stage.sources):
                group = FlowGroup(asker, self._home, log, one.flow)
                found.append((group, await group.told([one])))
        return found

    async def handlers(
        self, log: str, queues: list[str]
    ) -> list[tuple[LogGroup, dict[int, GroupPartition]]]:
        """The log handlers' groups, with how far they are.

        Args:
            queues: the names of all queues at the broker.
        """
        begin, end = group_queue_name(log, ""), PROGRESS_SUFFIX
        found: list[tuple[LogGroup, dict[int, GroupPartition]]] = []
        for name in sorted(queues):
            if name.startswith(begin) and name.endswith(end):
                group = HandlerGroup(self._link, log, name[len(begin) : -len(end)])
                found.append((group, await group.look()))
        return found

    async def _asked(self) -> FlowAsker:
        if self._asker is None:
            asker = FlowAsker(self._link)
            await asker.start(_ASK_TIMEOUT)
            self._asker = asker
        return self._asker

    async def _is_there(self, queue: Queue) -> bool:
        return await queue_exists(self._link, queue.name, _ASK_TIMEOUT)


def offsets_of(places: dict[int, GroupPartition]) -> dict[int, int]:
    """The offsets that are known."""
    return {partition: one.at for partition, one in places.items() if one.at is not None}
