"""What the actions of `mycelia flow` do: flows listed, shown and drawn as they run."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from mycelia.amqp import Link
from mycelia.cli.actions import confirm, exit_code_of, on_link, print_line, print_table, say_error
from mycelia.cli.call_and_publish import client_of
from mycelia.cli.described import flows_of
from mycelia.cli.dlq_output import as_json
from mycelia.cli.state_argument import home_of, section_of
from mycelia.control.flows import FlowAsker
from mycelia.errors import ConfigError, MyceliaError, RuntimeStateError
from mycelia.flow.described_flow import described_flow
from mycelia.flow.flow_graph import graph_text
from mycelia.flow.flow_watch import SAME_ANSWER_S
from mycelia.flow.graph_svg import graph_svg
from mycelia.flow.reset import reset_flow
from mycelia.flow.savepoints import Savepoint, take_savepoint
from mycelia.flow.stage_savepoints import save_flow
from mycelia.flow.standing import FlowFigures, behind_text, flow_notes, moment_text, rate_text
from mycelia.flow.state_home import state_home
from mycelia.nearest import nearest
from mycelia.runtime.declarations import get_service_name

__all__ = [
    "graph_action",
    "lag_action",
    "ls_action",
    "reset_action",
    "savepoint_action",
    "show_action",
]

# --- what runs ---------------------------------------------------------------------------------------


async def _ls(args: argparse.Namespace, link: Link) -> int:
    asker = FlowAsker(link)
    await asker.start(args.timeout)
    await asker.ask()
    found = await asker.figures()
    if args.json:
        print_line(as_json([_summary(one) for one in found]))
        return 0
    if not found:
        print(
            "no flow answers at this broker: none runs, or not under this virtual host",
            file=sys.stderr,
        )
        return 0
    head = (
        "FLOW",
        "SERVICE",
        "LOGS",
        "PARTITIONS",
        "INSTANCES",
        "LAG",
        "LATE",
        "DEAD",
        "STANDING STILL",
    )
    rows: list[tuple[str, ...]] = [head]
    for one in found:
        told = _summary(one)
        rows.append(
            (
                one.flow,
                one.service,
                ", ".join(told["logs"]),
                _of(told["owned"], told["partitions"]),
                str(len(one.instances)),
                _or_dash(one.lag),
                str(one.late),
                str(one.dead + one.faults),
                str(len(one.standing_still)) if one.standing_still else "-",
            )
        )
    print_table(rows)
    return 0


def _summary(one: FlowFigures) -> dict[str, Any]:
    sources = [node.name for node in one.graph.nodes if node.kind == "source"]
    return {
        "flow": one.flow,
        "service": one.service,
        "method": one.method,
        "logs": sources,
        "stages": len(one.stages),
        "partitions": len(one.partitions),
        "owned": len(one.partitions) - len(one.without_owner),
        "instances": one.instances,
        "lag": one.lag,
        "late": one.late,
        "faults": one.faults,
        "dead": one.dead,
        "standing_still": len(one.standing_still),
    }


async def _looked(
    args: argparse.Namespace, link: Link, tell: Callable[[FlowFigures], None], again: bool
) -> int:
    """Look twice, so that there are rates, and tell; with `again`, go on so until Ctrl-C."""
    asker = FlowAsker(link)
    await asker.start(args.timeout)
    loop = asyncio.get_running_loop()
    asked_at = loop.time()
    await asker.ask()
    _check_one(asker, args.flow)
    while True:
        # Part of the interval has gone by with waiting for answers. Those are not made anew for a moment.
        await asyncio.sleep(max(asked_at + args.interval - loop.time(), SAME_ANSWER_S))
        asked_at = loop.time()
        await asker.ask()
        tell(await _one(asker, args.flow))
        if not again:
            return 0


async def _one(asker: FlowAsker, name: str) -> FlowFigures:
    _check_one(asker, name)
    (found,) = await asker.figures(name)
    return found


def _check_one(asker: FlowAsker, name: str) -> None:
    """
    Raises:
        ConfigError, RuntimeStateError: more than one flow is called so, or none.
    """
    found = asker.groups_of(name)
    if len(found) > 1:
        raise ConfigError(f'"{name}" is more than one flow: {", ".join(found)}. Name its group.')
    if found:
        return
    meant = nearest(name, asker.known)
    known = ", ".join(asker.known)
    hint = (
        f'Did you mean "{meant}"?' if meant else f"There are: {known}." if known else "None does."
    )
    raise RuntimeStateError(
        f'no flow "{name}" answers at this broker: no instance of it runs, or it did not answer within a second. {hint}'
    )


def _instances(one: FlowFigures) -> str:
    return "1 instance" if len(one.instances) == 1 else f"{len(one.instances)} instances"


async def _show(args: argparse.Namespace, link: Link) -> int:
    def tell(one: FlowFigures) -> None:
        if args.json:
            print_line(as_json(msgspec.to_builtins(one)))
            return
        rate = "-" if one.records_per_s is None else rate_text(one.records_per_s)
        print_line(f"{one.flow}   {one.service}.{one.method}, {_instances(one)}")
        print_line(
            f"{rate} records, lag {_or_dash(one.lag)}, late {one.late}, dead letters {one.dead + one.faults}"
        )
        if one.delivered or any(it.sink_bytes for it in one.partitions):
            waiting = _bytes(sum(it.sink_bytes for it in one.partitions))
            print_line(f"to sinks {one.delivered} bodies, {waiting} wait")
        for stage in one.stages:
            sources = ", ".join(source.log for source in stage.sources)
            print_line("")
            print_line(f"{stage.name}: {stage.partitions} partitions of {sources}")
            _print_partitions(one, stage.name)
        _print_waiting(one)
        for partition in one.standing_still:
            print_line("")
            print_line(
                f"{partition.stage}, partition {partition.partition} stands still: {partition.standing_still}"
            )

    return await _looked(args, link, tell, again=False)


def _print_waiting(one: FlowFigures) -> None:
    """Partitions that are held up by what is behind them."""
    for it in one.partitions:
        if it.waits_for is not None:
            print_line(
                f"{it.stage}, partition {it.partition} waits, {_bytes(it.ahead_bytes or 0)} ahead, for {it.waits_for}"
            )


def _print_partitions(one: FlowFigures, stage: str) -> None:
    now_ms = time.time() * 1000
    rows: list[tuple[str, ...]] = [
        (
            "PARTITION",
            "OWNER",
            "RECORDS",
            "LAG",
            "WATERMARK",
            "LATE",
            "COMMITTED",
            "TOOK",
            "STATE",
            "AHEAD",
            "TO SINKS",
        )
    ]
    rows += [
        (
            str(it.partition),
            it.owner or "nobody",
            "-" if it.records_per_s is None else rate_text(it.records_per_s),
            _or_dash(it.lag),
            "-" if it.watermark_ms is None else moment_text(it.watermark_ms),
            str(it.late),
            "-" if it.committed_ms is None else _ago(now_ms - it.committed_ms),
            "-" if it.commit_s is None else f"{it.commit_s * 1000:.0f} ms",
            "-" if it.state_bytes is None else _bytes(it.state_bytes),
            "-" if it.ahead_bytes is None else _bytes(it.ahead_bytes),
            _bytes(it.sink_bytes),
        )
        for it in one.partitions
        if it.stage == stage
    ]
    print_table(rows)


async def _lag(args: argparse.Namespace, link: Link) -> int:
    def tell(one: FlowFigures) -> None:
        rows: list[tuple[str, ...]] = [("STAGE", "PARTITION", "SOURCE", "AT", "LAG", "OWNER")]
        told: list[dict[str, Any]] = []
        for it in one.partitions:
            stage = next(stage for stage in one.stages if stage.name == it.stage)
            for source in stage.sources:
                if it.partition >= source.partitions:
                    continue
                at, behind = it.offsets.get(source.name), it.lags.get(source.name)
                told.append(
                    {
                        "stage": it.stage,
                        "partition": it.partition,
                        "source": source.log,
                        "at": at,
                        "lag": behind,
                        "owner": it.owner,
                        "watermark_ms": it.watermark_ms,
                        "standing_still": it.standing_still,
                        "waits_for": it.waits_for,
                        "ahead_bytes": it.ahead_bytes,
                        "sink_bytes": it.sink_bytes,
                    }
                )
                cells = (_or_dash(at), _or_dash(behind), it.owner or "nobody")
                rows.append((it.stage, str(it.partition), source.log, *cells))
        if args.json:
            print_line(as_json(told, indent=None if args.watch else 2))
        else:
            print_table(rows)
            rate = "-" if one.records_per_s is None else rate_text(one.records_per_s)
            print_line(f"{rate} records, lag {_or_dash(one.lag)} entries")
            for it in one.standing_still:
                print_line(
                    f"{it.stage}, partition {it.partition} stands still: {it.standing_still}"
                )
            _print_waiting(one)

    return await _looked(args, link, tell, again=args.watch)


# --- a drawing ---------------------------------------------------------------------------------------


def graph_action(args: argparse.Namespace) -> int:
    """A drawing, of what runs or of what is described."""
    if ":" in args.flow:
        return _graph_of_class(args)
    return on_link(_graph_of_running)(args)


async def _graph_of_running(args: argparse.Namespace, link: Link) -> int:
    def tell(one: FlowFigures) -> None:
        notes, flows = flow_notes(one, int(time.time() * 1000))
        title = f"{one.flow} · {_instances(one)}"
        if one.records_per_s is not None:
            title += f" · {rate_text(one.records_per_s)}"
        if args.json:
            told = {
                "flow": one.flow,
                "graph": msgspec.to_builtins(one.graph),
                "notes": msgspec.to_builtins(notes),
                "flows": [{"node": n, "port": port, "rate": r} for (n, port), r in flows.items()],
            }
            print_line(as_json(told, indent=None if args.watch else 2))
        elif args.svg is not None:
            _write(args.svg, graph_svg(one.graph, title, notes, flows))
        else:
            if args.watch and sys.stdout.isatty():
                sys.stdout.write("\x1b[H\x1b[2J")
            print_line(title)
            _print_text(graph_text(one.graph, notes))

    return await _looked(args, link, tell, again=args.watch)


def _graph_of_class(args: argparse.Namespace) -> int:
    try:
        if args.watch:
            raise ConfigError("--watch is of a flow that runs; a class does not change.")
        graphs = {
            f"{get_service_name(cls)}.{method}": described_flow(cls(), method, declared).graph
            for cls, method, declared in flows_of(args.flow)
        }
        if args.svg is not None and len(graphs) > 1:
            raise ConfigError(
                f"{args.flow} has several flows ({', '.join(graphs)}); an SVG is of one."
            )
    except MyceliaError as exc:
        return say_error(exc)
    for name, graph in graphs.items():
        if args.json:
            print_line(as_json({"flow": name, "graph": msgspec.to_builtins(graph)}))
        elif args.svg is not None:
            _write(args.svg, graph_svg(graph, name))
        else:
            print_line(name)
            _print_text(graph_text(graph))
    return 0


def _write(path: Path, drawn: str) -> None:
    """In one step, so that whoever shows the file never sees half of it."""
    if str(path) == "-":
        sys.stdout.write(drawn)
        return
    try:
        beside = path.with_name(f".{path.name}.new")
        beside.write_text(drawn, encoding="utf-8")
        beside.replace(path)
    except OSError as exc:
        raise ConfigError(f"{path} cannot be written: {exc.strerror or exc}") from exc


def _print_text(text: str) -> None:
    for line in text.splitlines():
        print_line(line)


# --- its state ---------------------------------------------------------------------------------------


def savepoint_action(args: argparse.Namespace) -> int:
    """Copy the state of a flow. Needs the broker only where the flow has changelogs there, or is of several stages."""
    try:
        section = section_of(args)
        home = state_home(section.state)
        try:
            if section.changelog or len({source for source, _ in home.kept(args.flow)}) > 1:
                return exit_code_of(_saved_by_broker(args))
            taken = take_savepoint(home, args.flow, args.directory)
        finally:
            home.close()
    except MyceliaError as exc:
        return say_error(exc)
    return _told_savepoint(args, taken)


async def _saved_by_broker(args: argparse.Namespace) -> int:
    async with client_of(args) as client:
        home = home_of(args, client.link)
        try:
            taken = await save_flow(client.link, home, args.flow, args.directory)
        finally:
            await asyncio.to_thread(home.close)
    return _told_savepoint(args, taken)


def _told_savepoint(args: argparse.Namespace, taken: Savepoint) -> int:
    if args.json:
        print_line(as_json(msgspec.to_builtins(taken)))
        return 0
    rows: list[tuple[str, ...]] = [("STAGE", "PARTITION", "NEXT ENTRIES")]
    rows += [(one.source, str(one.partition), _offsets(one.offsets)) for one in taken.partitions]
    print_table(rows)
    print_line(f"{args.directory} has the state of {len(taken.partitions)} partitions")
    for one in taken.between:
        print_line(f"and {one.entries} entries of {one.log} that had not been taken")
    return 0


async def _reset(args: argparse.Namespace, link: Link) -> int:
    home = home_of(args, link)
    try:
        kept = await asyncio.to_thread(home.kept, args.flow)
        if not args.yes and (
            kept or args.savepoint is not None
        ):  # else there is nothing to ask for
            if args.savepoint is None:
                goes_on = f"and so are its logs between stages. It goes on from {args.start}"
            else:
                goes_on = f"and it goes on with that of {args.savepoint}"
            asked = (
                f'The state of flow "{args.flow}" in {home.where}, {len(kept)} partitions, is deleted, {goes_on}, and what it gives has other ids '
                "than before."
            )
            if args.force:
                asked += (
                    " Instances that run leave their partitions: what they have taken since their last commits is not committed, and they go on with what "
                    "is put in place. One that is suspended (SIGSTOP, a frozen machine) may publish what it had committed once it wakes: end it first."
                )
            asked += " Reset it?"
            if not await confirm(asked):
                return 2
        to = args.savepoint or args.start
        done = await reset_flow(link, home, args.flow, to, force=args.force)
    finally:
        home.close()
    if args.json:
        print_line(as_json(msgspec.to_builtins(done)))
        return 0
    for one in done:
        where = _offsets(one.offsets) or "the beginning"
        print_line(f"{one.source}, partition {one.partition} goes on from {where}")
    return 0


def _offsets(offsets: Mapping[str, int]) -> str:
    return ", ".join(f"{name}:{offset}" for name, offset in offsets.items())


# --- cells -------------------------------------------------------------------------------------------


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def _of(some: int, every: int) -> str:
    return str(every) if some == every else f"{some} of {every}"


def _ago(milliseconds: float) -> str:
    return behind_text(max(milliseconds, 0) / 1000).replace(" behind", " ago")


def _bytes(size: int) -> str:
    for unit, of in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= of:
            return f"{size / of:.1f} {unit}"
    return f"{size} B"


ls_action = on_link(_ls)
show_action = on_link(_show)
lag_action = on_link(_lag)
reset_action = on_link(_reset)
