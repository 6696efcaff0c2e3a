"""Says when the event loop is blocked, for how long and by what; nothing else in a process can, while it is.

The loop beats every `BEAT` seconds. A thread looks at the beats: `Blockages` decides what they mean, `LoopWatch` takes
the stack of the loop's thread and writes the lines.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

from mycelia.log_event import event

__all__ = ["BEAT", "Begun", "Blockages", "LoopWatch", "Over", "stack_of"]

log = logging.getLogger("mycelia.runtime")

BEAT = 0.25
"""Seconds between two beats, and between two looks at them. Four wake-ups a second cost nothing that can be measured."""

MAX_FRAMES = 12
"""Innermost frames that a line shows."""

WORKER_PREFIX = "mycelia:work:"
"""What the names of workers' tasks begin with (`Lane`)."""


@dataclass(frozen=True, slots=True)
class Begun:
    """The loop is blocked, for `seconds` so far."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Over:
    """The loop is free again, after `seconds`."""

    seconds: float


class Blockages:
    """Decides from beats whether the loop is blocked. No clock, no thread.

    A silence in which this process neither looked nor worked was not the loop's: the machine slept, or the process was
    stopped or starved. If it worked and could not look, something held the interpreter lock, and that is a blockage.

    Args:
        after: seconds of silence beyond a beat's own that make a blockage.
        now: when it begins to look, as every time here on the monotonic clock.
        cpu: seconds this process has computed until then.
    """

    def __init__(self, after: float, now: float, cpu: float) -> None:
        self._after = after
        self._looked_at = now
        self._cpu = cpu
        self._excused_until = now
        self._blocked_since: float | None = None
        """When the beat was due that did not come."""

    def look(self, now: float, beat_at: float, cpu: float) -> Begun | Over | None:
        """What has changed since the last look, if anything: each blockage begins once and is over once."""
        gap, worked = now - self._looked_at, cpu - self._cpu
        self._looked_at, self._cpu = now, cpu
        if self._blocked_since is not None:
            if beat_at < self._blocked_since:
                return None
            began, self._blocked_since = self._blocked_since, None
            return Over(beat_at - began)
        if gap - BEAT >= self._after and worked < gap / 2:
            self._excused_until = now
        due = max(beat_at, self._excused_until) + BEAT
        if now - due < self._after:
            return None
        self._blocked_since = due
        return Begun(now - due)


class LoopWatch:
    """Watches the running event loop while it is open: `with LoopWatch(1.0): …` in a coroutine, one in a process.

    A blockage is an ERROR `event_loop_blocked` with the call and the stack that block it, as soon as it is seen, and a
    WARNING `event_loop_free` with its whole length when it is over.

    Args:
        blocked_after: seconds; 0 watches nothing.
    """

    def __init__(self, blocked_after: float) -> None:
        self._blocked_after = blocked_after
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._beat_at = 0.0

    def __enter__(self) -> LoopWatch:
        if self._blocked_after > 0:
            self._loop = asyncio.get_running_loop()
            self._loop_thread = threading.get_ident()
            self._beat()
            self._thread = threading.Thread(
                target=self._watch, name="mycelia-loop-watch", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ending.set()
        if self._timer is not None:
            self._timer.cancel()
        if self._thread is not None:
            self._thread.join(1.0)  # it may be writing a line

    def _beat(self) -> None:
        self._beat_at = time.monotonic()
        self._timer = self._loop.call_later(BEAT, self._beat)

    # --- in the thread ------------------------------------------------------------------------

    def _watch(self) -> None:
        blockages = Blockages(self._blocked_after, time.monotonic(), time.process_time())
        call: str | None = None
        while not self._ending.wait(BEAT):
            found = blockages.look(time.monotonic(), self._beat_at, time.process_time())
            if isinstance(found, Begun):
                # First of all: the loop may go on at any moment, and the stack would be another one.
                stack = stack_of(sys._current_frames().get(self._loop_thread))
                call = _current_call(self._loop)
                log.error(
                    event(
                        "event_loop_blocked",
                        blocked_s=round(found.seconds, 2),
                        call=call,
                        stack=stack,
                    )
                )
            elif isinstance(found, Over):
                log.warning(event("event_loop_free", blocked_s=round(found.seconds, 2), call=call))


def _current_call(loop: asyncio.AbstractEventLoop) -> str | None:
    """`service.method` of the worker that the loop runs, or the name of another task; `None` between two."""
    task = asyncio.current_task(loop)
    return task.get_name().removeprefix(WORKER_PREFIX) if task is not None else None


def stack_of(frame: FrameType | None) -> str:
    """The stack on one line, innermost frame first: `planes.py:41 lookup < worker.py:160 run < …`.

    Reads no source files: the frames belong to a thread that may go on meanwhile.
    """
    found: list[tuple[str, int, str]] = []
    while frame is not None and len(found) < MAX_FRAMES:
        found.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return " < ".join(f"{Path(file).name}:{line} {name}" for file, line, name in found)
