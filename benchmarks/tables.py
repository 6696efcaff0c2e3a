"""A run, printed: ratios and targets first, then the figures they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.registry import PEERS
from benchmarks.rounds import Answers
from benchmarks.samples import Sample, Spread, spread
from benchmarks.targets import Target, Verdict, judge, judge_all

OURS = ("mycelia-async", "mycelia-def")


@dataclass(frozen=True, slots=True)
class Column:
    """A metric as a column: its heading, and digits after the point."""

    metric: str
    heading: str
    digits: int


COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "rpc": (
        Column("rate_per_s", "RPC/s", 0),
        Column("p50_ms", "p50 ms", 2),
        Column("p99_ms", "p99 ms", 2),
        Column("p999_ms", "p99.9 ms", 2),
        Column("server_cpu_us", "server CPU us/RPC", 0),
        Column("client_cpu_us", "client CPU us/RPC", 0),
    ),
    "events": (
        Column("rate_per_s", "handled/s", 0),
        Column("publish_rate_per_s", "confirmed/s", 0),
        Column("handler_cpu_us", "handler CPU us/event", 0),
    ),
    "startup": (
        Column("first_answer_s", "first answer s", 2),
        Column("idle_rss_mb", "idle RSS MB", 1),
        Column("loaded_rss_mb", "loaded RSS MB", 1),
        Column("loaded_peak_mb", "peak RSS MB", 1),
    ),
}


def targets_table(samples: Sequence[Sample], cases: Sequence[str]) -> str:
    """Each target with what was reached."""
    rows = [["target", "case", "metric", "bound", "median (min-max)", ""]]
    for verdict in judge_all(samples, cases):
        target = verdict.target
        against = f" / {' or '.join(target.theirs)}" if target.theirs else ""
        rows.append(
            [
                target.ours + against,
                target.case,
                target.metric,
                target.bound,
                _shown(verdict.reached, 2),
                _word(verdict),
            ]
        )
    return _aligned(rows)


def ratios_table(answers: Answers, case: str) -> str:
    """How many times each peer's rate ours is."""
    rows = [["", *(f"{ours} is" for ours in OURS)]]
    for peer in _measured(answers.samples, case):
        row = [f"x {peer}"]
        for ours in OURS:
            ratio = Target(case=case, metric="rate_per_s", ours=ours, theirs=(peer,), at_least=1.0)
            row.append("" if peer == ours else _shown(judge(ratio, answers.samples).reached, 2))
        rows.append(row)
    return _aligned(rows)


def figures_table(answers: Answers, question: str, case: str) -> str:
    """The figures of a case, a row for each peer; those that brought none are said."""
    columns = COLUMNS[question]
    rows = [[case, *(column.heading for column in columns)]]
    rows += [
        [
            peer,
            *(
                _shown(spread(answers.samples, peer, case, column.metric), column.digits)
                for column in columns
            ),
        ]
        for peer in _measured(answers.samples, case)
    ]
    return _aligned(rows)


def absences(answers: Answers) -> list[str]:
    """A line for each peer that was not run, or failed."""
    return [f"{peer}: NOT RUN ({reason})" for peer, reason in answers.not_run.items()] + [
        f"{peer}: FAILED {reason}" for peer, reason in answers.failed.items()
    ]


def _measured(samples: Sequence[Sample], case: str) -> list[str]:
    seen = {sample.peer for sample in samples if sample.case == case}
    return [peer for peer in PEERS if peer in seen]


def _word(verdict: Verdict) -> str:
    return {True: "met", False: "MISSED", None: "NOT RUN"}[verdict.met]


def _shown(value: Spread | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value.median:,.{digits}f} ({value.low:,.{digits}f}-{value.high:,.{digits}f})"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
