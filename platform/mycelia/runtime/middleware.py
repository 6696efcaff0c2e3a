"""Where middleware comes from: `mycelia: middleware:` in the configuration, and plain middleware given in code."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from mycelia.call import Direction, Middleware, MiddlewareSource, Target
from mycelia.errors import ConfigError, describe
from mycelia.redaction import shown_value

__all__ = ["Around", "as_source", "load_middleware"]


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


def load_middleware(entries: Iterable[str | Mapping[str, Any]]) -> list[MiddlewareSource]:
    """What the entries of the configuration name, in their order.

    A dotted path names an `async def (call, next)`, put around every call in every direction; or an object with a method
    `middleware(direction, target)`; or a class of such objects, or of such functions, made without arguments. An entry
    `{path: settings}` names a class, made with the settings as keyword arguments.

    Raises:
        ConfigError: a path that cannot be imported, or names something else; settings that do not fit.
    """
    return [_source(entry) for entry in entries]


def _source(entry: str | Mapping[str, Any]) -> MiddlewareSource:
    if isinstance(entry, str):
        path, settings = entry, None
    else:
        path, settings = _with_settings(entry)
    where = f'mycelia.middleware: "{path}"'
    found = _find(path)
    if inspect.isclass(found):
        try:
            found = found(**(settings or {}))
        except ConfigError as exc:
            raise ConfigError(f"{where}: {exc}") from exc
        except Exception as exc:
            how = "with its settings" if settings else "without arguments"
            raise ConfigError(f"{where} cannot be made {how}: {describe(exc)}.") from exc
    elif settings is not None:
        raise ConfigError(f"{where} is no class, and takes no settings. Name it without them.")
    return as_source(found, where)


def _with_settings(entry: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if len(entry) == 1:
        ((path, settings),) = entry.items()
        if isinstance(settings, dict) and all(map(_is_name, settings)):
            return path, settings
    raise ConfigError(
        f"mycelia.middleware: {shown_value('mycelia.middleware', entry)}: expected a dotted path, or one with the settings of its class: "
        '{"shop.limits.Limit": {"per_second": 5}}.'
    )


def _is_name(key: object) -> bool:
    return isinstance(key, str) and key.isidentifier()


def as_source(given: Middleware | MiddlewareSource, where: str) -> MiddlewareSource:
    """A source of middleware as it is; plain middleware as a source, around every call in every direction.

    Raises:
        ConfigError: it is neither; said with `where` it was given.
    """
    if not inspect.isclass(given):
        if callable(getattr(given, "middleware", None)):
            source: MiddlewareSource = given  # type: ignore[assignment]  # just found to be one
            return source
        if inspect.iscoroutinefunction(given) or inspect.iscoroutinefunction(
            getattr(given, "__call__", None)  # noqa: B004  an object whose `__call__` is `async def`
        ):
            return Around(given)  # type: ignore[arg-type]  # just found to be one
    shown = f"class {given.__name__}" if inspect.isclass(given) else type(given).__name__
    raise ConfigError(
        f"{where} is {shown}; expected an `async def (call, next)`, or an object "
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
