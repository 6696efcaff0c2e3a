"""Where in a value is the part that cannot be carried? Asked only after an encoder has refused the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import msgspec

from mycelia.errors import UnserializableValueError

__all__ = ["unserializable"]

_MAX_DEPTH = 100
"""Deeper than people nest on purpose; below it the path would be longer than a message should be."""
_MAX_LOOKED_AT = 10_000


def unserializable(
    value: object,
    content_type: str,
    encode: Callable[[Any], object],
    cause: BaseException,
) -> UnserializableValueError:
    """Make the error that names the first part of `value` that `encode` refuses, by its path and type.

    The result is raised by the caller (`raise unserializable(...) from exc`).
    """
    if isinstance(cause, RecursionError):
        # Every part of a deep value is refused, each after a long descent: do not ask the encoder again and again.
        path, culprit = _cycle(value), _CYCLE
        if path is None:
            return UnserializableValueError(
                f"$: the value is nested too deeply to be carried by {content_type}. "
                "Send it flat, as a list of parts that name each other."
            )
    else:
        path, culprit = _locate(value, "$", encode, (), 0)
    if culprit is _CYCLE:
        text = f"{path}: the value holds itself and cannot be carried by {content_type}."
    else:
        text = (
            f"{path}: object of type {type(culprit).__name__} cannot be carried by {content_type} "
            f"({_reason(cause)}). Send numbers, text, lists, dicts, records, dates, Decimal, UUID or bytes."
        )
    return UnserializableValueError(text)


def _reason(cause: BaseException) -> str:
    text = str(cause) or type(cause).__name__
    return text if len(text) <= 200 else text[:200] + "…"


_CYCLE = object()


def _cycle(value: object) -> str | None:
    """The path to a part that holds itself, looked for among the first `_MAX_LOOKED_AT` parts; `None` for none."""
    looked_at = 0
    path = [("$", id(value), _parts(value))]
    while path:
        for step, part in path[-1][2]:
            looked_at += 1
            if any(part_id == id(part) for _, part_id, _ in path):
                return "".join(name for name, _, _ in path) + step
            if looked_at > _MAX_LOOKED_AT or len(path) >= _MAX_DEPTH:
                continue
            path.append((step, id(part), _parts(part)))
            break
        else:
            path.pop()
    return None


def _locate(
    value: object,
    path: str,
    encode: Callable[[Any], object],
    parents: tuple[int, ...],
    depth: int,
) -> tuple[str, object]:
    """The path and value of the innermost part that `encode` refuses, given that it refuses `value`."""
    if id(value) in parents:
        return path, _CYCLE
    if depth < _MAX_DEPTH:
        for step, part in _parts(value):
            if _is_refused(part, encode):
                return _locate(part, path + step, encode, (*parents, id(value)), depth + 1)
    return path, value


def _is_refused(value: object, encode: Callable[[Any], object]) -> bool:
    try:
        encode(value)
    except Exception:  # noqa: BLE001  # an encoder runs the application's hooks, which may raise anything
        return True
    return False


def _parts(value: object) -> Iterator[tuple[str, object]]:
    """The parts of a container or record, each with its step in the path."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield (f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]"), part
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield f".{name}", getattr(value, name)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield f".{field.name}", getattr(value, field.name, None)
    elif isinstance(value, (Sequence, Set)) and not isinstance(value, (str, bytes, bytearray)):
        for index, part in enumerate(value):
            yield f"[{index}]", part
