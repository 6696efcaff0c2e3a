"""How a flow stands: what an instance of it answers when it is asked, and what the answers of all say together. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

import msgspec

from mycelia.flow.flow_graph import FlowGraph, NodeNote

__all__ = [
    "FlowFigures",
    "FlowStanding",
    "PartitionFigures",
    "PartitionStanding",
    "StageSource",
    "StageStanding",
    "flow_figures",
    "flow_notes",
    "moment_text",
    "rate_text",
]


class PartitionStanding(msgspec.Struct, frozen=True, kw_only=True):
    """One partition of a stage, as its owner says. Counted since the owner took it over."""

    stage: str
    partition: int
    owner: str = ""
    """`host:pid`."""
    standing_still: str | None = None
    """Why it does not go on."""
    offsets: dict[str, int] = {}
    """By source, of the next entry that it takes, as of the last commit."""
    watermarks_ms: dict[str, int] = {}
    """By step."""
    counts: dict[str, dict[str, int]] = {}
    """By step, what it counted: `late`, `repeated`, …"""
    gave: dict[str, list[int]] = {}
    """By step, how many records have left it, by port."""
    records: int = 0
    """Taken, and committed."""
    published: int = 0
    """Messages."""
    commits: int = 0
    committed_ms: int | None = None
    """When the last commit was, milliseconds since 1970."""
    commit_s: float | None = None
    """How long its first record waited until its results had been published."""
    state_bytes: int | None = None
    """Of the place where its state is; `None` where it cannot be said."""
    waits_for: str | None = None
    """The next stage, if it waits for that to take what it has written."""
    ahead_bytes: int | None = None
    """Of what it has written for the next stages, and they have not taken; `None` where there are none."""
    sink_bytes: int = 0
    """Of what its sinks have not taken yet."""


class StageSource(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage reads."""

    name: str
    """As the flow calls it: that of its log, or of the `key_by()` after which records were split anew."""
    log: str
    partitions: int


