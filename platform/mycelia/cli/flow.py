"""`mycelia flow`: its arguments. What it does is in `flow_actions`, which other commands need not load."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from mycelia.cli.actions import add_command_of_actions, loaded, start_argument
from mycelia.cli.call_and_publish import add_connection_arguments, duration_argument
from mycelia.cli.log_diff import add_comparison_arguments, moment_argument
from mycelia.cli.state_argument import add_state_argument

__all__ = ["add_flow_commands"]

_action = partial(loaded, "mycelia.cli.flow_actions")

EXAMPLES = """\
Flows that run answer over the broker, and only when asked.

examples:
  mycelia flow ls                                    the flows that run
  mycelia flow show delays.hourly                    its partitions: owners, lag, watermarks, what stands still
  mycelia flow graph delays.hourly                   its steps, with rates, watermarks and lag
  mycelia flow graph delays.hourly --svg delays.svg --watch   a drawing, made again every two seconds
  mycelia flow graph services.delays:Delays          as it is described, without a broker
  mycelia flow lag delays.hourly --watch             until Ctrl-C
  mycelia flow savepoint delays.hourly before-2.1 --config config.yaml   a copy of its state, while it runs
  mycelia flow reset delays.hourly --from first --config config.yaml     stopped: begin anew, its state is deleted
  mycelia flow shadow services.new:Delays.hourly --from 24h --warm-up 1h   new code beside the old: do its results differ?
  mycelia flow reset delays.hourly --savepoint before-2.1 --config config.yaml

exit codes: 0 done; 1 an error, told on stderr, or results that differ; 2 the command is wrong; 130 Ctrl-C
"""


def add_flow_commands(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `flow` to the command line. The chosen action is left in `args.main`."""
    action = add_command_of_actions(
        subparsers,
        "flow",
        text="list, show, draw, save, reset and compare flows",
        description="Flows: pipelines with state, run by services.",
        epilog=EXAMPLES,
    )
    ls = action("ls", "list the flows that run", _action("ls_action"))
    show = action("show", "tell how a flow stands, partition by partition", _action("show_action"))
    graph = action("graph", "draw a flow", _action("graph_action"))
    lag = action("lag", "tell how far a flow has come", _action("lag_action"))
    for parser in (show, lag):
        parser.add_argument("flow", metavar="NAME", help="service.method, or its group")
    graph.add_argument(
        "flow",
        metavar="NAME",
        help="service.method, or its group; or module:Class, as it is described, without a broker",
    )
    graph.add_argument(
        "--svg", type=Path, metavar="FILE", help="draw into this file, not as text; - for stdout"
    )
    savepoint = action(
        "savepoint",
        "copy the state of a flow into a new directory, while it runs",
        _action("savepoint_action"),
    )
    savepoint.add_argument("flow", metavar="NAME", help="service.method, or its group")
    savepoint.add_argument("directory", type=Path, metavar="DIRECTORY", help="a new one")
    reset = action("reset", "have a flow that is stopped begin elsewhere", _action("reset_action"))
    reset.add_argument("flow", metavar="NAME", help="service.method, or its group")
    where = reset.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--from",
        dest="start",
        type=start_argument,
        metavar="WHERE",
        help="with no state, from there in its logs: first, last, next, an offset, a time (2026-11-26T12:00Z), or how long ago (10m)",
    )
    where.add_argument(
        "--savepoint", type=Path, metavar="DIRECTORY", help="with the state of a savepoint"
    )
    reset.add_argument("--yes", action="store_true", help="do not ask")
    reset.add_argument(
        "--force",
        action="store_true",
        help="have instances that run leave their partitions; what they have taken since their last commits is not committed",
    )
    for parser in (savepoint, reset):
        add_state_argument(parser)
    shadow = action(
        "shadow",
        "run new code over the same records beside the old, and tell how its results differ",
        loaded("mycelia.cli.flow_shadow", "shadow_action"),
    )
    shadow.add_argument("flow", metavar="NAME", help="module:Class, or module:Class.method")
    shadow.add_argument(
        "--from",
        dest="start",
        type=start_argument,
        required=True,
        metavar="WHERE",
        help="where it begins in its logs: first, an offset, a time (2026-11-26T12:00Z), or how long ago (10m); next, with --follow",
    )
    shadow.add_argument(
        "--until",
        type=moment_argument,
        metavar="TIME",
        help="only results of before this event time are compared, and no more is read than they need",
    )
    shadow.add_argument(
        "--warm-up",
        type=duration_argument,
        default=0.0,
        metavar="TIME",
        help="of event time, 1h: the first results, whose windows had begun before, are not compared",
    )
    shadow.add_argument(
        "--against", metavar="LOG", help="compare with this log, not the one that the code names"
    )
    add_comparison_arguments(shadow, ["key", "time"])
    shadow.add_argument(
        "--follow", action="store_true", help="go on with what comes, until Ctrl-C; then compare"
    )
    for parser in (show, graph, lag, shadow):
        parser.add_argument(
            "--interval",
            type=_interval,
            default=2.0,
            metavar="SECONDS",
            help="between two looks; rates are those of that time (default: 2)",
        )
    for parser in (graph, lag):
        parser.add_argument("--watch", action="store_true", help="again and again, until Ctrl-C")
    for parser in (ls, show, graph, lag, savepoint, reset, shadow):
        parser.add_argument("--json", action="store_true", help="print JSON")
        add_connection_arguments(parser, taken="the broker", timeout=10.0)


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds from 0.1 to 3600")
    return seconds
