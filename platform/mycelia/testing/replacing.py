"""Other things in place of dependencies: in a container before its start, or in one worker alone.

The names and what they mean are Nameko's (nameko/testing/services.py). What is ours: a mock in place of something that
`async def` methods await is awaited there, and is the same mock that a `def` method of the service calls.
"""

from __future__ import annotations

import asyncio
import inspect
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, TypeVar
from unittest.mock import MagicMock

from mycelia.clients.two_ways import TwoWays
from mycelia.errors import ConfigError, RuntimeStateError
from mycelia.runtime import Container, DependencyProvider, Extension
from mycelia.runtime.declarations import find_entrypoints

__all__ = ["make_worker", "replace_dependencies", "restrict_entrypoints", "worker_factory"]

Service = TypeVar("Service")


# --- in a container, before its start ---------------------------------------------------------------


def replace_dependencies(container: Container, *names: str, **replacements: Any) -> Any:
    """Have something else injected; before the container starts, and in this container only.

        runner = Runner(config, [Orders])
        stock = replace_dependencies(runner.container_of(Orders), "stock")
        stock.take.return_value = 41

    The providers that stood there take no part in anything: they are not set up, and bring no middleware.

    Args:
        container: one that has not been started.
        names: what is to be a `MagicMock`. Where the provider injects something that `async def` methods await (`RpcProxy`,
            `EventDispatcher`, `Publisher`), calls of the mock are awaited in those, and return at once in `def` methods.
        replacements: by name, what is injected as it is.

    Returns:
        The mock of `names`, if it is one; the mocks in their order, if there are more.

    Raises:
        ConfigError: the service has no such dependency, or one is named twice.
        RuntimeStateError: the container has been started.
    """
    _refuse_if_begun(container, "dependencies are replaced")
    if twice := replacements.keys() & set(names):
        raise ConfigError(f"{', '.join(sorted(twice))}: replaced by a mock and by a value; choose.")
    present: dict[str, Any] = {one.attr_name: one for one in container.dependencies}
    _check_names(container.service_cls, {*names, *replacements}, present, "dependency")
    mocks = {name: _mock_for(present[name], name, _EitherWay) for name in names}
    for name, value in {**mocks, **replacements}.items():
        old = present[name]
        new = _Replacement(container, name, value)
        container.dependencies[container.dependencies.index(old)] = new
        _take_out(container, [old])
        container.extensions.append(new)
    container.ask_for_middleware()
    found = tuple(mocks.values())
    return found[0] if len(found) == 1 else found


def restrict_entrypoints(container: Container, *names: str) -> None:
    """Leave only these methods their entrypoints; before the container starts, and in this container only.

    The others get no queue, no messages, no ticks.

    Args:
        container: one that has not been started.
        names: of methods.

    Raises:
        ConfigError: no such method has an entrypoint.
        RuntimeStateError: the container has been started.
    """
    _refuse_if_begun(container, "entrypoints are restricted")
    present = {entrypoint.method_name for entrypoint in container.entrypoints}
    _check_names(container.service_cls, set(names), present, "entrypoint")
    dropped = [one for one in container.entrypoints if one.method_name not in names]
    container.entrypoints[:] = [one for one in container.entrypoints if one.method_name in names]
    _take_out(container, dropped)
    container.ask_for_middleware()


def _refuse_if_begun(container: Container, what: str) -> None:
    if container.has_begun:
        raise RuntimeStateError(
            f"{container!r} has been started; {what} before: in `run_services(…, prepare=…)`, or between making "
            "the Runner and its start()."
        )


def _check_names(service_cls: type, asked: set[str], present: Iterable[str], what: str) -> None:
    unknown = asked - set(present)
    if unknown:
        raise ConfigError(
            f"{service_cls.__name__} has no {what} {', '.join(sorted(unknown))}; "
            f"it has {', '.join(sorted(present)) or 'none'}."
        )


def _take_out(container: Container, gone: list[Any]) -> None:
    """Leave `gone` out of the life cycle, with the sub-extensions that nothing else refers to."""
    kept = {id(one) for root in _roots(container) for one in _with_sub_extensions(root)}
    dropped = {id(one) for root in gone for one in _with_sub_extensions(root)} - kept
    container.extensions[:] = [one for one in container.extensions if id(one) not in dropped]


def _roots(container: Container) -> Iterator[Any]:
    yield from container.entrypoints
    yield from container.dependencies


def _with_sub_extensions(extension: Any) -> Iterator[Any]:
    yield extension
    for held in list(vars(extension).values()):
        if isinstance(held, Extension):
            yield from _with_sub_extensions(held)


