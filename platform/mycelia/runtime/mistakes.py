"""Mistakes in declarations, each said in one line with the place, what was written there, and what was meant."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ForwardRef, NoReturn, Unpack, get_args, get_origin, get_type_hints

from mycelia.call import unknown_option
from mycelia.errors import ConfigError
from mycelia.handover import hand_over_mistake
from mycelia.redaction import redact_words

__all__ = ["Hint", "class_being_written", "mistake_in", "refuse", "signature_of", "written"]

MAX_SHOWN = 60
"""Characters of one argument that a line shows."""


@functools.lru_cache(maxsize=256)
def signature_of(cls: type) -> inspect.Signature:
    """What a class is made with; options of `**options: Unpack[…]` by their names, with their defaults where known."""
    init: Callable[..., Any] = cls.__init__  # type: ignore[misc]  # it is only looked at
    parameters = list(inspect.signature(init).parameters.values())[1:]
    known: list[inspect.Parameter] = []
    for parameter in parameters:
        options = _options_of(init, parameter)
        if options is None:
            known.append(parameter.replace(annotation=Hint.of(parameter.annotation)))
            continue
        known += [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=_default(cls, name),
                annotation=Hint.of(hint),
            )
            for name, hint in options.items()
        ]
    return inspect.Signature(known)


class Hint(str):
    """A type as it is written; `help()` shows it without quotes."""

    __slots__ = ()

    @classmethod
    def of(cls, hint: Any) -> Any:
        text = hint.__forward_arg__ if isinstance(hint, ForwardRef) else hint
        return cls(text) if isinstance(text, str) else text

    def __repr__(self) -> str:
        return str(self)


def _options_of(init: Any, parameter: inspect.Parameter) -> dict[str, Any] | None:
    """The options behind `**options: Unpack[SomeTypedDict]`; `None` where there is no such thing."""
    if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
        return None

    def holder() -> None: ...

    holder.__annotations__ = {"options": parameter.annotation}
    try:
        hint = get_type_hints(holder, init.__globals__)["options"]
    except (NameError, AttributeError):  # a name that only type checkers see
        return None
    if get_origin(hint) is not Unpack:
        return None
    (arguments,) = get_args(hint)
    return dict(arguments.__annotations__)


def _default(cls: type, name: str) -> Any:
    for base in cls.__mro__:
        init = vars(base).get("__init__")
        if inspect.isfunction(init):
            parameter = inspect.signature(init).parameters.get(name)
            if parameter is not None:
                return parameter.default
    return ...


def mistake_in(cls: type, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Why `cls` cannot be made with these arguments; `None` if they fit."""
    try:
        signature = signature_of(cls)
    except (TypeError, ValueError):
        return None  # a class whose signature nobody can read
    parameters = signature.parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        named = [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]
        for name in kwargs:
            if name not in named:
                return unknown_option(name, named)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as exc:
        return f"{exc}."
    return None


def written(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """A call as it stands in the code: `rpc(concurrency=3)`. Long values are cut, URIs hidden."""
    shown = [_shown(value) for value in args]
    shown += [f"{key}={_shown(value)}" for key, value in kwargs.items()]
    return f"{name}({', '.join(shown)})" if shown else name


def _shown(value: object) -> str:
    try:
        text = redact_words(repr(value))
    except Exception:  # noqa: BLE001  `__repr__` is the user's and may raise anything
        return f"<{type(value).__name__}>"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


def class_being_written() -> str:
    """The name of the class whose body is running, of those that called this; empty outside of one."""
    frame = sys._getframe(1)
    while frame is not None:
        names = frame.f_locals
        # A class body has these two; a function has them only if it means to deceive.
        if "__qualname__" in names and "__module__" in names and names is not frame.f_globals:
            return str(names["__qualname__"]).rpartition("<locals>.")[2]
        frame = frame.f_back  # type: ignore[assignment]  # the last one's is None
    return ""


def refuse(where: str, what: str, problem: str) -> NoReturn:
    """Raise the `ConfigError` for a mistake. Under `nameko run` the native process says it, without a traceback."""
    hand_over_mistake()
    text = f"{what}: {problem}"
    raise ConfigError(f"{where}: {text}" if where else text) from None
