"""A group's way to the end of its log, shown while it goes: one line that changes on a terminal, lines now and then elsewhere."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from mycelia.cli.progress_line import ProgressLine
from mycelia.durations import duration_text
from mycelia.logs.catching_up import CatchingUp, CatchUpFigures

__all__ = ["follow_group", "progress_text"]

LOOK_S: Final = 1.0
"""As often as owners tell."""


async def follow_group(
    look: Callable[[], Awaitable[Mapping[int, int]]],
    log: str,
    group: str,
    begin: Mapping[int, int],
    ends: Mapping[int, int],
) -> None:
    """Show how the group comes from `begin` to `ends`, until it is there. Cancelled, it says where that is, and how to look on.

    Args:
        look: tells the offsets it has come to, by partition, as far as they are known.
    """
    way = CatchingUp(begin, ends)
    line = ProgressLine()
    figures = way.heard({}, time.monotonic())
    try:
        while True:
            places = await look()
            figures = way.heard(places, time.monotonic())
            if not figures.left:
                break
            line.tell(progress_text(figures))
            await asyncio.sleep(LOOK_S)
    except asyncio.CancelledError:
        line.end()
        at = ", ".join(
            f"partition {one} at {offset} of {ends[one]}"
            for one, offset in sorted(way.at.items())
            if offset < ends[one]
        )
        print(
            f"stopped looking: {progress_text(figures)}\n{at}\nThe group goes on by itself. To look on: mycelia log lag {log} {group} --follow",
            file=sys.stderr,
        )
        raise
    line.end()
    print(f"caught up: {figures.total} entries", file=sys.stderr)


def progress_text(figures: CatchUpFigures) -> str:
    """How far it is, at what rate, and how long it will take."""
    done = f"{figures.done} of {figures.total} entries ({figures.share:.0%}), {figures.left} to go"
    if figures.per_s is None or figures.eta_s is None:
        return f"{done}, {'it does not move' if figures.done else 'it has not begun: does an instance of the group run?'}"
    return f"{done}, {figures.per_s:.0f}/s, {duration_text(round(figures.eta_s))} left"
