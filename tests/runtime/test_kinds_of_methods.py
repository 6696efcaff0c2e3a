"""Static and class methods, and methods behind decorators: what is called is what counts."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from tests.runtime.conftest import Invoke, Serve

from mycelia import Client, DependencyProvider, Entrypoint, event_handler, rpc
from mycelia.errors import IncorrectSignature, RemoteError
from mycelia.testing import eventually

heard: list[Any] = []


def with_user(method: Any) -> Any:
    """Supplies an argument."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, "Ada", *args, **kwargs)

    return call


def with_user_async(method: Any) -> Any:
    @functools.wraps(method)
    async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await method(self, "Ada", *args, **kwargs)

    return call


def without_arguments(method: Any) -> Any:
    """Takes none, and passes one on."""

    @functools.wraps(method)
    def call(self: Any) -> Any:
        return method(self, "nothing")

    return call


def passed_through(method: Any) -> Any:
    """A `def` around an `async def`: the coroutine is its result."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return call


class Nothing(DependencyProvider):
    """With a hook of its own, a worker takes its longer way."""

    def get_dependency(self, worker_ctx: Any) -> Any:
        return None


class Plain:
    name = "methods"

    @staticmethod
    @rpc
    def static(a: int, service: int = 2) -> list[int]:
        return [a, service]

    @rpc  # either way round
    @staticmethod
    async def static_async(a: int, *, b: int = 2) -> list[int]:
        return [a, b]

    @classmethod
    @rpc
    def of_class(cls, a: int) -> list[Any]:
        return [cls.__name__, a]

    @rpc()
    @classmethod
    async def of_class_async(cls, a: int) -> list[Any]:
        return [cls.__name__, a]

    @rpc
    @with_user
    def greet(self, user: str, greeting: str) -> str:
        return f"{greeting}, {user}"

    @with_user
    @rpc
    def greet_outside(self, user: str, greeting: str) -> str:
        return f"{greeting}, {user}"

    @rpc
    @with_user_async
    async def greet_async(self, user: str, greeting: str) -> str:
        return f"{greeting}, {user}"

    @rpc
    @without_arguments
    def takes_none(self, text: str) -> str:
        return text

    @rpc
    @passed_through
    async def lost(self) -> None:
        heard.append("lost has run")

    @staticmethod
    @event_handler("source", "static")
    def on_static(payload: Any) -> None:
        heard.append(payload)

    @event_handler("source", "class")
    @classmethod
    async def on_class(cls, payload: Any) -> None:
        heard.append((cls.__name__, payload))

    @event_handler("source", "greeted")
    @with_user
    def on_greeted(self, user: str, payload: Any) -> None:
        heard.append((user, payload))


class WithHooks(Plain):
    nothing = Nothing()


services = pytest.mark.parametrize("service", [Plain, WithHooks])


@services
async def test_static_and_class_methods_are_called_as_what_they_are(
    serve: Serve, invoke: Invoke, service: Any
) -> None:
    await serve(service)

    assert await invoke("methods", "static", 1) == [1, 2]
    assert await invoke("methods", "static", a=1, service=3) == [1, 3]
    assert await invoke("methods", "static_async", 1, b=4) == [1, 4]
    assert await invoke("methods", "of_class", 1) == [service.__name__, 1]
    assert await invoke("methods", "of_class_async", a=1) == [service.__name__, 1]


@services
@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("static", ()),
        ("static", (1, 2, 3)),
        ("static_async", (1, 2)),
        ("of_class", (1, 2)),
        ("greet", ("Hello", "Bob", "x")),
        ("takes_none", ("x",)),
    ],
)
async def test_arguments_that_do_not_fit_what_is_called_are_refused(
    serve: Serve, invoke: Invoke, service: Any, method: str, args: Any
) -> None:
    await serve(service)

    with pytest.raises((IncorrectSignature, RemoteError), match="argument"):
        await invoke("methods", method, *args)


@services
async def test_decorator_may_supply_arguments(serve: Serve, invoke: Invoke, service: Any) -> None:
    await serve(service)

    assert await invoke("methods", "greet", "Hello") == "Hello, Ada"
    assert await invoke("methods", "greet", greeting="Hello") == "Hello, Ada"
    assert await invoke("methods", "greet_outside", "Hello") == "Hello, Ada"
    assert await invoke("methods", "greet_async", "Hello") == "Hello, Ada"
    assert await invoke("methods", "takes_none") == "nothing"


@services
async def test_coroutine_that_a_wrapper_hands_out_is_an_error_that_says_so(
    serve: Serve, invoke: Invoke, service: Any
) -> None:
    await serve(service)

    with pytest.raises(
        RemoteError, match=r"methods\.lost .* returned the coroutine of .*its wrapper"
    ):
        await invoke("methods", "lost")
    assert "lost has run" not in heard


@services
async def test_events_reach_static_and_class_methods_and_those_behind_decorators(
    serve: Serve, client: Client, service: Any
) -> None:
    await serve(service)
    heard.clear()

    for kind in ("static", "class", "greeted"):
        await client.publish("source", kind, kind)

    await eventually(lambda: len(heard) == 3)
    assert sorted(map(str, heard)) == [
        str(("Ada", "greeted")),
        str((service.__name__, "class")),
        "static",
    ]


async def test_entrypoint_class_marks_static_methods_too(serve: Serve) -> None:
    class Once(Entrypoint):
        def start(self) -> None:
            heard.append(self.method(None))

    class Marked:
        name = "marked"

        @Once.decorator
        @staticmethod
        def run() -> str:
            return "run"

    heard.clear()
    await serve(Marked)

    assert heard == ["run"]
