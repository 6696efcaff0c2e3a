"""`mycelia log`: the logs at a broker listed and followed; how far groups have come, and from where they go on."""

from __future__ import annotations

import argparse
import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

from mycelia.amqp import Link
from mycelia.amqp.uri import parse_uri
from mycelia.broker.management_api import ManagementApiError
from mycelia.cli.actions import (
    add_command_of_actions,
    loaded,
    on_link,
    print_line,
    print_table,
    start_argument,
    whole_number,
)
from mycelia.cli.call_and_publish import add_connection_arguments
from mycelia.cli.dlq_output import as_json
from mycelia.cli.log_diff import add_diff_arguments, diff_logs
from mycelia.cli.run import read_config
from mycelia.cli.state_argument import add_state_argument
from mycelia.control.dead_letters import management_of
from mycelia.errors import ConfigError, TopologyError
from mycelia.logs.group_places import check_offset, count_partitions
from mycelia.logs.layout import LogLayout, stream_name
from mycelia.logs.reader import LogEntry, LogReader
from mycelia.logs.record_shape import RecordShape
from mycelia.runtime.settings import DEFAULT_BROKER

__all__ = ["add_log_commands"]

_action = partial(loaded, "mycelia.cli.log_groups")

EXAMPLES = """\
examples:
  mycelia log ls                                     the logs at the broker
  mycelia log tail flights.departed                  what comes, until Ctrl-C
  mycelia log tail flights.departed --from first --count 10 --json
  mycelia log tail flights.departed --from 10m       since ten minutes ago
  mycelia log lag flights.departed                   how far the groups have come that read it
  mycelia log lag flights.departed audit             one of them: of a log handler, or a flow
  mycelia log replay flights.departed audit --from first   have it begin anew, while it is stopped
  mycelia log lag flights.departed audit --follow    until it has caught up
  mycelia log diff delays delays.shadow --by key,value.hour   the new code's results beside the old's

exit codes: 0 done; 1 an error, told on stderr, or logs that differ; 2 the command is wrong; 130 Ctrl-C
"""


