"""A service's method as workers call it: with the service first, whatever kind of method the class has."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

__all__ = ["function_in", "method_of"]


def function_in(declared: object) -> Any:
    """The function that a method's declaration is made of: itself, or what a `staticmethod` or `classmethod` holds.

    `None` for anything else.
    """
    if isinstance(declared, (staticmethod, classmethod)):
        declared = declared.__func__
    return declared if isinstance(declared, FunctionType) else None


def method_of(service_cls: type, name: str) -> Callable[..., Any]:
    """What is called with a service and the arguments.

    For a static or class method, which wants no service, it is a function that leaves it out. Its signature is that of
    what is called: decorators that supply arguments have their say.
    """
    method: Callable[..., Any] = getattr(service_cls, name)
    if isinstance(inspect.getattr_static(service_cls, name), (staticmethod, classmethod)):
        return _without_service(method)
    return method


def _without_service(method: Callable[..., Any]) -> Callable[..., Any]:
    call: Any
    if inspect.iscoroutinefunction(method):

        async def call(service: Any, /, *args: Any, **kwargs: Any) -> Any:
            return await method(*args, **kwargs)

    else:

        def call(service: Any, /, *args: Any, **kwargs: Any) -> Any:
            return method(*args, **kwargs)

    called = inspect.signature(method, follow_wrapped=False)
    service = inspect.Parameter("__service", inspect.Parameter.POSITIONAL_ONLY)
    call.__name__ = method.__name__
    call.__qualname__ = method.__qualname__
    call.__signature__ = called.replace(parameters=[service, *called.parameters.values()])
    leaves_it_out: Callable[..., Any] = call
    return leaves_it_out