class _Replacement(DependencyProvider):
    """Injects what a test has given."""

    def __init__(self, container: Any, name: str, value: Any) -> None:
        self.container = weakref.proxy(container)
        self.attr_name = name
        self._value = value

    @property
    def is_shared(self) -> bool:
        return True

    def shared_dependency(self, is_async: bool) -> Any:
        return self._value


# --- mocks of what may be awaited ---------------------------------------------------------------------


class _Awaited(MagicMock):
    """A mock whose calls are awaited, as those of a proxy in an `async def` method."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name, parent = self._mock_new_name, self._mock_new_parent
        is_magic = name[:2] == "__"
        # `proxy.method.options(…)` calls nothing; `proxy.options(…)` calls a method of that name.
        are_options = name == "options" and parent._mock_new_parent is not None
        if is_magic or are_options or not self._is_awaited():
            return super().__call__(*args, **kwargs)
        return self._answer(args, kwargs)

    def _is_awaited(self) -> bool:
        return True

    async def _answer(self, args: Any, kwargs: Any) -> Any:
        result = super().__call__(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result


class _EitherWay(_Awaited):
    """A mock that is awaited on an event loop, and answers at once in the threads of `def` methods."""

    def _is_awaited(self) -> bool:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return False
        return True


def _mock_for(provider: object, name: str, awaited: type[_Awaited]) -> MagicMock:
    """A mock of what `provider` injects; of class `awaited` if that is awaited."""
    if not isinstance(provider, TwoWays) or provider.is_blocking:
        return MagicMock(name=name)
    mock = awaited(name=name)
    mock.__getitem__ = lambda self, name: getattr(self, name)  # `proxy["method"]` is `proxy.method`
    return mock


# --- one worker alone ---------------------------------------------------------------------------------


def worker_factory(service_cls: type[Service], **dependencies: Any) -> Service:
    """An instance of a service as a worker sees it, with `dependencies`, and a `MagicMock` for each that is not given.

        worker = worker_factory(Orders)
        worker.stock.take.return_value = 41
        assert await worker.order("apple") == "41 left"

    Where `async def` methods await what is injected (`RpcProxy`, `EventDispatcher`, `Publisher`), calls of the mock are
    awaited. In a class that has `def` entrypoints too they are awaited on an event loop only: test the `def` methods of such
    a class in a `def` test. For a worker that has what it was given and nothing else: `make_worker()`.

    Raises:
        ConfigError: the service has no such dependency.
    """
    declared = _declared(service_cls)
    _check_names(service_cls, set(dependencies), declared, "dependency")
    kinds = {
        inspect.iscoroutinefunction(getattr(service_cls, name))
        for name, _ in find_entrypoints(service_cls)
    }
    awaited = _Awaited if False not in kinds else _EitherWay
    worker = service_cls()
    for name, provider in declared.items():
        if name in dependencies:
            value = dependencies[name]
        elif kinds == {False}:
            value = MagicMock(name=name)
        else:
            value = _mock_for(provider, name, awaited)
        worker.__dict__[name] = value
    return worker


def make_worker(service_cls: type[Service], **dependencies: Any) -> Service:
    """An instance of a service as a worker sees it, with `dependencies` and nothing else.

    A dependency that was not given says so when it is used. For mocks in place of those: `worker_factory()`.

    Raises:
        ConfigError: the service has no such dependency.
    """
    declared = _declared(service_cls)
    _check_names(service_cls, set(dependencies), declared, "dependency")
    worker = service_cls()
    for name in declared:
        value = dependencies.get(name, _NotGiven(service_cls.__name__, name))
        worker.__dict__[name] = value
    return worker


def _declared(service_cls: type) -> dict[str, Any]:
    """The dependencies of a class by name, those of another framework's classes too."""
    members = inspect.getmembers(service_cls)
    return {name: member for name, member in members if _is_provider(member)}


def _is_provider(member: object) -> bool:
    hooks = (
        "get_dependency",
        "worker_setup",
        "worker_teardown",
    )  # Nameko's providers have them too
    return not inspect.isclass(member) and all(
        callable(getattr(member, hook, None)) for hook in hooks
    )


class _NotGiven:
    """Stands where a dependency was not given; says so when it is used."""

    def __init__(self, service: str, name: str) -> None:
        self.__dict__["_where"] = (service, name)

    def _fail(self) -> NoReturn:
        service, name = self.__dict__["_where"]
        raise ConfigError(
            f"{service}.{name} was used, but make_worker() was not given one: make_worker({service}, {name}=…)"
        )

    def __getattr__(self, name: str) -> Any:
        self._fail()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._fail()
