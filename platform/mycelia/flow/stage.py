"""A stage of a flow in a service: its partitions are shared with the other instances, and each that is ours is run.

stage.py               whose a partition is, and what the stage has done
owned_partition.py     one that is ours: from its last commit, again and again
partition_pump.py      takes, computes, and says when to commit
group_commit.py        commits beside it, and publishes
failed_records.py      what cannot be taken
partition_run.py       the engine and its state; no clock, no broker
"""

from __future__ import annotations

import asyncio

from mycelia.flow.owned_partition import OwnedPartition
from mycelia.flow.partition_run import StageDescription
from mycelia.flow.partition_state import OpensState
from mycelia.flow.stage_host import StageCounts, StageHost, StageOptions
from mycelia.logs import Log
from mycelia.logs.lag_watch import LagWatch
from mycelia.logs.membership import Membership
from mycelia.logs.partition_lease import PartitionLease

__all__ = ["Stage"]


class Stage:
    """Runs the partitions of a stage that are this instance's own.

    Args:
        opens_state: opens the state of a partition.
    """

    def __init__(
        self,
        host: StageHost,
        description: StageDescription,
        options: StageOptions,
        opens_state: OpensState,
    ) -> None:
        self.description = description
        self.name = description.name
        self.counts = StageCounts()
        self.reads_first = description.reads[description.first]
        self._host = host
        self._options = options
        self._opens_state = opens_state
        self._membership: Membership | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._owned: dict[int, OwnedPartition] = {}
        self._lag: LagWatch | None = None

    # --- how it stands ---------------------------------------------------------------------------

    @property
    def standing_still(self) -> dict[int, str]:
        """Of the partitions that do not go on, why."""
        return {
            number: why
            for number, one in self._owned.items()
            if (why := one.standing_still) is not None
        }

    @property
    def watermarks(self) -> dict[int, dict[str, int]]:
        """By partition and step, as of the last commit."""
        return {number: one.watermarks for number, one in self._owned.items() if one.watermarks}

    @property
    def delivered(self) -> int:
        """Bodies that sinks have taken."""
        return self.counts.delivered + sum(one.delivered for one in self._owned.values())

    @property
    def waiting_bytes(self) -> int:
        """Of what sinks have not taken yet."""
        return sum(one.waiting_bytes for one in self._owned.values())

    @property
    def ahead_bytes(self) -> int:
        """Of what has been written for the stages behind, and they have not committed."""
        return sum(one.ahead_bytes for one in self._owned.values())

    @property
    def waiting(self) -> dict[int, str]:
        """Of the partitions that wait for stages behind, for which."""
        return {
            number: why for number, one in self._owned.items() if (why := one.waits_for) is not None
        }

    def ahead_of(self, partition: int) -> int | None:
        """`ahead_bytes` of one partition; None where no stage is behind this one."""
        if not self.description.gives:
            return None
        one = self._owned.get(partition)
        return 0 if one is None else one.ahead_bytes

    def offsets_of(self, partition: int) -> dict[str, int]:
        """How far one partition has come in what it reads, by source, as of the last commit, whoever made it."""
        one = self._owned.get(partition)
        return {} if one is None else one.offsets

    def sink_bytes_of(self, partition: int) -> int:
        """`waiting_bytes` of one partition."""
        one = self._owned.get(partition)
        return 0 if one is None else one.waiting_bytes

    @property
    def faults(self) -> int:
        return self.counts.faults

    @property
    def dead(self) -> int:
        return self.counts.dead

    @property
    def partitions(self) -> list[int]:
        """Those that are this instance's own now."""
        return [] if self._membership is None else self._membership.owned

    @property
    def stays_out(self) -> str | None:
        """Why it takes no partition, if it does not: another method, elsewhere, is this group."""
        return None if self._membership is None else self._membership.stays_out

    def lag(self) -> dict[int, int]:
        """Entries of `reads_first` that have not been committed, by partition; as far as it is known."""
        return {} if self._lag is None else self._lag.lag()

    def _offsets(self) -> dict[int, int]:
        return {number: one.offset for number, one in self._owned.items() if one.offset is not None}

    # --- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Share the partitions with the group's other instances from now on."""
        description = self.description
        self._membership = Membership(
            self._host.lease_link,
            description.leased_as,
            description.group,
            description.partitions,
            self._own,
            self._leave,
            self._host.called,
        )
        if isinstance(self.reads_first, Log):
            self._lag = LagWatch(self._host.link, self.reads_first.name, self._offsets)
        name = f"mycelia:flow:{description.leased_as}--{description.group}"
        self._tasks = [
            asyncio.create_task(self._membership.run(), name=name),
        ]
        if self._lag is not None:
            self._tasks.append(asyncio.create_task(self._lag.run(), name=f"{name}:lag"))

    async def aclose(self, timeout: float) -> None:
        """Commit what has been taken, and leave the partitions to others. Idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        membership, self._membership = self._membership, None
        if membership is not None:
            await membership.aclose(timeout)

    # --- its partitions --------------------------------------------------------------------------

    async def _own(self, partition: int, lease: PartitionLease) -> None:
        one = self._owned[partition] = OwnedPartition(
            self._host,
            self.description,
            self._options,
            self.counts,
            self._opens_state,
            partition,
            lease,
        )
        try:
            await one.run()
        finally:
            del self._owned[partition]

    def _leave(self, partition: int) -> None:
        one = self._owned.get(partition)
        if one is not None:
            one.leave()
