"""The end of a process whose services have stopped: it waits for nobody for ever.

Python joins children of `multiprocessing` and threads that are no daemons before it ends. One that never ends would
keep a process that serves nothing any more, and a supervisor from starting the next one.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time

from mycelia.cli.signals import LAST_WORDS_S, SIGNALS, say_last_words
from mycelia.log_event import event

__all__ = ["ExitLimit", "end_children", "leave"]

log = logging.getLogger("mycelia.cli")

CHILDREN_S = 5.0
"""Seconds children have to end after SIGTERM, before SIGKILL. Arbitrary."""

EXIT_S = 5.0
"""Seconds each for the event loop to close, and for the interpreter to end, once the services have stopped. Arbitrary."""


def end_children(timeout: float = CHILDREN_S) -> None:
    """End what is left of this process's `multiprocessing` children: SIGTERM, and SIGKILL after `timeout` seconds."""
    multiprocessing = sys.modules.get("multiprocessing")
    children = multiprocessing.active_children() if multiprocessing is not None else []
    if not children:
        return
    log.warning(
        event(
            "child_processes_ended",
            pids=[child.pid for child in children],
            detail="they were running when the services had stopped",
        )
    )
    deadline = time.monotonic() + timeout
    for child in children:
        child.terminate()
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
        if child.exitcode is None:
            child.kill()
            child.join(1.0)


class ExitLimit:
    """Ends the process with `code` if it, or the `with` block, takes more than `EXIT_S` seconds from now on."""

    def __init__(self, code: int) -> None:
        self._code = code
        self._called_off = threading.Event()
        # Both now: once the interpreter ends, Python 3.12 starts no threads any more. The second one ends the process
        # where the first one cannot say why.
        for action in (self._end, self._end_silently):
            threading.Thread(target=action, name="mycelia-exit", daemon=True).start()

    def call_off(self) -> None:
        self._called_off.set()

    def _end(self) -> None:
        if not self._called_off.wait(EXIT_S):
            main = threading.main_thread()
            held_by = [t.name for t in threading.enumerate() if not t.daemon and t is not main]
            say_last_words(
                lambda: log.error(
                    event(
                        "exit_forced",
                        after_s=EXIT_S,
                        threads=held_by,
                        detail="the services have stopped; what did not end kept the process",
                    )
                )
            )
            os._exit(self._code)

    def _end_silently(self) -> None:
        if not self._called_off.wait(EXIT_S + LAST_WORDS_S):
            os._exit(self._code)

    def __enter__(self) -> ExitLimit:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.call_off()


def leave(code: int) -> int:
    """Let the process end with `code`, within `EXIT_S` seconds. For commands that are the process.

    A signal that comes meanwhile ends it at once: Python's own handler would raise `KeyboardInterrupt` in whatever is being
    cleaned up, and print its traceback.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    ExitLimit(code)
    return code
