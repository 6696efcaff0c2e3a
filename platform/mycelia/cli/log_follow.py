"""A group's way to the end of its log, shown while it goes: one line that changes on a terminal, lines now and then elsewhere."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from mycelia.durations import duration_text
from mycelia.logs.catching_up import CatchingUp, CatchUpFigures

__all__ = ["follow_group"]

LOOK_S: Final = 1.0
"""As often as owners tell."""
QUIET_LOOK_S: Final = 5.0
"""Between two lines where there is no terminal."""


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
    is_terminal = sys.stderr.isatty()
    told_at = time.monotonic()
    figures = way.heard({}, told_at)
    try:
        while True:
            places = await look()
            now = time.monotonic()
            figures = way.heard(places, now)
            if not figures.left:
                break
            if is_terminal or now - told_at >= QUIET_LOOK_S:
                told_at = now
                _tell(_line(figures), is_terminal)
            await asyncio.sleep(LOOK_S)
    except asyncio.CancelledError:
        _end(is_terminal)
        at = ", ".join(
            f"partition {one} at {offset} of {ends[one]}"
            for one, offset in sorted(way.at.items())
            if offset < ends[one]
        )
        print(
            f"stopped looking: {_line(figures)}\n{at}\nThe group goes on by itself. To look on: mycelia log lag {log} {group} --follow",
            file=sys.stderr,
        )
        raise
    _end(is_terminal)
    print(f"caught up: {figures.total} entries", file=sys.stderr)


def _line(figures: CatchUpFigures) -> str:
    done = f"{figures.done} of {figures.total} entries ({figures.share:.0%}), {figures.left} to go"
    if figures.per_s is None or figures.eta_s is None:
        return f"{done}, {'it does not move' if figures.done else 'it has not begun: does an instance of the group run?'}"
    return f"{done}, {figures.per_s:.0f}/s, {duration_text(round(figures.eta_s))} left"


def _tell(line: str, is_terminal: bool) -> None:
    if is_terminal:
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)


def _end(is_terminal: bool) -> None:
    if is_terminal:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