class StageStanding(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a flow whose partitions are shared for themselves."""

    name: str
    partitions: int
    leased_as: str
    """The log whose name is in those of its leases."""
    sources: list[StageSource]


class FlowStanding(msgspec.Struct, frozen=True, kw_only=True):
    """What one instance answers."""

    id: str
    """Of this instance; another one after a restart."""
    flow: str
    """Its group: what its state is called by."""
    service: str
    method: str
    owner: str
    """`host:pid`."""
    delivered: int = 0
    """Bodies that sinks have taken; in this process."""
    at: float
    """Of its own clock, seconds: two answers tell how long lay between them."""
    stages: list[StageStanding]
    partitions: list[PartitionStanding]
    graph: FlowGraph
    faults: int = 0
    """What could not be read, and is dead letters; in this process."""
    dead: int = 0
    """Records that it went on without, as dead letters; in this process."""


class PartitionFigures(msgspec.Struct, frozen=True, kw_only=True):
    """A partition as of now. One that nobody has is there too."""

    stage: str
    partition: int
    owner: str | None
    lags: dict[str, int]
    """By source: entries that are still to be taken. Without those of which it cannot be said."""
    records_per_s: float | None
    """`None` where there is one answer alone."""
    watermark_ms: int | None
    """The lowest of its steps'."""
    late: int
    offsets: dict[str, int]
    committed_ms: int | None
    commit_s: float | None
    state_bytes: int | None
    standing_still: str | None
    waits_for: str | None = None
    ahead_bytes: int | None = None
    sink_bytes: int = 0

    @property
    def lag(self) -> int | None:
        """Of all sources."""
        return sum(self.lags.values()) if self.lags else None


class FlowFigures(msgspec.Struct, frozen=True, kw_only=True):
    """A flow, over all that answered."""

    flow: str
    service: str
    method: str
    instances: list[str]
    stages: list[StageStanding]
    partitions: list[PartitionFigures]
    graph: FlowGraph
    watermarks_ms: dict[str, int]
    """Of each step the lowest of its partitions'."""
    counts: dict[str, dict[str, int]]
    gave_per_s: dict[str, list[float]]
    """Of each step, by port; empty where there is one answer alone."""
    records_per_s: float | None
    lag: int | None
    late: int
    faults: int
    dead: int
    delivered: int = 0
    """Bodies that sinks have taken."""

    @property
    def standing_still(self) -> list[PartitionFigures]:
        return [one for one in self.partitions if one.standing_still is not None]

    @property
    def without_owner(self) -> list[PartitionFigures]:
        return [one for one in self.partitions if one.owner is None]


def flow_figures(
    now: Iterable[FlowStanding],
    before: Mapping[str, FlowStanding],
    ends: Mapping[tuple[str, int], int] | None = None,
) -> list[FlowFigures]:
    """The figures of all flows, by name.

    Args:
        now: an answer of each instance that gave one.
        before: its answer before, by its id.
        ends: of logs and their partitions, the offset that their next entry gets.
    """
    by_flow: dict[tuple[str, str, str], list[FlowStanding]] = {}
    for one in now:
        by_flow.setdefault((one.flow, one.service, one.method), []).append(one)
    return [_figures(by_flow[key], before, ends or {}) for key in sorted(by_flow)]


def _figures(
    answers: list[FlowStanding],
    before: Mapping[str, FlowStanding],
    ends: Mapping[tuple[str, int], int],
) -> FlowFigures:
    newest = max(answers, key=lambda one: (one.at, one.id))
    sources = {stage.name: stage.sources for stage in newest.stages}
    found: dict[tuple[str, int], PartitionFigures] = {}
    rates: list[float] = []
    gave: dict[str, list[float]] = {}
    for answer in answers:
        earlier = before.get(answer.id)
        lasted = 0.0 if earlier is None else answer.at - earlier.at
        old = {} if earlier is None else {(p.stage, p.partition): p for p in earlier.partitions}
        for one in answer.partitions:
            place = one.stage, one.partition
            rate = None
            if lasted > 0:
                taken = one.records - (old[place].records if place in old else 0)
                # Another owner, or the same after a fault, counts from 0.
                rate = max(taken, 0) / lasted
                rates.append(rate)
                _add_rates(gave, one.gave, old[place].gave if place in old else {}, lasted)
            kept = found.get(place)
            if kept is not None and (kept.committed_ms or 0) > (one.committed_ms or 0):
                continue  # it is moving, and both have it
            lags = _lags(one, sources.get(one.stage, []), ends)
            found[place] = _with_owner(one, answer.owner, lags, rate)
    partitions = [
        found.get((stage.name, number)) or _without_owner(stage.name, number)
        for stage in newest.stages
        for number in range(stage.partitions)
    ]
    lags_known = [one.lag for one in partitions if one.lag is not None]
    watermarks, counts = _steps(answers)
    return FlowFigures(
        flow=newest.flow,
        service=newest.service,
        method=newest.method,
        instances=sorted({one.owner for one in answers}),
        stages=newest.stages,
        partitions=partitions,
        graph=newest.graph,
        watermarks_ms=watermarks,
        counts=counts,
        gave_per_s={step: [round(one, 2) for one in its] for step, its in gave.items()},
        records_per_s=round(sum(rates), 2) if rates else None,
        lag=sum(lags_known) if lags_known else None,
        late=_late(counts),
        faults=sum(one.faults for one in answers),
        dead=sum(one.dead for one in answers),
        delivered=sum(one.delivered for one in answers),
    )


def _steps(answers: list[FlowStanding]) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """By step, over all partitions: the lowest watermark, and the sums of what was counted."""
    watermarks: dict[str, int] = {}
    counts: dict[str, dict[str, int]] = {}
    for one in (partition for answer in answers for partition in answer.partitions):
        for step, watermark in one.watermarks_ms.items():
            watermarks[step] = min(watermarks.get(step, watermark), watermark)
        for step, counted in one.counts.items():
            sums = counts.setdefault(step, {})
            for what, number in counted.items():
                sums[what] = sums.get(what, 0) + number
    return watermarks, counts


def _add_rates(
    rates: dict[str, list[float]],
    now: Mapping[str, list[int]],
    before: Mapping[str, list[int]],
    lasted: float,
) -> None:
    for step, counts in now.items():
        old = before.get(step, [])
        its = rates.setdefault(step, [])
        its += [0.0] * (len(counts) - len(its))
        for port, count in enumerate(counts):
            since = count - old[port] if port < len(old) else count
            its[port] += (since if since >= 0 else count) / lasted


def _with_owner(
    one: PartitionStanding, instance: str, lags: dict[str, int], rate: float | None
) -> PartitionFigures:
    return PartitionFigures(
        stage=one.stage,
        partition=one.partition,
        owner=one.owner or instance,
        lags=lags,
        records_per_s=None if rate is None else round(rate, 2),
        watermark_ms=min(one.watermarks_ms.values(), default=None),
        late=_late(one.counts),
        offsets=one.offsets,
        committed_ms=one.committed_ms,
        commit_s=one.commit_s,
        state_bytes=one.state_bytes,
        standing_still=one.standing_still,
        waits_for=one.waits_for,
        ahead_bytes=one.ahead_bytes,
        sink_bytes=one.sink_bytes,
    )


def _without_owner(stage: str, partition: int) -> PartitionFigures:
    return PartitionFigures(
        stage=stage,
        partition=partition,
        owner=None,
        lags={},
        records_per_s=None,
        watermark_ms=None,
        late=0,
        offsets={},
        committed_ms=None,
        commit_s=None,
        state_bytes=None,
        standing_still=None,
    )


def _late(counts: Mapping[str, Mapping[str, int]]) -> int:
    return sum(counted.get("late", 0) for counted in counts.values())


def _lags(
    one: PartitionStanding, sources: Iterable[StageSource], ends: Mapping[tuple[str, int], int]
) -> dict[str, int]:
    return {
        source.name: max(ends[source.log, one.partition] - one.offsets.get(source.name, 0), 0)
        for source in sources
        if (source.log, one.partition) in ends
    }


# --- for a drawing -----------------------------------------------------------------------------------


def flow_notes(
    figures: FlowFigures, now_ms: int
) -> tuple[dict[str, NodeNote], dict[tuple[str, int], str]]:
    """What is written at the nodes of a flow's graph, and at its lines; see `graph_svg()`.

    Args:
        now_ms: the time on the wall, milliseconds since 1970.
    """
    notes: dict[str, NodeNote] = {}
    flows: dict[tuple[str, int], str] = {}
    read_by: dict[str, set[str]] = {}
    for stage in figures.stages:
        for source in stage.sources:
            read_by.setdefault(source.name, set()).add(stage.name)
    still = figures.standing_still
    for node in figures.graph.nodes:
        lines: list[str] = []
        own = [one for one in figures.partitions if one.stage in read_by.get(node.id, ())]
        stopped = own if node.kind == "source" else []
        stopped = [one for one in stopped if one.standing_still is not None]
        stopped += [one for one in still if _names(one, node.id) and one not in stopped]
        for port, per_s in enumerate(figures.gave_per_s.get(node.id, ())):
            flows[node.id, port] = rate_text(per_s)
        lags = [one.lags[node.id] for one in own if node.id in one.lags]
        if lags:
            lines.append(f"lag {sum(lags)}")
        if node.id in figures.watermarks_ms and node.kind != "source":
            behind = (now_ms - figures.watermarks_ms[node.id]) / 1000
            lines.append(f"watermark {behind_text(behind)}")
        if stopped:
            lines.append(f"standing still: {len(stopped)} of {len(figures.partitions)}")
        is_bad = bool(stopped)
        told = [f"partition {one.partition}: {one.standing_still}" for one in stopped]
        counted = figures.counts.get(node.id, {})
        lines += [f"{what} {number}" for what, number in counted.items() if number]
        if lines or is_bad:
            notes[node.id] = NodeNote(lines=lines, is_bad=is_bad, tooltip="\n".join(told))
    return notes, flows


def _names(one: PartitionFigures, step: str) -> bool:
    """Whether what stops a partition is of this step; errors name theirs so."""
    why = one.standing_still or ""
    # Steps without state are told with what they do: they run as one.
    return f'operator "{step}"' in why or f'operator "{step}: ' in why


def rate_text(per_s: float) -> str:
    """`3.2/s`, `12k/s`."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if per_s >= size:
            return f"{per_s / size:.3g}{unit}/s"
    return f"{per_s:.3g}/s"


def behind_text(seconds: float) -> str:
    """How far a moment lies back: `12 s behind`, `3 h behind`; or `2 min ahead`."""
    where = "ahead" if seconds < 0 else "behind"
    length = abs(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if length >= 2 * size:
            return f"{length / size:.0f} {unit} {where}"
    return f"{length:.0f} s {where}"


def moment_text(time_ms: int) -> str:
    """A moment, to the second: `2026-11-26T12:00:00Z`."""
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")[:19] + "Z"
    except (ValueError, OverflowError, OSError):
        return f"{time_ms} ms"
