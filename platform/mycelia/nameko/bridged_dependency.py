"""Dependency providers written for Nameko, run as they are."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from types import CodeType, FunctionType
from typing import Any

import msgspec

from mycelia.errors import ConfigError
from mycelia.nameko.bridge import BridgedExtension, use_thread_events
from mycelia.nameko.face import ContainerFace
from mycelia.nameko.recognise import dotted_name
from mycelia.nameko.sub_extensions import adopt_sub_extensions
from mycelia.runtime import DependencyProvider, WorkerContext

__all__ = ["BridgedDependency"]

LIFE_CYCLE_HOOKS = ("setup", "start", "stop", "kill")
WORKER_HOOKS = ("worker_setup", "worker_result", "worker_teardown")
HEADER_HOOKS = frozenset({"get_message_headers", "_get_header_name", "header_prefix"})
"""How a stock publisher makes the headers of what it publishes (nameko/messaging.py `HeaderEncoder`)."""


class BridgedDependency(BridgedExtension, DependencyProvider):
    """Runs a dependency provider written for Nameko.

    Args:
        declared: the provider, as declared on the service class.
        stock_cls, counterpart: for a subclass of a stock provider: which, and what does its work here.
        overridden: what the subclass does in its own way.
    """

    face: ContainerFace

    def __init__(
        self,
        declared: Any,
        stock_cls: type[Any] | None = None,
        counterpart: DependencyProvider | None = None,
        overridden: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(declared)
        self.stock_cls = stock_cls
        self.counterpart = counterpart
        self.overridden = overridden

    def bind(self, container: Any, attr_name: str = "") -> Any:
        use_thread_events()
        _refuse_nested_dependencies(self.foreign)
        instance = self._clone(container)
        instance.attr_name = attr_name
        face = instance.face = ContainerFace.of(container)
        declared = self.foreign
        if self.stock_cls is not None and self.counterpart is not None:
            _refuse_what_reaches_inside(declared, self.stock_cls, face)
            _refuse_what_would_be_passed_over(declared, self.stock_cls, self.overridden, face)
            instance.counterpart = self.counterpart.bind(container, attr_name)
            declared = _with_delegate(declared, self.stock_cls)
        instance.foreign = declared.bind(face, attr_name)
        instance.foreign.mycelia_counterpart = instance
        adopt_sub_extensions(instance.foreign, face)
        face.introduce(instance, instance.foreign)
        if "serializer" in self.overridden:
            _take_serializer(instance.counterpart, instance.foreign)
        container.adopt(instance)
        return instance

    async def start(self) -> None:
        counterpart = self.counterpart
        self._shared = (
            (counterpart.shared_dependency(False), counterpart.shared_dependency(True))
            if counterpart is not None and counterpart.is_shared
            else None
        )
        await super().start()

    def get_stock_dependency(self, worker_ctx: WorkerContext) -> Any:
        """What the stock class would inject: `super().get_dependency()` of a subclass ends here."""
        if self._shared is not None:
            injected = self._shared[worker_ctx.is_async]
        else:
            assert self.counterpart is not None
            injected = self.counterpart.get_dependency(worker_ctx)
        if self.overridden.isdisjoint(HEADER_HOOKS):
            return injected
        return partial(injected, extra_headers=self.foreign.get_message_headers(worker_ctx))

    def get_dependency(self, worker_ctx: WorkerContext) -> Any:
        return self.foreign.get_dependency(self.face.context_of(worker_ctx))

    def worker_setup(self, worker_ctx: WorkerContext) -> Any:
        return self.foreign.worker_setup(self.face.context_of(worker_ctx))

    def worker_result(
        self, worker_ctx: WorkerContext, result: Any = None, exc_info: Any = None
    ) -> Any:
        return self.foreign.worker_result(self.face.context_of(worker_ctx), result, exc_info)

    def worker_teardown(self, worker_ctx: WorkerContext) -> Any:
        return self.foreign.worker_teardown(self.face.context_of(worker_ctx))


def _refuse_nested_dependencies(declared: Any) -> None:
    from nameko.extensions import DependencyProvider as NamekoDependency
    from nameko.extensions import is_dependency

    for name, nested in inspect.getmembers(declared, is_dependency):
        if type(nested).bind is NamekoDependency.bind:
            raise ConfigError(
                f"{type(declared).__qualname__}.{name}: a dependency provider cannot hold another ({type(nested).__qualname__}); "
                "Nameko cannot bind one either. Declare it on the service class."
            )


# --- subclasses of stock providers -----------------------------------------------------------------


def _with_delegate(declared: Any, stock_cls: type[Any]) -> Any:
    """`declared` again, of a class that finds the counterpart where it would find its stock base class."""
    args, kwargs = declared._Extension__params
    return _delegating_class(type(declared), stock_cls)(*args, **kwargs)


def _delegating_class(user_cls: type[Any], stock_cls: type[Any]) -> type[Any]:
    def get_dependency(self: Any, worker_ctx: WorkerContext) -> Any:
        return self.mycelia_counterpart.get_stock_dependency(worker_ctx)

    def counterparts_work(self: Any, *args: Any, **kwargs: Any) -> None:
        """The counterpart's own hook is called by the container."""

    namespace: dict[str, Any] = dict.fromkeys(LIFE_CYCLE_HOOKS + WORKER_HOOKS, counterparts_work)
    namespace["get_dependency"] = get_dependency
    namespace |= dict.fromkeys(_inner_extensions(stock_cls))
    delegate = type(stock_cls.__name__, (stock_cls,), namespace)
    return type(user_cls.__name__, (user_cls, delegate), {"__module__": user_cls.__module__})