def add_log_commands(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `log` to the command line. The chosen action is left in `args.main`."""
    action = add_command_of_actions(
        subparsers,
        "log",
        text="list and follow logs, see how far groups are, replay",
        description="Partitioned logs, and the groups that handle them.",
        epilog=EXAMPLES,
    )

    ls = action("ls", "list the logs at a broker", on_link(_ls))
    ls.add_argument(
        "--management",
        metavar="URL",
        help="the management API, which finds logs (default: port 15672 of the broker, or the private node's)",
    )
    tail = action("tail", "print the records of a log as they come", on_link(_tail))
    _add_log_argument(tail)
    tail.add_argument("--partition", type=whole_number, metavar="P", help="this one alone")
    tail.add_argument(
        "--from",
        dest="start",
        type=start_argument,
        default="next",
        metavar="WHERE",
        help="first, last, next, an offset, a time (2026-11-26T12:00Z), or how long ago (10m); default: next",
    )
    tail.add_argument("--count", type=whole_number, metavar="N", help="end after so many records")
    lag = action("lag", "tell how far groups have come", _action("lag_action"))
    _add_log_argument(lag)
    lag.add_argument(
        "group",
        nargs="?",
        metavar="GROUP",
        help="of a log handler or a flow: service.method, or as it says itself; without it, all",
    )
    lag.add_argument("--management", metavar="URL", help="the management API, which finds groups")
    replay = action(
        "replay", "have a group that is stopped go on from elsewhere", _action("replay_action")
    )
    _add_log_argument(replay)
    replay.add_argument(
        "group",
        metavar="GROUP",
        help="of a log handler or a flow: service.method, or as it says itself",
    )
    replay.add_argument(
        "--from",
        dest="start",
        type=start_argument,
        required=True,
        metavar="WHERE",
        help="first, last, next, an offset, a time, or how long ago",
    )
    replay.add_argument("--partition", type=whole_number, metavar="P", help="this one alone")
    replay.add_argument(
        "--yes", action="store_true", help="do not ask before a flow loses its state"
    )
    for parser, does in ((lag, "show"), (replay, "then show")):
        add_state_argument(parser)
        parser.add_argument(
            "--follow",
            action="store_true",
            help=f"{does} how the group comes along, until it is where the log ends now; Ctrl-C only ends the looking",
        )
    diff = action("diff", "tell whether two logs say the same", on_link(diff_logs))
    add_diff_arguments(diff)
    for parser in (ls, tail, lag, replay, diff):
        parser.add_argument("--json", action="store_true", help="print JSON")
        add_connection_arguments(parser)


def _add_log_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", metavar="LOG", help="its name: flights.departed")


# --- ls ----------------------------------------------------------------------------------------------


async def _ls(args: argparse.Namespace, link: Link) -> int:
    config = read_config(args.config, args.broker)
    uri = config.get("AMQP_URI", DEFAULT_BROKER)
    try:
        api = management_of(uri, args.management)
        vhost = parse_uri(uri)[0].vhost
        exchanges = await asyncio.to_thread(api.exchanges, vhost)
        queues = {str(one.get("name")): one for one in await asyncio.to_thread(api.queues, vhost)}
        api.close()
    except ManagementApiError as exc:
        raise TopologyError(
            f"the management API is needed to find logs, and: {exc}. Enable it (rabbitmq-plugins enable rabbitmq_management), or say "
            "where it is (--management http://host:15672)."
        ) from exc
    found = []
    for exchange in exchanges:
        name = str(exchange.get("name"))
        if exchange.get("type") != "direct" or f"{name}-0" not in queues:
            continue
        streams: list[dict[str, Any]] = []
        while (stream := queues.get(stream_name(name, len(streams)))) is not None:
            streams.append(stream)
        arguments = streams[0].get("arguments") or {}
        if arguments.get("x-queue-type") != "stream":
            continue
        found.append(
            {
                "log": name,
                "partitions": len(streams),
                "entries": sum(int(one.get("messages") or 0) for one in streams),
                "max_age": arguments.get("x-max-age"),
                "max_bytes": arguments.get("x-max-length-bytes"),
            }
        )
    if args.json:
        print_line(as_json(found))
    elif found:
        head = ("LOG", "PARTITIONS", "ENTRIES", "KEPT FOR", "KEPT BYTES")
        print_table(
            [
                head,
                *(
                    tuple("-" if value is None else str(value) for value in one.values())
                    for one in found
                ),
            ]
        )
    else:
        print_line("no logs")
    return 0


# --- tail --------------------------------------------------------------------------------------------


async def _tail(args: argparse.Namespace, link: Link) -> int:
    partitions = await count_partitions(link, args.log)
    if args.partition is not None and args.partition >= partitions:
        raise ConfigError(f'log "{args.log}" has the partitions 0 to {partitions - 1}.')
    layout = LogLayout(args.log, partitions, None, None)
    shape = RecordShape[Any](f'log "{args.log}"', None, None, None)
    chosen = range(partitions) if args.partition is None else [args.partition]
    left = _Left(args.count)

    if type(args.start) is int:
        await check_offset(link, args.log, chosen, args.start)

    async def follow(partition: int) -> None:
        async with LogReader(link, layout, shape, partition, args.start) as reader:
            async for entry in reader:
                for line in _lines(entry, args.json):
                    if not left.take():
                        return
                    print_line(line)
                if left.is_over:
                    return

    tasks = [asyncio.ensure_future(follow(partition)) for partition in chosen]
    try:
        while tasks and not left.is_over:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            tasks = [task for task in tasks if task not in done]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return 0


class _Left:
    """How many records are still to be printed; `None`: any number."""

    def __init__(self, count: int | None) -> None:
        self._count = count

    @property
    def is_over(self) -> bool:
        return self._count is not None and self._count <= 0

    def take(self) -> bool:
        if self.is_over:
            return False
        if self._count is not None:
            self._count -= 1
        return True


def _lines(entry: LogEntry[Any], in_json: bool) -> list[str]:
    """A line for each record, and for each that cannot be read."""
    lines = []
    for index, record in zip(entry.indexes, entry.records, strict=True):
        told = {
            "partition": entry.partition,
            "offset": entry.offset,
            "index": index,
            "key": record.key,
            "time_ms": record.time,
            "headers": record.headers,
            "value": record.value,
        }
        if in_json:
            lines.append(_one_line(told))
        else:
            moment = "-" if record.time is None else _moment(record.time)
            key = "-" if record.key is None else str(record.key)
            place = f"{entry.partition}:{entry.offset}:{index}"
            lines.append(f"{place}  {moment}  {key}  {_one_line(record.value)}")
    for fault in entry.faults:
        place = f"{entry.partition}:{entry.offset}:{'-' if fault.index is None else fault.index}"
        told = {"place": place, "unreadable": fault.reason, "body": fault.body}
        lines.append(_one_line(told) if in_json else f"{place}  unreadable: {fault.reason}")
    return lines


def _one_line(value: Any) -> str:
    return as_json(value, indent=None)


def _moment(time_ms: int) -> str:
    with suppress(ValueError, OverflowError, OSError):
        moment = datetime.fromtimestamp(time_ms / 1000, UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f"{time_ms} ms"
