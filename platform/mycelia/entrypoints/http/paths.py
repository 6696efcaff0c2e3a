"""Paths of `@http`: Starlette's `{name:int}`, werkzeug's `<int:name>` translated into it, and which path goes first.

Pure. A service's methods have no order of their own, so the order in which paths are tried comes from the paths.
"""

from __future__ import annotations

import re

__all__ = ["parameters_of", "shape_of", "specificity", "translate_path"]

_WERKZEUG = re.compile(
    r"<(?:(?P<converter>[a-zA-Z_]\w*)(?P<options>\([^>]*\))?:)?(?P<name>[a-zA-Z_]\w*)>"
)
_STARLETTE = re.compile(r"\{(?P<name>[a-zA-Z_]\w*)(?::(?P<converter>[a-zA-Z_]\w*))?\}")
_WERKZEUG_NAMES = {"string": "str", "default": "str"}

# What a segment accepts, the narrowest first.
_WIDTH = {"int": 1, "float": 1, "uuid": 1, "str": 3, "path": 4}
_STATIC, _CUSTOM = 0, 2


def translate_path(path: str) -> str:
    """`path` in Starlette's form: `/flights/<int:number>` becomes `/flights/{number:int}`.

    Raises:
        ValueError: it does not begin with "/", names a parameter twice, holds a bracket that is no parameter, or uses
            a werkzeug option that has no equal (`<int(min=1):n>`, `<any(a,b):x>`).
    """
    if not path.startswith("/"):
        raise ValueError(
            f'path {path!r}: expected one that begins with "/", such as "/flights/{{number:int}}".'
        )
    translated = _WERKZEUG.sub(_translate_parameter, path)
    rest = _STARLETTE.sub("", translated)
    if any(bracket in rest for bracket in "<>{}"):
        raise ValueError(
            f"path {path!r}: a bracket that is no parameter. Write {{name}}, {{name:int}}, <name> or <int:name>."
        )
    names = parameters_of(translated)
    if len(set(names)) < len(names):
        raise ValueError(f"path {path!r}: two parameters have the same name.")
    return translated


def _translate_parameter(match: re.Match[str]) -> str:
    converter = match["converter"]
    if match["options"] is not None or converter == "any":
        raise ValueError(
            f"path parameter {match[0]!r}: options of werkzeug's converters are not supported here. "
            f"Write {{{match['name']}}} and check the value in the method."
        )
    if converter is None:
        return f"{{{match['name']}}}"
    return f"{{{match['name']}:{_WERKZEUG_NAMES.get(converter, converter)}}}"


def parameters_of(path: str) -> list[str]:
    """The names of a translated path's parameters, in order."""
    return [match["name"] for match in _STARLETTE.finditer(path)]


def shape_of(path: str) -> str:
    """A translated path without its parameters' names: what two paths that match the same requests share."""
    return _STARLETTE.sub(lambda match: f"{{:{match['converter'] or 'str'}}}", path)


def specificity(path: str) -> tuple[tuple[int, str], ...]:
    """A sort key for translated paths: fixed text before `{n:int}` before `{name}` before `{rest:path}`.

    Compared segment by segment, so `/a/{x}` is tried before `/{x}/b`; otherwise alphabetically.
    """
    return tuple((_width(segment), segment) for segment in path.split("/"))


def _width(segment: str) -> int:
    widths = [
        _WIDTH.get(match["converter"] or "str", _CUSTOM) for match in _STARLETTE.finditer(segment)
    ]
    return max(widths, default=_STATIC)
