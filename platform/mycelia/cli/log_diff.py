"""`mycelia log diff`: whether two logs say the same, for a new version of code that is run beside the old."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from mycelia.amqp import Link
from mycelia.cli.actions import print_line, start_argument, whole_number
from mycelia.cli.dlq_output import as_json
from mycelia.errors import BrokerUnavailable
from mycelia.logs.group_places import count_partitions
from mycelia.logs.layout import LogLayout, stream_name
from mycelia.logs.log_diff import DiffRoom, LogComparison, LogDiffReport, is_compared
from mycelia.logs.reader import LogReader
from mycelia.logs.record_shape import RecordShape
from mycelia.logs.stream_ends import end_of, first_offset

__all__ = [
    "add_comparison_arguments",
    "add_diff_arguments",
    "diff_logs",
    "moment_argument",
    "print_differences",
]

_SILENCE_S: Final = 15.0


def add_diff_arguments(diff: argparse.ArgumentParser) -> None:
    """What the command takes."""
    diff.add_argument("log", metavar="LOG", help="the log of the code that runs")
    diff.add_argument("other", metavar="OTHER", help="the log of the new code, run beside it")
    add_comparison_arguments(diff, ["key"])
    for name, dest, what in (("from", "start", "both begin"), ("until", "until", "both end")):
        diff.add_argument(
            f"--{name}",
            dest=dest,
            type=moment_argument,
            metavar="TIME",
            help=f"where {what}, by the records' own times: a time (2026-11-26T12:00Z), or how long ago (10m)",
        )


def add_comparison_arguments(parser: argparse.ArgumentParser, by: list[str]) -> None:
    """How records are compared.

    Args:
        by: what identifies them, where nothing else is said.
    """
    parser.add_argument(
        "--by",
        type=_names,
        default=by,
        metavar="WHAT,…",
        help=f"what identifies a record: key, time, value.NAME, headers.NAME; default: {','.join(by)}",
    )
    parser.add_argument(
        "--ignore",
        type=_names,
        default=[],
        metavar="NAME,…",
        help="fields of values that do not count",
    )
    parser.add_argument(
        "--last", action="store_true", help="the last record of each identity counts"
    )
    parser.add_argument(
        "--show", type=whole_number, default=10, metavar="N", help="differences to show; 10"
    )


def _names(text: str) -> list[str]:
    return [one.strip() for one in text.split(",") if one.strip()]


def moment_argument(text: str) -> datetime:
    """A time, as argparse wants it read."""
    moment = start_argument(text)
    if isinstance(moment, datetime):
        return moment
    raise argparse.ArgumentTypeError(
        f"{text!r}: expected a time such as 2026-11-26T12:00Z, or how long ago: 10m"
    )


def _in_a_line(value: Any) -> str:
    return as_json(value, indent=None)


async def diff_logs(args: argparse.Namespace, link: Link) -> int:
    """Compare, and print what differs. 1 where something does."""
    comparison = LogComparison(args.by, args.ignore, last_only=args.last)
    room = DiffRoom()
    for is_right, log in ((False, args.log), (True, args.other)):
        for partition in range(await count_partitions(link, log)):
            await _compare(link, log, partition, comparison, room, is_right, args)
    report = comparison.report(args.show)
    if args.json:
        print_line(as_json({"is_same": report.is_same, **msgspec.to_builtins(report)}))
        return 0 if report.is_same else 1
    print_differences(report, args.log, args.other, args.by)
    return 0 if report.is_same else 1


def print_differences(report: LogDiffReport, log: str, other: str, by: Sequence[str]) -> None:
    """The first differences, and how many there are."""
    for one in report.differences:
        name = ", ".join(_in_a_line(part) for part in one.identity)
        for sign, has, value in (("-", one.has_left, one.left), ("+", one.has_right, one.right)):
            if has:
                print_line(f"{sign} {name}  {one.at}: {_in_a_line(value)}")
    print_line(
        f"{report.same} the same, {report.different} different, {report.only_left} only in {log}, "
        f"{report.only_right} only in {other}; by {', '.join(by)}, "
        f"of {report.left_records} and {report.right_records} records"
    )


async def _compare(
    link: Link,
    log: str,
    partition: int,
    comparison: LogComparison,
    room: DiffRoom,
    is_right: bool,
    args: argparse.Namespace,
) -> None:
    """Take the records of a partition, up to where it ends now."""
    end = await end_of(link, log, partition)
    if end <= (await first_offset(link, stream_name(log, partition)) or 0):
        return
    shape = RecordShape[Any](f'log "{log}"', None, None, None)
    layout = LogLayout(log, partition + 1, None, None)
    since = None if args.start is None else args.start.timestamp() * 1000
    until = None if args.until is None else args.until.timestamp() * 1000
    async with LogReader(link, layout, shape, partition, "first") as reader:
        while (entry := await reader.take(timeout=_SILENCE_S)) is not None:
            comparison.add(
                is_right,
                (
                    comparison.packed(record)
                    for record in entry.records
                    if is_compared(record.time, since, until)
                ),
                room,
            )
            if reader.offset is not None and reader.offset >= end:
                return
        if reader.offset is not None and reader.offset >= end:
            return  # what stood there last had come before
    raise BrokerUnavailable(
        f'log "{log}", partition {partition}: nothing came for {_SILENCE_S:g} s before its end at {end}.'
    )
