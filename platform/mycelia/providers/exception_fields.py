"""An exception as data: the chain of what was raised, with types, texts and places; without the values of variables."""

from __future__ import annotations

import traceback
from typing import Any

from mycelia.errors import class_name_of, text_of

__all__ = ["exception_fields"]

MAX_EXCEPTIONS = 10
"""Of a chain and its groups together."""
MAX_FRAMES = 30
"""Of one exception: the first ten, and those nearest to the error."""
MAX_MESSAGE = 2000
MAX_NOTES = 10


def exception_fields(error: BaseException) -> list[dict[str, Any]]:
    """`error`, then what it was raised from, then that one's, …; an exception group's members after the group. Never raises.

    Each with `type`, `module`, `message`, `frames` (`file:line function`, the outermost first), and where there are some `notes`;
    `is_cause` of what was named by `raise … from`, `in_group` of a member.
    """
    chain: list[dict[str, Any]] = []
    try:
        _add(chain, error, {}, set())
    except BaseException as exc:  # noqa: BLE001  causes and notes may be properties of the application's
        chain.append({"type": class_name_of(exc), "message": "(the rest cannot be had)"})
    return chain


def _add(
    chain: list[dict[str, Any]], error: BaseException, said: dict[str, Any], seen: set[int]
) -> None:
    at: BaseException | None = error
    while at is not None and id(at) not in seen and len(chain) < MAX_EXCEPTIONS:
        seen.add(id(at))
        chain.append(_one(at) | said)
        if isinstance(at, BaseExceptionGroup):
            for member in at.exceptions:
                _add(chain, member, {"in_group": True}, seen)
        cause = at.__cause__
        said = {"is_cause": True} if cause is not None else {}
        at = cause or (None if at.__suppress_context__ else at.__context__)


def _one(error: BaseException) -> dict[str, Any]:
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    if len(places) > MAX_FRAMES:
        places = [*places[:10], f"… {len(places) - MAX_FRAMES} more", *places[10 - MAX_FRAMES :]]
    fields: dict[str, Any] = {
        "type": class_name_of(error),
        "module": str(type(error).__module__),
        "message": _cut(text_of(error)),
        "frames": [_cut(place) for place in places],
    }
    notes = getattr(error, "__notes__", None)
    if isinstance(notes, list) and notes:
        fields["notes"] = [_cut(str(note)) for note in notes[:MAX_NOTES]]
    return fields


def _cut(text: str) -> str:
    text = text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "…"
