"""What runs a declaration written for Nameko; the table stands in `mycelia/nameko/__init__.py`."""

from __future__ import annotations

from typing import Any

from mycelia.nameko.bridged_dependency import BridgedDependency
from mycelia.nameko.bridged_entrypoint import BridgedEntrypoint
from mycelia.nameko.counterparts import find_stock
from mycelia.nameko.face import ContainerFace
from mycelia.nameko.recognise import is_a
from mycelia.runtime import Container, DependencyProvider, Entrypoint

__all__ = ["NamekoDeclarations", "dependency_counterpart", "entrypoint_counterpart"]


class NamekoDeclarations:
    """Finds and binds counterparts; what the runtime asks (`runtime.declarations.ForeignDeclarations`)."""

    def bind_dependency(
        self, declared: object, container: Container, attr_name: str
    ) -> DependencyProvider | None:
        if not is_a(declared, "nameko.extensions.DependencyProvider"):
            return None
        counterpart: DependencyProvider = dependency_counterpart(declared).bind(
            container, attr_name
        )
        if not isinstance(counterpart, BridgedDependency):
            ContainerFace.of(container).introduce_copy(counterpart, declared, attr_name=attr_name)
        return counterpart

    def bind_entrypoint(
        self, declared: object, container: Container, method_name: str
    ) -> Entrypoint | None:
        if not is_a(declared, "nameko.extensions.Entrypoint"):
            return None
        counterpart: Entrypoint = entrypoint_counterpart(declared).bind(container, method_name)
        if not isinstance(counterpart, BridgedEntrypoint):
            face = ContainerFace.of(container)
            face.introduce_copy(counterpart, declared, method_name=method_name)
        return counterpart


def dependency_counterpart(declared: Any) -> DependencyProvider:
    """The counterpart of a dependency provider written for Nameko, unbound."""
    found = find_stock(declared)
    if found is None:
        return BridgedDependency(declared)
    stock_cls, stock = found
    counterpart: DependencyProvider = stock.make(declared)
    overridden = stock.overridden(declared, stock_cls)
    if overridden:
        return BridgedDependency(declared, stock_cls, counterpart, frozenset(overridden))
    return counterpart


def entrypoint_counterpart(declared: Any) -> Entrypoint:
    """The counterpart of an entrypoint written for Nameko, unbound."""
    found = find_stock(declared)
    if found is None or found[1].overridden(declared, found[0]):
        return BridgedEntrypoint(declared)
    counterpart: Entrypoint = found[1].make(declared)
    return counterpart
