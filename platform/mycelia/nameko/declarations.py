"""What runs a declaration written for Nameko; the table stands in `mycelia/nameko/__init__.py`."""

from __future__ import annotations

from inspect import iscoroutinefunction
from typing import Any

from mycelia.entrypoints import Rpc
from mycelia.errors import ConfigError
from mycelia.handover import NAMEKO_3, is_nameko_3
from mycelia.nameko.bridged_dependency import BridgedDependency, needs_its_stock_base
from mycelia.nameko.bridged_entrypoint import BridgedEntrypoint
from mycelia.nameko.counterparts import find_stock
from mycelia.nameko.exceptions import use_nameko_names
from mycelia.nameko.face import ContainerFace
from mycelia.nameko.patches import is_patched
from mycelia.nameko.recognise import dotted_name, is_a
from mycelia.runtime import Container, DependencyProvider, Entrypoint
from mycelia.runtime.declarations import find_entrypoints
from mycelia.runtime.methods import method_of

__all__ = ["NamekoDeclarations", "dependency_counterpart", "entrypoint_counterpart"]


STOCK_RPC = "nameko.rpc.Rpc"
OVER_KOMBU = frozenset(
    {"nameko.rpc.RpcProxy", "nameko.events.EventDispatcher", "nameko.messaging.Publisher"}
)
"""Stock providers whose own code calls and publishes over kombu."""


class NamekoDeclarations:
    """Finds and binds counterparts; what the runtime asks (`runtime.declarations.ForeignDeclarations`)."""

    def bind_dependency(
        self, declared: object, container: Container, attr_name: str
    ) -> DependencyProvider | None:
        if not is_a(declared, "nameko.extensions.DependencyProvider"):
            return None
        _refuse_nameko_3(declared, container)
        use_nameko_names()
        unbound = dependency_counterpart(declared)
        _refuse_to_block_the_loop(declared, unbound, container, attr_name)
        counterpart: DependencyProvider = unbound.bind(container, attr_name)
        if not isinstance(counterpart, BridgedDependency):
            ContainerFace.of(container).introduce_copy(counterpart, declared, attr_name=attr_name)
        return counterpart

    def bind_entrypoint(
        self, declared: object, container: Container, method_name: str
    ) -> Entrypoint | None:
        if not is_a(declared, "nameko.extensions.Entrypoint"):
            return None
        _refuse_nameko_3(declared, container)
        use_nameko_names()
        counterpart: Entrypoint = (
            BridgedEntrypoint(declared)
            if _shares_stock_queue(declared, container)
            else entrypoint_counterpart(declared)
        ).bind(container, method_name)
        if not isinstance(counterpart, BridgedEntrypoint):
            face = ContainerFace.of(container)
            face.introduce_copy(counterpart, declared, method_name=method_name)
        return counterpart


def _refuse_nameko_3(declared: object, container: Container) -> None:
    if is_nameko_3():
        raise ConfigError(
            f"service {container.service_name}: {dotted_name(type(declared))} is of Nameko 3, which does not run here. {NAMEKO_3}"
        )


def dependency_counterpart(declared: Any) -> DependencyProvider:
    """The counterpart of a dependency provider written for Nameko, unbound."""
    found = find_stock(declared)
    if found is None:
        return BridgedDependency(declared)
    stock_cls, stock = found
    if is_patched(dotted_name(stock_cls)):
        return BridgedDependency(declared)
    overridden = frozenset(stock.overridden(declared, stock_cls))
    if overridden and needs_its_stock_base(declared, stock_cls, overridden):
        return BridgedDependency(declared)
    counterpart: DependencyProvider = stock.make(declared)
    if not overridden:
        return counterpart
    return BridgedDependency(declared, stock_cls, counterpart, overridden)


def entrypoint_counterpart(declared: Any) -> Entrypoint:
    """The counterpart of an entrypoint written for Nameko, unbound."""
    found = find_stock(declared)
    if (
        found is None
        or is_patched(dotted_name(found[0]))
        or found[1].overridden(declared, found[0])
    ):
        return BridgedEntrypoint(declared)
    counterpart: Entrypoint = found[1].make(declared)
    return counterpart


def _refuse_to_block_the_loop(
    declared: Any, counterpart: DependencyProvider, container: Container, attr_name: str
) -> None:
    """Raises `ConfigError` for what calls and publishes over kombu, which blocks, beside `async def` methods.

    A call would wait on the event loop for a reply that the event loop brings.
    """
    found = find_stock(declared)
    if found is None or dotted_name(found[0]) not in OVER_KOMBU:
        return
    if not isinstance(counterpart, BridgedDependency) or counterpart.stock_cls is not None:
        return
    service_cls = container.service_cls
    for name in dict.fromkeys(name for name, _ in find_entrypoints(service_cls)):
        if iscoroutinefunction(method_of(service_cls, name)):
            raise ConfigError(
                f"{service_cls.__qualname__}.{attr_name}: {dotted_name(type(declared))} works on the inside of "
                f"{dotted_name(found[0])}, and so blocks; `async def {name}` cannot have it. Take what "
                "super().get_dependency() gives, or make the service's methods `def`."
            )


def _shares_stock_queue(declared: Any, container: Container) -> bool:
    """Whether an `@rpc` method must be served as it is because another one of its service is: they share one queue.

    Raises:
        ConfigError: one of Mycelia's own is among them.
    """
    if not is_a(declared, STOCK_RPC):
        return False
    all_declared = find_entrypoints(container.service_cls)
    as_they_are = [
        name
        for name, one in all_declared
        if is_a(one, STOCK_RPC) and isinstance(entrypoint_counterpart(one), BridgedEntrypoint)
    ]
    ours = [name for name, one in all_declared if isinstance(one, Rpc)]
    if as_they_are and ours:
        raise ConfigError(
            f"service {container.service_name}: {as_they_are[0]} is of a class that overrides Nameko's Rpc, {ours[0]} is "
            "Mycelia's @rpc; each would take the other's requests from the queue that they share. Use one of the two."
        )
    return bool(as_they_are)
