"""What a flow tells of itself in its process: for metrics, `/ready`, and tests."""

from __future__ import annotations

import time
from collections.abc import Iterator

from mycelia.flow.stage import Stage
from mycelia.logs.log_handler import GroupStatistics
from mycelia.providers.metrics.told import Sample

__all__ = ["FlowStatistics", "StageStatistics", "statistics_of"]


class StageStatistics(GroupStatistics, frozen=True, kw_only=True):
    """What a stage of a flow has done in this process, and what it has now. `records` are committed; `dead` are those that it went on without: a
    function raised over them, or they have no key, or an impossible time. `log` is the first that it reads; `lag` is that of this log."""

    standing_still: dict[int, str]
    """Why partitions do not go on, by partition."""
    commits: int
    published: int
    """Messages: batches of logs, and events."""
    delivered: int
    """Bodies that sinks have taken."""
    waiting_bytes: int
    """Bodies that sinks have not taken yet. At 8 MiB a partition takes no further record."""
    watermarks_ms: dict[int, dict[str, int]]
    """By partition and step, as of the last commit."""
    ahead_bytes: int
    """Written for the stages behind, and not committed by them yet. At `ahead_bytes` of the configuration a partition waits."""
    waiting: dict[int, str]
    """For which stage behind it each partition waits that does."""


class FlowStatistics(StageStatistics, frozen=True, kw_only=True):
    """What a flow has done in this process, and what it has now. Partitions, records, lag and watermarks are of its first stage, the rest of all."""

    stages: dict[str, StageStatistics]
    """By name, those that feed others first."""
    counted: dict[str, dict[str, int]]
    """By step, what it has counted in this process: late records, repeated ones."""
    state_bytes: dict[str, dict[int, int]]
    """By stage and partition, what its state takes, where that can be said."""

    def samples(self, service: str, method: str) -> Iterator[Sample]:
        """As `TellsSamples`."""
        now_ms = time.time() * 1000
        of_flow = {"service": service, "method": method, "group": self.group}
        for name, stage in self.stages.items():
            labels = {**of_flow, "stage": name}
            for what in ("records", "commits", "published", "delivered"):
                value = float(getattr(stage, what))
                yield Sample(f"mycelia_flow_{what}", "counter", labels, value)
            still = float(len(stage.standing_still))
            yield Sample("mycelia_flow_standing_still", "sum", labels, still)
            waiting = float(stage.waiting_bytes)
            yield Sample("mycelia_flow_sink_waiting_bytes", "sum", labels, waiting)
            ahead = float(stage.ahead_bytes)
            yield Sample("mycelia_flow_ahead_bytes", "sum", labels, ahead)
            held = float(len(stage.waiting))
            yield Sample("mycelia_flow_waiting_for_next", "sum", labels, held)
            marks = [mark for its in stage.watermarks_ms.values() for mark in its.values()]
            if marks:
                behind = max((now_ms - min(marks)) / 1000, 0.0)
                yield Sample("mycelia_flow_watermark_behind_seconds", "max", labels, behind)
        for step, counted in self.counted.items():
            for what, number in counted.items():
                labels = {**of_flow, "step": step, "what": what}
                yield Sample("mycelia_flow_counted_records", "counter", labels, float(number))
        for name, sizes in self.state_bytes.items():
            for partition, size in sizes.items():
                labels = {"group": self.group, "stage": name, "partition": str(partition)}
                yield Sample("mycelia_flow_state_bytes", "max", labels, float(size))

    def troubles(self) -> list[str]:
        """As `TellsTroubles`: partitions that stand still, and a group that is another's."""
        out = [
            f"flow {self.group}: {one.stays_out}" for one in self.stages.values() if one.stays_out
        ]
        return out + [
            f"flow {self.group}: partition {partition} of {name} stands still: {why:.200}"
            for name, stage in self.stages.items()
            for partition, why in stage.standing_still.items()
        ]


def statistics_of(stage: Stage) -> StageStatistics:
    """Of one stage, as it is now."""
    return StageStatistics(
        log=stage.reads_first.name,
        group=stage.description.group,
        lag=stage.lag(),
        partitions=stage.partitions,
        standing_still=stage.standing_still,
        records=stage.counts.records,
        commits=stage.counts.commits,
        published=stage.counts.published,
        delivered=stage.delivered,
        waiting_bytes=stage.waiting_bytes,
        ahead_bytes=stage.ahead_bytes,
        waiting=stage.waiting,
        stays_out=stage.stays_out,
        faults=stage.faults,
        dead=stage.dead,
        watermarks_ms=stage.watermarks,
    )