def _inner_extensions(stock_cls: type[Any]) -> list[str]:
    """Names of the stock class's own sub-extensions, in whose place the counterpart has others."""
    from nameko.extensions import is_extension

    return [name for name, _ in inspect.getmembers(stock_cls, is_extension)]


def _refuse_what_reaches_inside(declared: Any, stock_cls: type[Any], face: ContainerFace) -> None:
    """Raises `ConfigError` for a subclass whose methods use a sub-extension that the counterpart does not have.

    At the start: the first call would be late to learn of it.
    """
    inner = set(_inner_extensions(stock_cls))
    mro = type(declared).__mro__
    for cls in mro[: mro.index(stock_cls)]:
        inner -= vars(cls).keys()  # the user's own of that name
        for name, function in vars(cls).items():
            if isinstance(function, FunctionType) and (
                used := inner & _names_in(function.__code__)
            ):
                raise ConfigError(
                    f"{dotted_name(cls)}.{name} of service {face.service_name} uses {used.pop()} of "
                    f"{dotted_name(stock_cls)}, which only works under eventlet and is not there in Mycelia. Take "
                    "what super().get_dependency() gives, or run this service on stock Nameko beside the others."
                )


def _refuse_what_would_be_passed_over(
    declared: Any, stock_cls: type[Any], overridden: frozenset[str], face: ContainerFace
) -> None:
    """Raises `ConfigError` for an override that nothing here asks for, such as another `publisher_cls` or `amqp_uri`."""
    served = {*LIFE_CYCLE_HOOKS, *WORKER_HOOKS, *HEADER_HOOKS, *_inner_extensions(stock_cls)}
    served |= {"get_dependency", "bind", "is_bound", "sharing_key", "serializer"}
    ignored = sorted(overridden - served)
    if ignored:
        raise ConfigError(
            f"{dotted_name(type(declared))} of service {face.service_name} overrides {', '.join(ignored)} of "
            f"{dotted_name(stock_cls)}, which is not asked for here: what leaves goes over Mycelia's own link. Override "
            "get_dependency() instead, or run this service on stock Nameko beside the others."
        )


def _take_serializer(counterpart: Any, foreign: Any) -> None:
    """A stock publisher asks `self.serializer` where its options name none."""
    if counterpart.options.serializer is None:
        counterpart.options = msgspec.structs.replace(
            counterpart.options, serializer=foreign.serializer
        )


def _names_in(code: CodeType) -> set[str]:
    """Attribute and global names that `code` uses, in the functions inside it too."""
    return {name for one in _with_inner(code) for name in one.co_names}


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)
