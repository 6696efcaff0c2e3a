"""Which Mycelia extension runs what a service class declares.

Mycelia's own declarations run as they are. Nameko's (`nameko.rpc.Rpc`, `nameko.events.EventDispatcher`, …) are read
and given a Mycelia counterpart, which the module that defines the counterpart registers here, by dotted name:
nothing is imported from Nameko, which would bring eventlet into the process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from mycelia.errors import ConfigError
from mycelia.runtime.extensions import DependencyProvider, Entrypoint

__all__ = [
    "counterpart_of",
    "dependency_counterpart",
    "entrypoint_counterpart",
    "set_foreign_adapter",
]

Factory = TypeVar("Factory", bound=Callable[[Any], Any])

_counterparts: dict[str, Callable[[Any], Any]] = {}
_foreign_adapters: list[Callable[[Any], Any]] = []

NAMEKO_DEPENDENCY = "nameko.extensions.DependencyProvider"
NAMEKO_ENTRYPOINT = "nameko.extensions.Entrypoint"


def counterpart_of(dotted_name: str) -> Callable[[Factory], Factory]:
    """Register the decorated `factory(declared) -> extension` for declarations of the class `dotted_name`.

    It also serves subclasses that have no factory of their own.
    """

    def register(factory: Factory) -> Factory:
        _counterparts[dotted_name] = factory
        return factory

    return register


def set_foreign_adapter(adapter: Callable[[Any], Any]) -> None:
    """Register the adapter for third-party Nameko extensions that have no counterpart."""
    _foreign_adapters[:] = [adapter]


def dependency_counterpart(declared: object) -> DependencyProvider | None:
    """The provider that serves a class attribute; `None` when the attribute is no dependency at all."""
    if isinstance(declared, DependencyProvider):
        return declared
    names = _class_names(declared)
    if NAMEKO_DEPENDENCY not in names:
        return None
    provider: DependencyProvider = _translate(declared, names)
    return provider


def entrypoint_counterpart(declared: object) -> Entrypoint:
    """The entrypoint that serves a declaration on a method.

    Raises:
        ConfigError: nothing here knows how to run it.
    """
    if isinstance(declared, Entrypoint):
        return declared
    entrypoint: Entrypoint = _translate(declared, _class_names(declared))
    return entrypoint


def _class_names(value: object) -> list[str]:
    return [f"{cls.__module__}.{cls.__qualname__}" for cls in type(value).__mro__]


def _translate(declared: object, names: list[str]) -> Any:
    for name in names:
        if name in _counterparts:
            return _counterparts[name](declared)
        if name in (NAMEKO_DEPENDENCY, NAMEKO_ENTRYPOINT) and _foreign_adapters:
            return _foreign_adapters[0](declared)
    raise ConfigError(
        f"{names[0]}: this extension is neither Mycelia's nor one of Nameko's that Mycelia knows how to run."
    )
