"""What users' code ends with, as an error of theirs: none of it ends the process, or a task without a word."""

from __future__ import annotations

import asyncio

from mycelia.errors import FlowError, describe

__all__ = ["error_of", "is_called_off"]


def error_of(exc: BaseException) -> Exception:
    """An `Exception` as it is; of what is none (`SystemExit`, a cancellation of something that was awaited) an error that says so.

    A task that a `SystemExit` leaves ends the event loop, and one that a `CancelledError` leaves just ends.
    """
    if isinstance(exc, Exception):
        return exc
    error = FlowError(f"it ended with {describe(exc)}")
    error.__cause__ = exc
    return error


def is_called_off(exc: BaseException) -> bool:
    """Whether it is the cancellation of the running task itself, and not of something that it awaited."""
    task = asyncio.current_task()
    is_cancelled = isinstance(exc, asyncio.CancelledError)
    return is_cancelled and (task is None or task.cancelling() > 0)
