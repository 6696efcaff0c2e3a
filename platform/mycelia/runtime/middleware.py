"""Where middleware comes from: `mycelia: middleware:` in the configuration, and plain middleware given in code."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from typing import Any

from mycelia.call import Direction, Middleware, MiddlewareSource, Target
from mycelia.errors import ConfigError, describe

__all__ = ["Around", "load_middleware"]


class Around:
    """Plain middleware as a source: around every call, or around those of one direction."""

    def __init__(self, layer: Middleware, direction: Direction | None = None) -> None:
        self._layer = layer
        self._direction = direction

    @classmethod
    def each(
        cls, inbound: Iterable[Middleware] = (), outbound: Iterable[Middleware] = ()
    ) -> list[Around]:
        """A source for each of `inbound` and `outbound`, in their order."""
        return [cls(layer, Direction.INBOUND) for layer in inbound] + [
            cls(layer, Direction.OUTBOUND) for layer in outbound
        ]

    def middleware(self, direction: Direction, target: Target) -> Middleware | None:
        return self._layer if self._direction in (None, direction) else None

    def __repr__(self) -> str:
        return f"Around({self._layer!r})"


def load_middleware(paths: Iterable[str]) -> list[MiddlewareSource]:
    """What the dotted paths of the configuration name, in their order.

    A path names an `async def (call, next)`, put around every call in every direction; or an object with a method
    `middleware(direction, target)`; or a class of such objects, made without arguments.

    Raises:
        ConfigError: a path that cannot be imported, or names something else.
    """
    return [_source(path) for path in paths]


def _source(path: str) -> MiddlewareSource:
    found = _find(path)
    if inspect.isclass(found):
        try:
            found = found()
        except Exception as exc:
            raise ConfigError(
                f'mycelia.middleware: "{path}" cannot be made without arguments: {describe(exc)}.'
            ) from exc
    if callable(getattr(found, "middleware", None)):
        source: MiddlewareSource = found
        return source
    if inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(
        getattr(found, "__call__", None)  # noqa: B004  an object whose `__call__` is `async def`
    ):
        return Around(found)
    raise ConfigError(
        f'mycelia.middleware: "{path}" is {type(found).__name__}; expected an `async def (call, next)`, or an object '
        "or class with a method middleware(direction, target)."
    )


def _find(path: str) -> Any:
    module_name, _, name = path.replace(":", ".").rpartition(".")
    if not module_name or not name:
        raise ConfigError(
            f'mycelia.middleware: "{path}": expected a dotted path, such as "shop.tracing.trace".'
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as exc:
        raise ConfigError(
            f'mycelia.middleware: "{path}": {module_name} cannot be imported: {exc}.'
        ) from exc
    try:
        return getattr(module, name)
    except AttributeError:
        raise ConfigError(f'mycelia.middleware: "{path}": {module_name} has no "{name}".') from None
