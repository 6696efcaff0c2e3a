"""SIGTERM and SIGINT of a running process: the first stops it in good order, the second at once, come what may.

A handler on the event loop never runs while the loop is blocked; one in Python never runs while a C library waits. So
the interpreter is told to write each signal's number into a pipe (`signal.set_wakeup_fd`), and a thread reads it: it
asks the loop to stop, and where the loop does not react to the second signal, ends the process itself.

Children that are forked (`multiprocessing`, `os.fork`) inherit handlers and pipe. They are given the default handlers
back before a signal can reach them; otherwise ending a child would stop the service instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from enum import Enum
from types import FrameType, TracebackType
from typing import Any, NoReturn

from mycelia.log_event import event
from mycelia.runtime.loop_watch import stack_of

__all__ = [
    "LAST_WORDS_S",
    "SIGNALS",
    "SignalCount",
    "Signals",
    "Step",
    "exit_at_once",
    "say_last_words",
]

log = logging.getLogger("mycelia.cli")

SIGNALS = (signal.SIGTERM, signal.SIGINT)

ECHO_S = 0.5
"""Signals closer together than this are one: `timeout` and some supervisors signal the process and then its group."""

REACTION_S = 1.0
"""Seconds in which the event loop must react to a second signal."""

LAST_WORDS_S = 1.0
"""Seconds for the last line: standard error may be a pipe that nobody reads, or locked by the thread that hangs."""

END = 0
"""What ends the thread when it is read from the pipe; no signal has this number."""


class Step(Enum):
    """What a signal asks for."""

    NOTHING = "nothing"
    STOP = "stop"
    KILL = "kill"


class SignalCount:
    """What the next signal means. No clock."""

    def __init__(self) -> None:
        self._count = 0
        self._last_at = -math.inf

    def next(self, now: float) -> Step:
        """The step for a signal at `now`, on the monotonic clock."""
        if now - self._last_at < ECHO_S:
            return Step.NOTHING
        self._last_at = now  # of an echo not: somebody who keeps pressing Ctrl-C means it
        self._count += 1
        return Step.STOP if self._count == 1 else Step.KILL


def exit_at_once(code: int, say: Callable[[], None]) -> NoReturn:
    """End the process now, after a moment for a last line of the log: no clean-up, no waiting for threads or children.

    While the interpreter runs; once it ends, Python 3.12 starts no threads any more.
    """
    speaker = threading.Thread(
        target=say_last_words, args=(say,), name="mycelia-last-words", daemon=True
    )
    speaker.start()
    speaker.join(LAST_WORDS_S)
    os._exit(code)


def say_last_words(say: Callable[[], None]) -> None:
    """Log by `say()`, and write what the streams hold back. May wait for ever: call it where nobody waits for it."""
    say()
    sys.stdout.flush()
    sys.stderr.flush()


class Signals:
    """Receives signals while it is open, `with Signals(on_step): …`, on the main thread, inside the running loop.

    Args:
        on_step: called on the loop with what a signal asks for, and its name.
    """

    def __init__(self, on_step: Callable[[Step, str], None]) -> None:
        self._on_step = on_step
        self._count = SignalCount()
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        self._loop = asyncio.get_running_loop()
        self._main_thread = threading.get_ident()
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        _protect_children(self)
        self._others_fd = self._take_wakeup_fd()
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        self._thread = threading.Thread(target=self._receive, name="mycelia-signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _protect_children(None)
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        current = self._take_wakeup_fd(self._others_fd)
        if (
            current != self._write_end
        ):  # somebody has taken it meanwhile, and is the one to give it back
            self._take_wakeup_fd(current)
        os.write(self._write_end, bytes((END,)))
        self._thread.join(REACTION_S + LAST_WORDS_S)
        os.close(self._write_end)
        os.close(self._read_end)

    def _take_wakeup_fd(self, fd: int | None = None) -> int:
        wanted = self._write_end if fd is None else fd
        return signal.set_wakeup_fd(wanted, warn_on_full_buffer=False)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Python's part of the handler. The pipe has the number, unless somebody else's pipe has been put in place
        since (`add_signal_handler()` of asyncio's loop does)."""
        current = self._take_wakeup_fd()
        if current != self._write_end:
            self._take_wakeup_fd(current)
            with contextlib.suppress(BlockingIOError):
                os.write(self._write_end, bytes((number,)))

    # --- in the thread ------------------------------------------------------------------------

    def _receive(self) -> None:
        while True:
            for number in os.read(self._read_end, 64):
                if number == END:
                    return
                if (
                    self._others_fd >= 0
                ):  # uvloop's, which runs the handlers of other signals when it reads
                    with contextlib.suppress(OSError):
                        os.write(self._others_fd, bytes((number,)))
                if number in SIGNALS:
                    self._take(signal.Signals(number))

    def _take(self, number: signal.Signals) -> None:
        step = self._count.next(time.monotonic())
        if step is Step.NOTHING:
            return
        reacted = threading.Event()

        def react() -> None:
            reacted.set()
            self._on_step(step, number.name)

        self._loop.call_soon_threadsafe(react)
        if step is Step.KILL and not reacted.wait(REACTION_S):
            code = 128 + number
            stack = stack_of(sys._current_frames().get(self._main_thread))
            exit_at_once(
                code,
                lambda: log.error(
                    event(
                        "killed",
                        signal=number.name,
                        exit_code=code,
                        detail=f"the event loop is blocked and did not react for {REACTION_S:g} s; "
                        "unfinished work goes back to its queues",
                        stack=stack,
                    )
                ),
            )

    # --- in a forked child --------------------------------------------------------------------

    def forget(self) -> None:
        """In a child: back to the defaults; the system's for SIGINT too, as Python's could raise in the midst of this."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        for fd in (self._read_end, self._write_end):
            os.close(fd)


# --- children ------------------------------------------------------------------------------------

_listening: Signals | None = None
_masks = threading.local()
_is_registered = False


def _protect_children(signals: Signals | None) -> None:
    """From now on, let forked children forget `signals`."""
    global _listening, _is_registered
    _listening = signals
    if not _is_registered:
        _is_registered = True
        os.register_at_fork(
            before=_before_fork,
            after_in_parent=_unblock,
            after_in_child=_after_fork_in_child,
        )


def _before_fork() -> None:
    # A child's first moments have our handlers, which write into our pipe. A signal must not reach it before that ends.
    _masks.before = (
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if _listening is not None else None
    )


def _unblock() -> None:
    before = getattr(_masks, "before", None)
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _after_fork_in_child() -> None:
    global _listening
    signals, _listening = _listening, None
    if signals is not None:
        signals.forget()
    _unblock()
