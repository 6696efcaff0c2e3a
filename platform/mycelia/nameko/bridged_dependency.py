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
from mycelia.nameko.recognise import is_a
from mycelia.nameko.sub_extensions import adopt_sub_extensions
from mycelia.nameko.worker_hooks import result_beside_error
from mycelia.runtime import DependencyProvider, WorkerContext

__all__ = ["BridgedDependency", "needs_its_stock_base"]

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
        result = result_beside_error(worker_ctx, result, exc_info)
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
    return [
        name
        for name, held in inspect.getmembers_static(stock_cls)
        if is_a(held, "nameko.extensions.Extension")
    ]


def needs_its_stock_base(declared: Any, stock_cls: type[Any], overridden: frozenset[str]) -> bool:
    """Whether a subclass asks for more of its stock base class than the counterpart has.

    It does, if its methods use a sub-extension of that class, or if it overrides what only that class asks for, such as
    `publisher_cls` or `amqp_uri`.
    """
    inner = set(_inner_extensions(stock_cls))
    served = {*LIFE_CYCLE_HOOKS, *WORKER_HOOKS, *HEADER_HOOKS, *inner}
    served |= {"get_dependency", "bind", "is_bound", "sharing_key", "serializer"}
    if overridden - served:
        return True
    for cls in type(declared).__mro__:
        if cls in stock_cls.__mro__:
            continue
        inner -= vars(cls).keys()  # the user's own of that name
        for function in vars(cls).values():
            if isinstance(function, FunctionType) and inner & _names_in(function.__code__):
                return True
    return False


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
