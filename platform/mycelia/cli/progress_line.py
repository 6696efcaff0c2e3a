"""One line on standard error that says how far something is: it changes on a terminal, and is repeated now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Final

from mycelia.cli.dlq_output import for_terminal

__all__ = ["ProgressLine"]

QUIET_S: Final = 5.0
"""Between two lines where there is no terminal."""


class ProgressLine:
    """Told as often as one likes."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._told_at = time.monotonic()

    def tell(self, line: str) -> None:
        now = time.monotonic()
        if self._is_terminal:
            print(f"\r\x1b[K{for_terminal(line)}", end="", file=sys.stderr, flush=True)
        elif now - self._told_at >= QUIET_S:
            self._told_at = now
            print(for_terminal(line), file=sys.stderr, flush=True)

    def end(self) -> None:
        """What comes next has a line of its own."""
        if self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
