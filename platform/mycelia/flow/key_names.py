"""What a key function reads, where that can be told: whether two of them give the same key. Pure.

`"origin"`, `lambda f: f.origin` and `lambda f: f["origin"]` read one field. A function of that form is told by its code: it is the same
as what Python makes of the same words. Of any other function is known only that it is the same as itself.
"""

from __future__ import annotations

from functools import lru_cache
from operator import attrgetter, itemgetter
from types import CodeType, FunctionType
from typing import Any, Final, NamedTuple

__all__ = ["KeyName", "key_name"]

_MOST_FIELDS: Final = 6


class KeyName(NamedTuple):
    """A key, as far as it is known. Two that are equal are the same key of the same record."""

    fields: tuple[str, ...] = ()
    """The names of the fields that it is made of, in their order."""
    function: object = None
    """Or the function that gives it."""

    def tells(self, other: KeyName) -> bool:
        """Whether records with one key of this kind have one of the other kind: it holds what the other is made of."""
        return self == other or (len(other.fields) == 1 and other.fields[0] in self.fields)


def key_name(key: object) -> KeyName:
    """The name of what `key_by()` or `Log(key=)` were given: a field's name, or a function."""
    if isinstance(key, str):
        return KeyName((key,))
    if isinstance(key, attrgetter | itemgetter):
        names: tuple[Any, ...] = key.__reduce__()[1]  # type: ignore[assignment]  # these two give their class and arguments
        if all(isinstance(name, str) and "." not in name for name in names):
            return KeyName(names)
    elif isinstance(key, FunctionType) and not key.__defaults__ and not key.__closure__:
        fields = _fields_read_by(key.__code__)
        if fields:
            return KeyName(fields)
    return KeyName(function=key)


def _fields_read_by(code: CodeType) -> tuple[str, ...]:
    """The fields that a function of one record gives, where it does nothing else."""
    if code.co_argcount != 1 or code.co_kwonlyargcount or code.co_flags & 0x0C or code.co_freevars:
        return ()
    fields: tuple[str, ...] = code.co_names
    written = "x.{}"
    if not fields:
        fields = tuple(one for one in code.co_consts if isinstance(one, str))
        written = "x[{!r}]"
    if not 0 < len(fields) <= _MOST_FIELDS:
        return ()
    words = [written.format(name) for name in fields]
    body = words[0] if len(words) == 1 else f"({', '.join(words)})"
    return fields if _does(code) == _does(_compiled(f"lambda x: {body}")) else ()


def _does(code: CodeType) -> tuple[Any, ...]:
    """What a function does, without where it stands and what its record is called."""
    consts = [one for one in code.co_consts if one is not None]
    return code.co_code, code.co_names, consts, len(code.co_varnames)


@lru_cache(maxsize=256)
def _compiled(function: str) -> CodeType:
    made = compile(function, "", "eval")
    return next(one for one in made.co_consts if isinstance(one, CodeType))
