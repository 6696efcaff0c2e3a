"""A forgotten `await` on a proxy or a dispatcher is an error of the worker that forgot it.

    self.emit("order_placed", order)      # a coroutine that nobody runs: the event is never sent

Python says so in a warning, when such a coroutine is thrown away, and the worker ends as if all were well. The word is
taken up where Python gives it, `warnings._warn_unawaited_coroutine` (Objects/genobject.c, `_PyGen_Finalize`), in the
context of the worker: at the line itself for a bare expression, at the method's end for a variable. So a worker that
forgets nothing pays nothing, and one that hands the coroutine to a task or to `gather()` forgets nothing.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import CoroutineType, FrameType
from typing import Any

from mycelia.call import Call, CallKind, get_current_call
from mycelia.errors import RuntimeStateError

__all__ = ["forgotten", "returned", "take_forgotten", "watch_forgotten_awaits"]

PACKAGE = str(Path(__file__).parents[1])
"""Whose coroutines are watched: those that users get from us."""

STANDARD_LIBRARY = str(Path(warnings.__file__).parent)

HOOK = "_warn_unawaited_coroutine"

forgotten: dict[Call, str] = {}
"""What running workers have forgotten to await, with the place. Nearly always empty, which costs least to ask."""


def watch_forgotten_awaits() -> None:
    """From now on `forgotten` is filled. Idempotent; without effect where Python has no such place."""
    plain: Callable[[Any], None] | None = getattr(warnings, HOOK, None)
    if plain is None or plain.__module__ == __name__:
        return

    def take_up(coroutine: Any) -> None:
        call = get_current_call()
        if call is None or not coroutine.cr_code.co_filename.startswith(PACKAGE):
            plain(coroutine)
        else:
            forgotten.setdefault(call, f"{_what(coroutine)}{_where()}")

    setattr(warnings, HOOK, take_up)


def take_forgotten(call: Call) -> RuntimeStateError | None:
    """The error of a worker that has forgotten an `await`; asked at its end, whatever that is."""
    what = forgotten.pop(call, None)
    return None if what is None else _error(what)


def returned(coroutine: CoroutineType[Any, Any, Any]) -> RuntimeStateError:
    """The error of a worker whose result is a coroutine: `return self.planes.get(1)`."""
    what = _what(coroutine)
    coroutine.close()  # or Python would speak of it once more
    return _error(f"{what}, which the method returns")


def _error(what: str) -> RuntimeStateError:
    return RuntimeStateError(
        f"`await` is missing before {what}: it was never run, so nothing was sent."
    )


def _what(coroutine: Any) -> str:
    """As a user would name it; a coroutine of the user's own by its name."""
    names = coroutine.cr_frame.f_locals if coroutine.cr_frame is not None else {}
    call = names.get("call")
    if isinstance(call, Call):
        target = call.target
        return target.name if call.kind is CallKind.RPC else f'the publishing of "{target.method}"'
    if hasattr(names.get("route"), "routing_key"):
        return str(names["route"].routing_key)
    if "source" in names and "name" in names:
        return f'the publishing of "{names["name"]}"'
    return str(coroutine.__qualname__)


def _where() -> str:
    """The line of the user's, if it is on the stack: a bare expression throws its value away at once."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    if frame is None or frame.f_code.co_filename.startswith(STANDARD_LIBRARY):
        return ""  # the loop's or the thread's: the method had ended
    return f" ({Path(frame.f_code.co_filename).name}, line {frame.f_lineno})"
