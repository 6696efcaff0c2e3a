"""What a service class declares: its name, its entrypoints, its dependencies.

A declaration may be *foreign*: an object of a class that is not Mycelia's. Which of those can be run, and how, is
known to floors above, which say so by `register_foreign_declarations()`.
"""

from __future__ import annotations

import inspect
from typing import Any, Protocol

from mycelia.errors import ConfigError
from mycelia.runtime.dependencies import DependencyProvider
from mycelia.runtime.extensions import ENTRYPOINTS_ATTRIBUTE, Entrypoint

__all__ = [
    "ForeignDeclarations",
    "bind_dependency",
    "bind_entrypoint",
    "find_entrypoints",
    "get_service_name",
    "register_foreign_declarations",
]


class ForeignDeclarations(Protocol):
    """How the declarations of another framework are run.

    Both methods return an extension bound to `container`, which takes part in its life cycle, or `None` for a
    declaration that is not of this framework. They raise `ConfigError` for one that is and cannot be run.
    """

    def bind_dependency(
        self, declared: object, container: Any, attr_name: str
    ) -> DependencyProvider | None: ...

    def bind_entrypoint(
        self, declared: object, container: Any, method_name: str
    ) -> Entrypoint | None: ...


_foreign: list[ForeignDeclarations] = []


def register_foreign_declarations(declarations: ForeignDeclarations) -> None:
    """Have `declarations` asked, after those registered before, for each declaration that is not Mycelia's."""
    _foreign.append(declarations)


def bind_dependency(declared: object, container: Any, attr_name: str) -> DependencyProvider | None:
    """The provider that serves a class attribute in `container`; `None` when the attribute is no dependency at all."""
    if isinstance(declared, DependencyProvider):
        bound: DependencyProvider = declared.bind(container, attr_name)
        return bound
    for declarations in _foreign:
        provider = declarations.bind_dependency(declared, container, attr_name)
        if provider is not None:
            return provider
    return None


def bind_entrypoint(declared: object, container: Any, method_name: str) -> Entrypoint:
    """The entrypoint that serves a declaration on a method in `container`.

    Raises:
        ConfigError: nothing here knows how to run it.
    """
    if isinstance(declared, Entrypoint):
        bound: Entrypoint = declared.bind(container, method_name)
        return bound
    for declarations in _foreign:
        entrypoint = declarations.bind_entrypoint(declared, container, method_name)
        if entrypoint is not None:
            return entrypoint
    cls = type(declared)
    raise ConfigError(
        f"{container.service_cls.__qualname__}.{method_name}: its entrypoint {cls.__module__}.{cls.__qualname__} is "
        "of a class that nothing here knows how to run. Derive it from mycelia.Entrypoint."
    )


def find_entrypoints(service_cls: type) -> list[tuple[str, Any]]:
    """The entrypoints that a class declares, foreign ones too, as `(method name, declaration)`."""
    return [
        (name, declared)
        for name, method in inspect.getmembers(service_cls, inspect.isroutine)
        for declared in getattr(method, ENTRYPOINTS_ATTRIBUTE, ())
    ]


def get_service_name(service_cls: type) -> str:
    """The service's `name`.

    Raises:
        ConfigError: there is none, or it is not text.
    """
    name = getattr(service_cls, "name", None)
    if name is None:
        raise ConfigError(
            f"service class {service_cls.__qualname__} ({service_cls.__module__}) has no name. "
            f'Give it one: `name = "{service_cls.__name__.lower()}"`.'
        )
    if not isinstance(name, str) or not name:
        raise ConfigError(
            f"service class {service_cls.__qualname__}: `name` must be text, got {name!r}."
        )
    return name
