"""Which Mycelia extension runs what a service class declares.

Mycelia's own declarations run as they are. Nameko's (`nameko.rpc.Rpc`, `nameko.events.EventDispatcher`, …) are read
and given a Mycelia counterpart, which the module that defines the counterpart registers here, by dotted name:
nothing is imported from Nameko, which would bring eventlet into the process.

| declared | runs as |
|---|---|
| Mycelia's extension | itself |
| one of Nameko's with a counterpart, or a subclass that only adds to it | the counterpart |
| a subclass that overrides what Nameko's class does | itself, through the bridge; a dependency's `super()` reaches the counterpart |
| any other extension written for Nameko | itself, through the bridge |
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from mycelia.errors import ConfigError
from mycelia.runtime.extensions import DependencyProvider, Entrypoint

__all__ = [
    "bind_entrypoint",
    "counterpart_of",
    "dependency_counterpart",
    "entrypoint_counterpart",
    "entrypoint_is_shown_as",
    "extension_counterpart",
    "set_foreign_adapters",
]

Factory = TypeVar("Factory", bound=Callable[[Any], Any])
AdaptDependency = Callable[[Any, "type[Any] | None", "DependencyProvider | None"], Any]
AdaptEntrypoint = Callable[[Any], Any]

_counterparts: dict[str, Callable[[Any], Any]] = {}
_honours: dict[str, frozenset[str]] = {}
_adapters: list[tuple[AdaptDependency, AdaptEntrypoint]] = []

NAMEKO_DEPENDENCY = "nameko.extensions.DependencyProvider"
NAMEKO_ENTRYPOINT = "nameko.extensions.Entrypoint"

_HARMLESS = frozenset({"decorator", "attr_name", "method_name", "container"})
"""Attributes that a subclass may override without changing what the extension does."""


def counterpart_of(
    dotted_name: str, *, honours: Iterable[str] = ()
) -> Callable[[Factory], Factory]:
    """Register the decorated `factory(declared) -> extension` for declarations of the class `dotted_name`.

    It also serves subclasses that override nothing of the class but `__init__` and what the factory `honours`.
    """

    def register(factory: Factory) -> Factory:
        _counterparts[dotted_name] = factory
        _honours[dotted_name] = frozenset(honours)
        return factory

    return register


def set_foreign_adapters(
    adapt_dependency: AdaptDependency, adapt_entrypoint: AdaptEntrypoint
) -> None:
    """Register what runs extensions that have no counterpart.

    `adapt_dependency(declared, stock_cls, counterpart)`: the last two are given for a subclass of a stock class, so that
    what it inherits is the counterpart's work.
    """
    _adapters[:] = [(adapt_dependency, adapt_entrypoint)]


def dependency_counterpart(declared: object) -> DependencyProvider | None:
    """The provider that serves a class attribute; `None` when the attribute is no dependency at all."""
    if isinstance(declared, DependencyProvider):
        return declared
    if not _is_a(declared, NAMEKO_DEPENDENCY):
        return None
    provider: DependencyProvider
    found = _find(declared)
    if found is None:
        provider = _adapter(declared)[0](declared, None, None)
        return provider
    stock_cls, factory = found
    if _overridden(declared, stock_cls):
        provider = _adapter(declared)[0](declared, stock_cls, factory(declared))
        return provider
    provider = factory(declared)
    return provider


def entrypoint_counterpart(declared: object) -> Entrypoint:
    """The entrypoint that serves a declaration on a method.

    Raises:
        ConfigError: nothing here knows how to run it.
    """
    if isinstance(declared, Entrypoint):
        return declared
    if not _is_a(declared, NAMEKO_ENTRYPOINT):
        raise ConfigError(
            f"{_name(type(declared))}: this entrypoint is neither Mycelia's nor one written for Nameko."
        )
    found = _find(declared)
    entrypoint: Entrypoint
    if found is None or _overridden(declared, found[0]):
        entrypoint = _adapter(declared)[1](declared)
        return entrypoint
    entrypoint = found[1](declared)
    return entrypoint


def bind_entrypoint(declared: Any, container: Any, method_name: str) -> Entrypoint:
    """The entrypoint that serves `declared` in `container`, bound."""
    entrypoint: Entrypoint = entrypoint_counterpart(declared).bind(container, method_name)
    if entrypoint_is_shown_as(entrypoint) is entrypoint and not isinstance(declared, Entrypoint):
        # Third-party providers ask for the class of `worker_ctx.entrypoint`: let them find Nameko's. Not bound by
        # Nameko's `bind()`, which would make kombu consumers that nobody starts.
        likeness = copy.copy(declared)
        likeness.container = weakref.proxy(container)
        likeness.method_name = method_name
        entrypoint.foreign = likeness
    return entrypoint


def entrypoint_is_shown_as(entrypoint: Any) -> Any:
    """What providers see as `worker_ctx.entrypoint`: the entrypoint itself, or Nameko's that it stands for."""
    return getattr(entrypoint, "foreign", entrypoint)


def extension_counterpart(bound: object) -> Any:
    """The extension that does the work of a shared extension of Nameko's; `None` if none is registered for it."""
    found = _find(bound)
    return None if found is None else found[1](bound)


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _is_a(value: object, dotted_name: str) -> bool:
    return any(_name(cls) == dotted_name for cls in type(value).__mro__)


def _find(declared: object) -> tuple[type[Any], Callable[[Any], Any]] | None:
    """The nearest class that has a factory, and the factory."""
    for cls in type(declared).__mro__:
        factory = _counterparts.get(_name(cls))
        if factory is not None:
            return cls, factory
    return None


def _overridden(declared: object, stock_cls: type[Any]) -> set[str]:
    """What subclasses of `stock_cls` do in their own way and the counterpart would pass over."""
    known = {name for cls in stock_cls.__mro__[:-1] for name in vars(cls)}
    mro = type(declared).__mro__
    changed = {name for cls in mro[: mro.index(stock_cls)] for name in vars(cls)}
    changed = {name for name in changed & known if not name.startswith("__")}
    return changed - _HARMLESS - _honours[_name(stock_cls)]


def _adapter(declared: object) -> tuple[AdaptDependency, AdaptEntrypoint]:
    if not _adapters:
        raise ConfigError(
            f"{_name(type(declared))}: this extension is neither Mycelia's nor one of Nameko's that Mycelia knows how "
            "to run."
        )
    return _adapters[0]
