"""The decorators that declare entrypoints: their types, their help, and what is said of a mistake in one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from mycelia.errors import ConfigError
from mycelia.runtime.methods import function_in
from mycelia.runtime.mistakes import mistake_in, refuse, signature_of, written

__all__ = [
    "ENTRYPOINTS_ATTRIBUTE",
    "BareOrWithOptions",
    "Marks",
    "bare_decorator_of",
    "decorator_of",
    "register_entrypoint",
]

ENTRYPOINTS_ATTRIBUTE = "nameko_entrypoints"
"""The attribute by which `nameko run` finds service classes (nameko/extensions.py:18)."""

P = ParamSpec("P")
Method = TypeVar("Method", bound=Callable[..., Any])


class Marks(Protocol):
    """What `@timer(60)` is: it leaves the method, and the method's type, as they are."""

    def __call__(self, method: Method, /) -> Method: ...


class BareOrWithOptions(Protocol[P]):
    """A decorator that may be used as `@rpc` and as `@rpc(…)`."""

    @overload
    def __call__(self, method: Method, /) -> Method: ...

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Marks: ...


def decorator_of(name: str, cls: Callable[P, Any], about: str) -> Callable[P, Marks]:
    """A decorator `@name(…)` that takes what `cls` takes.

    Args:
        about: the first lines of its help; the options' own follow.
    """
    decorator: Callable[P, Marks] = _decorator(name, cls, about)
    return decorator


def bare_decorator_of(name: str, cls: Callable[P, Any], about: str) -> BareOrWithOptions[P]:
    """As `decorator_of()`, for an entrypoint that needs no argument: `@name` is enough."""
    decorator: BareOrWithOptions[P] = _decorator(name, cls, about)
    return decorator


def _decorator(name: str, cls: Any, about: str) -> Any:
    def decorator(*args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and function_in(args[0]) is not None:
            return declare(name, cls, args[0], (), {})

        def mark(method: Callable[..., Any], /) -> Callable[..., Any]:
            return declare(name, cls, method, args, kwargs)

        return mark

    decorator.__name__ = decorator.__qualname__ = name
    decorator.__module__ = cls.__module__
    decorator.__doc__ = f"{about}\n\n{_options_of(cls)}"
    decorator.__signature__ = signature_of(cls)  # type: ignore[attr-defined]  # read by inspect and help()
    return decorator


def declare(
    name: str,
    cls: Callable[..., Any],
    method: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Callable[..., Any]:
    """Mark `method` as started by `cls(*args, **kwargs)`, written as `@name(…)`.

    Raises:
        ConfigError: one line with class, method and decorator: arguments that do not fit, or that `cls` refuses.
    """
    what = f"@{written(name, args, kwargs)}"
    where = getattr(method, "__qualname__", repr(method)).rpartition("<locals>.")[2]
    problem = mistake_in(cls, args, kwargs) if inspect.isclass(cls) else None
    if problem is not None:
        refuse(where, what, problem)
    try:
        entrypoint = cls(*args, **kwargs)
    except (ConfigError, TypeError, ValueError) as exc:
        refuse(where, what, str(exc))
    register_entrypoint(method, entrypoint)
    return method


def register_entrypoint(method: Callable[..., Any], entrypoint: Any) -> None:
    """Mark `method` as started by `entrypoint`, where `nameko run` and the container look for it."""
    marked = function_in(method) or method
    entrypoints: set[Any] | None = getattr(marked, ENTRYPOINTS_ATTRIBUTE, None)
    if entrypoints is None:
        entrypoints = set()
        setattr(marked, ENTRYPOINTS_ATTRIBUTE, entrypoints)
    entrypoints.add(entrypoint)


_ARGS = re.compile(r"^Args:\n((?:    .*\n?|\n)+)", re.MULTILINE)
_ARG = re.compile(r"^    (\w+): .*\n?(?:     .*\n?|\n)*", re.MULTILINE)


def _options_of(cls: type) -> str:
    """What `cls` takes, each once, of its `Args:` and those of the classes that it derives from."""
    taken = signature_of(cls).parameters
    args: dict[str, str] = {}
    for base in cls.__mro__:
        section = _ARGS.search(inspect.cleandoc(base.__doc__ or ""))
        for arg in () if section is None else _ARG.finditer(section[1]):
            if arg[1] in taken:
                args.setdefault(arg[1], arg[0].rstrip())
    return "\n".join(["Args:", *args.values()])
