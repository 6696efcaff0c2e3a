"""A mistake in a declaration is one line: where it stands, what is written there, what was meant."""

from __future__ import annotations

import copy
import inspect
import pydoc
import re
from collections.abc import Callable
from typing import Any

import pytest

from mycelia import (
    Config,
    DependencyProvider,
    Entrypoint,
    EventDispatcher,
    Publisher,
    RpcProxy,
    consume,
    event_handler,
    http,
    log_handler,
    rpc,
    timer,
)
from mycelia.errors import ConfigError
from mycelia.flow import FlowHandler, flow
from mycelia.flow.flow_decorator import FlowArguments
from mycelia.logs import LogHandler
from mycelia.logs.log_handler_decorator import LogHandlerArguments
from mycelia.runtime import EntrypointArguments


def buying(decorator: Callable[..., Any]) -> str:
    """What is said when `Shop.buy` is decorated."""
    with pytest.raises(ConfigError) as refused:

        class Shop:
            name = "shop"

            @decorator
            def buy(self, what: str) -> None: ...

    return str(refused.value)


class Weekly(Entrypoint):
    def __init__(self, day: str) -> None:
        super().__init__()
        if day == "someday":
            raise ValueError("someday is no day")


AnyDecorator: Any = None
ANY: dict[str, Any] = {
    "rpc": rpc,
    "timer": timer,
    "event_handler": event_handler,
    "consume": consume,
    "http": http,
    "log_handler": log_handler,
    "flow": flow,
    "Weekly": Weekly.decorator,
}


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "said"),
    [
        (
            "rpc",
            (),
            {"concurency": 3},
            "@rpc(concurency=3): unknown option concurency; did you mean concurrency?",
        ),
        ("rpc", (3,), {}, "@rpc(3): too many positional arguments."),
        (
            "rpc",
            (),
            {"concurrency": 0},
            "@rpc(concurrency=0): concurrency=0: expected a whole number of at least 1",
        ),
        (
            "timer",
            ("ten",),
            {},
            "@timer('ten'): interval='ten': expected seconds between ticks, a number of at least 0.",
        ),
        (
            "timer",
            (),
            {},
            "@timer: missing a required argument: 'interval' (seconds between ticks, a number of at least 0) or 'cron'.",
        ),
        (
            "event_handler",
            ("feed",),
            {},
            "@event_handler('feed'): missing a required argument: 'event_type'.",
        ),
        (
            "event_handler",
            ("feed", "x"),
            {"handler": 1},
            "@event_handler('feed', 'x', handler=1): unknown option handler; did you mean handler_type?",
        ),
        (
            "consume",
            (3.5,),
            {},
            "@consume(3.5): 3.5 is no queue: expected a name, a mycelia.Queue, or a kombu.Queue.",
        ),
        ("http", ("GET",), {}, "@http('GET'): missing a required argument: 'path'."),
        (
            "Weekly",
            ("monday",),
            {"at": 8},
            "@Weekly('monday', at=8): unknown option at. Known: day.",
        ),
        ("Weekly", ("someday",), {}, "@Weekly('someday'): someday is no day"),
    ],
)
def test_mistake_in_a_decorator_names_class_method_and_decorator(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], said: str
) -> None:
    text = buying(ANY[name](*args, **kwargs))

    assert text == f"Shop.buy: {said}"
    assert "\n" not in text


@pytest.mark.parametrize("name", ["timer", "event_handler", "consume", "http", "Weekly"])
def test_decorator_that_needs_arguments_says_so_without_any(name: str) -> None:
    assert f"Shop.buy: @{name}: missing a required argument" in buying(ANY[name])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: EventDispatcher(mandatroy=True),  # type: ignore[call-arg]
            "EventDispatcher(mandatroy=True): unknown option mandatroy; did you mean mandatory?",
        ),
        (
            lambda: RpcProxy("x", timout=2),  # type: ignore[call-arg]
            "RpcProxy('x', timout=2): unknown option timout; did you mean timeout?",
        ),
        (
            lambda: Publisher(routing_kye="x"),  # type: ignore[call-arg]
            "Publisher(routing_kye='x'): unknown option routing_kye; did you mean routing_key?",
        ),
        (
            lambda: Config("a.b", defualt=1),  # type: ignore[call-overload]
            "Config('a.b', defualt=1): unknown option defualt; did you mean default?",
        ),
    ],
)
def test_mistake_in_a_provider_names_the_class_that_declares_it(
    make: Callable[[], Any], said: str
) -> None:
    with pytest.raises(ConfigError) as inside:

        class Shop:
            name = "shop"
            provider = make()

    with pytest.raises(ConfigError) as outside:
        make()

    assert str(inside.value) == f"Shop: {said}"
    assert str(outside.value) == said


def test_a_line_shows_neither_passwords_nor_books() -> None:
    text = buying(rpc(uri="amqp://me:hunter2@host", long="x" * 10_000, odd=Unprintable()))

    assert "hunter2" not in text
    assert "<Unprintable>" in text
    assert len(text) < 400


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_a_decorator_may_be_used_for_several_methods() -> None:
    often = rpc(concurrency=3)

    class Shop:
        name = "shop"

        @often
        def buy(self) -> None: ...

        @often
        def sell(self) -> None: ...

    declared = [*vars(Shop.buy)["nameko_entrypoints"], *vars(Shop.sell)["nameko_entrypoints"]]
    assert [entrypoint.concurrency for entrypoint in declared] == [3, 3]
    assert declared[0] is not declared[1]


def test_provider_with_arguments_that_only_it_knows_is_left_alone() -> None:
    class Anything(DependencyProvider):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.given = (args, kwargs)

    assert Anything(1, b=2).given == ((1,), {"b": 2})
    assert copy.copy(RpcProxy("x")).target_service == "x"


# --- help and signatures --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "known"),
    [
        ([Entrypoint], EntrypointArguments),
        ([LogHandler, Entrypoint], LogHandlerArguments),
        ([FlowHandler], FlowArguments),
    ],
)
def test_options_of_entrypoints_are_the_ones_that_type_checkers_know(
    classes: list[Any], known: Any
) -> None:
    parameters = [p for cls in classes for p in inspect.signature(cls.__init__).parameters.values()]
    taken = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}

    assert {name: hint.__forward_arg__ for name, hint in known.__annotations__.items()} == taken


@pytest.mark.parametrize(
    "name", ["rpc", "timer", "event_handler", "consume", "http", "log_handler", "flow"]
)
def test_help_lists_every_option_with_what_it_does(name: str) -> None:
    decorator = ANY[name]
    shown = pydoc.plain(pydoc.render_doc(decorator))

    listed = re.findall(r"^        (\w+): ", shown, re.MULTILINE)
    assert sorted(listed) == sorted(inspect.signature(decorator).parameters)
    assert ("concurrency: int | None = None" in shown) == (name != "flow")
    assert f"{name}(" in shown
