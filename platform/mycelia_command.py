"""The `mycelia` command's first lines: until the program is loaded, Ctrl-C ends it without a word.

It stands outside of the package `mycelia`, because importing that is what takes the time.
"""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["main"]


def main() -> int:
    """Entry point of the `mycelia` command. Returns the exit code."""
    of_python = signal.getsignal(signal.SIGINT)
    is_heard = of_python is signal.default_int_handler  # and not ignored, as under `nohup … &`
    if is_heard:  # there is nothing to be cleaned up yet; an exception would be raised in whatever is being imported
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + signal.SIGINT))
    from mycelia.cli.main import main as command

    if is_heard:
        signal.signal(signal.SIGINT, of_python)
    try:
        return command()
    except KeyboardInterrupt:  # where no command has heard of it
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
