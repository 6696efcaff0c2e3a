"""What `mycelia log lag` and `mycelia log replay` do: how far groups have come, and from where they go on. Of log handlers and of flows."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Mapping
from typing import Any

from mycelia.amqp import Link
from mycelia.amqp.uri import parse_uri
from mycelia.broker.management_api import ManagementApiError
from mycelia.cli.actions import confirm, on_link, print_line, print_table
from mycelia.cli.dlq_output import as_json
from mycelia.cli.log_follow import follow_group
from mycelia.cli.run import read_config
from mycelia.cli.state_argument import home_of
from mycelia.control.dead_letters import management_of
from mycelia.control.log_groups import GroupPartition, LogGroup, LogGroups, offsets_of
from mycelia.durations import duration_text
from mycelia.errors import ConfigError, RuntimeStateError, TopologyError
from mycelia.flow.reset import reset_flow
from mycelia.flow.state_home import StateHome
from mycelia.logs.group_places import check_offset, count_partitions, move_group, offset_at
from mycelia.logs.stream_ends import end_of
from mycelia.runtime.settings import DEFAULT_BROKER

__all__ = ["lag_action", "replay_action"]


# --- lag ---------------------------------------------------------------------------------------------


async def _lag(args: argparse.Namespace, link: Link) -> int:
    if args.follow and args.group is None:
        raise ConfigError("--follow is of one group: name it.")
    partitions = await count_partitions(link, args.log)
    home = home_of(args, link)
    try:
        groups = LogGroups(link, home)
        if args.group is None:
            found = await _all_groups(args, groups)
        else:
            group = await groups.find(args.log, args.group)
            found = [(group, await group.look())]
        ends = {one: await end_of(link, args.log, one) for one in range(partitions)}
        if args.follow:
            await _follow(args, *found[0], ends)
            return 0
    finally:
        home.close()
    rows = [row for group, places in found for row in _rows(group, places, ends)]
    if args.json:
        print_line(as_json(rows))
        return 0
    head = ("PARTITION", "END", "AT", "LAG", "OWNER", "SAID")
    if args.group is not None:
        print_table([head, *map(_cells, rows)])
    elif rows:
        print_table([("GROUP", *head), *((row["group"], *_cells(row)) for row in rows)])
    else:
        print_line(f'no group reads log "{args.log}"')
    for row in rows:
        if row["standing_still"] is not None:
            print_line(
                f"{row['group']}, partition {row['partition']} stands still: {row['standing_still']}"
            )
    return 0


async def _all_groups(
    args: argparse.Namespace, groups: LogGroups
) -> list[tuple[LogGroup, dict[int, GroupPartition]]]:
    uri = read_config(args.config, args.broker).get("AMQP_URI", DEFAULT_BROKER)
    try:
        api = management_of(uri, args.management)
        queues = await asyncio.to_thread(api.queues, parse_uri(uri)[0].vhost)
        api.close()
    except ManagementApiError as exc:
        raise TopologyError(
            f"the management API is needed to find groups, and: {exc}. Name a group, enable it (rabbitmq-plugins enable rabbitmq_management), "
            "or say where it is (--management http://host:15672)."
        ) from exc
    names = [str(one.get("name")) for one in queues]
    return [*await groups.handlers(args.log, names), *await groups.flows(args.log)]


def _rows(
    group: LogGroup, places: Mapping[int, GroupPartition], ends: Mapping[int, int]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for partition, end in ends.items():
        place = places.get(partition, GroupPartition(at=None))
        ago = None if place.said_ms is None else max(time.time() - place.said_ms / 1000, 0.0)
        rows.append(
            {
                "group": group.name,
                "kind": group.kind,
                "partition": partition,
                "end": end,
                "at": place.at,
                "lag": None if place.at is None else max(end - place.at, 0),
                "owner": place.owner,
                "said_s_ago": ago,
                "standing_still": place.standing_still,
            }
        )
    return rows


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    ago = row["said_s_ago"]
    said = "-" if ago is None else f"{duration_text(round(float(ago)))} ago"
    names = ("partition", "end", "at", "lag", "owner")
    return (*("-" if row[name] is None else str(row[name]) for name in names), said)


async def _follow(
    args: argparse.Namespace,
    group: LogGroup,
    places: dict[int, GroupPartition],
    ends: Mapping[int, int],
) -> None:
    async def look() -> dict[int, int]:
        return offsets_of(await group.look())

    await follow_group(look, args.log, args.group, offsets_of(places), ends)


# --- replay ------------------------------------------------------------------------------------------


async def _replay(args: argparse.Namespace, link: Link) -> int:
    if not args.group.strip():
        raise ConfigError("a group has a name.")
    partitions = await count_partitions(link, args.log)
    if args.partition is not None and args.partition >= partitions:
        raise ConfigError(f'log "{args.log}" has the partitions 0 to {partitions - 1}.')
    chosen = range(partitions) if args.partition is None else [args.partition]
    if type(args.start) is int:
        await check_offset(link, args.log, chosen, args.start)
    home = home_of(args, link)
    try:
        try:
            group = await LogGroups(link, home).find(args.log, args.group)
        except TopologyError:
            group = None  # it has never run, and is to begin there
        if group is not None and group.kind == "flow":
            offsets = await _reset(args, link, home, group)
            if offsets is None:
                return 2
        else:
            offsets = {
                partition: await offset_at(link, args.log, partitions, partition, args.start)
                for partition in chosen
            }
            await move_group(link, args.log, args.group, offsets)
            if group is None:
                print(
                    f'log "{args.log}" has had no group "{args.group}" so far: one of that name begins there when it runs',
                    file=sys.stderr,
                )
                group = await LogGroups(link, home).find(args.log, args.group)
        if args.json:
            print_line(as_json([{"partition": p, "at": offset} for p, offset in offsets.items()]))
        else:
            for partition, offset in offsets.items():
                print_line(f"partition {partition} goes on from offset {offset}")
        if args.follow:
            ends = {one: await end_of(link, args.log, one) for one in chosen}
            await _follow(
                args, group, {p: GroupPartition(at=at) for p, at in offsets.items()}, ends
            )
    finally:
        home.close()
    return 0


async def _reset(
    args: argparse.Namespace, link: Link, home: StateHome, group: LogGroup
) -> dict[int, int] | None:
    """Have a flow begin anew; the offsets in this log, by partition. None: somebody does not want to.

    Raises:
        ConfigError: of one partition only, which cannot be.
        RuntimeStateError: it runs.
    """
    if args.partition is not None:
        raise ConfigError(
            f'"{group.name}" is a flow, whose partitions begin anew together: leave --partition out.'
        )
    if args.log.startswith(f"{group.name}."):
        raise ConfigError(
            f'log "{args.log}" is between stages of "{group.name}", and made anew with it: name one of the logs that the flow reads.'
        )
    owners = {one.owner for one in (await group.look()).values() if one.owner is not None}
    if owners:
        raise RuntimeStateError(
            f'flow "{group.name}" runs: {", ".join(sorted(owners))}. Stop its instances first. Nothing was reset.'
        )
    if not args.yes and not await confirm(
        f'"{group.name}" is a flow: its state in {home.where} is deleted, and so are its logs between stages. It goes on from {args.start} '
        "in all logs that it reads, and what it gives has other ids than before. Reset it?"
    ):
        return None
    done = await reset_flow(link, home, group.name, args.start)
    return {one.partition: one.offsets[args.log] for one in done if args.log in one.offsets}


lag_action = on_link(_lag)
replay_action = on_link(_replay)
