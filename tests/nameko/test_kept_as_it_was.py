"""What existing services count on is as it was: compared with stock Nameko in the same run, for native classes as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from tests.nameko.kept_values import PUBLISH_OPTIONS, RICH, of
from tests.nameko.processes import NamekoRun, queue_state
from tests.nameko.waiting import taken, wait_until

from mycelia import BlockingClient
from mycelia.errors import IncorrectSignature

SERVICES = ("kept_stock", "kept_here", "kept_native")
OURS = SERVICES[1:]
"""A class written for Nameko, and one written for Mycelia."""

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def runs(module_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NamekoRun]]:
    directory = tmp_path_factory.mktemp("kept")
    config = {"AMQP_URI": module_uri, "ACCEPT": ["json", "yaml"]}
    stock = NamekoRun("tests.nameko.kept_services:Stock", config=config, directory=directory)
    ours = NamekoRun(
        "tests.nameko.kept_services:Here",
        "tests.nameko.kept_native:Native",
        config={**config, "SERVICE_CONTAINER_CLS": "mycelia.Container"},
        directory=directory,
        handed_over=True,
    )
    with stock.start(), ours.start():
        stock.await_queues("rpc-kept_stock")
        ours.await_output("ready")
        yield [stock, ours]


@pytest.fixture(scope="module")
def ask(runs: list[NamekoRun], module_uri: str) -> Iterator[Ask]:
    """Calls a method of one of the services."""
    with BlockingClient(module_uri, timeout=10) as client:

        def ask(service: str, method: str, *args: Any, **kwargs: Any) -> Any:
            for run in runs:
                run.check_alive()
            return client.call(service, method, *args, **kwargs)

        yield ask


def heard(ask: Ask, service: str, count: int) -> list[Any]:
    """What the service's handlers have heard, once it is so much."""
    return sorted(taken(lambda: ask(service, "take_heard"), count))


# --- types -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("kind", RICH)
def test_types_are_kept_in_arguments(ask: Ask, service: str, kind: str) -> None:
    assert ask(service, "kind", RICH[kind]) == of(RICH[kind])


@pytest.mark.parametrize("service", SERVICES)
def test_types_are_kept_in_results(ask: Ask, service: str) -> None:
    given = ask(service, "give")

    assert given == RICH
    assert [type(value) for value in given.values()] == [type(v) for v in RICH.values()]


@pytest.mark.parametrize(
    ("caller", "called"), [(a, b) for a in SERVICES for b in SERVICES if a != b]
)
@pytest.mark.parametrize("kind", RICH)
def test_types_are_kept_between_services(ask: Ask, caller: str, called: str, kind: str) -> None:
    got, given = ask(caller, "relay", called, RICH[kind])

    assert got == of(RICH[kind])
    assert given == sorted(map(of, RICH.values()))


@pytest.mark.parametrize("source", SERVICES)
@pytest.mark.parametrize("kind", RICH)
def test_types_are_kept_in_events(ask: Ask, source: str, kind: str) -> None:
    ask(source, "announce", RICH[kind])

    for service in SERVICES:
        if service != source:
            assert heard(ask, service, 1) == [[source, *of(RICH[kind])]]


# --- methods ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", SERVICES)
def test_decorator_may_supply_an_argument(ask: Ask, service: str) -> None:
    assert ask(service, "greet", "Hello") == "Hello, Ada"
    assert ask(service, "greet", greeting="Hello") == "Hello, Ada"


@pytest.mark.parametrize("service", SERVICES)
def test_argument_that_does_not_fit_is_refused(ask: Ask, service: str) -> None:
    with pytest.raises(IncorrectSignature):
        ask(service, "kind", "one", "two")


# --- publishing ------------------------------------------------------------------------------------

OWN = ("message_id", "timestamp")
"""What ours always has, and stock only where it is told."""


def published(uri: str, publish: Callable[[str], Any]) -> tuple[bytes, dict[str, Any]]:
    """Body and properties of what `publish(queue)` publishes to a queue."""
    connection = pika.BlockingConnection(pika.URLParameters(uri))
    try:
        channel = connection.channel()
        queue = channel.queue_declare("", exclusive=True).method.queue
        publish(queue)
        got: list[Any] = []

        def is_there() -> bool:
            got[:] = channel.basic_get(queue, auto_ack=True)
            return got[0] is not None

        wait_until(is_there)
    finally:
        connection.close()
    properties = {name: value for name, value in vars(got[1]).items() if value is not None}
    headers = properties.pop("headers", {})
    return got[2], {**properties, **{k: v for k, v in headers.items() if "nameko" not in k}}


@pytest.mark.parametrize("service", OURS)
@pytest.mark.parametrize("options", PUBLISH_OPTIONS)
def test_publishing_options_are_taken_as_stock_takes_them(
    ask: Ask, module_uri: str, service: str, options: str
) -> None:
    stock_body, stock = published(
        module_uri, lambda queue: ask("kept_stock", "publish_with", options, queue)
    )
    body, ours = published(module_uri, lambda queue: ask(service, "publish_with", options, queue))

    for name in OWN:
        if name not in PUBLISH_OPTIONS[options].keys() | {options.rpartition("_")[2]}:
            ours.pop(name)
    stock = {"priority": 0, **stock}
    assert {"priority": 0, **ours} == stock
    if options == "serializer" or "compression" not in PUBLISH_OPTIONS[options]:
        assert body.replace(b" ", b"") == stock_body.replace(b" ", b"")


@pytest.mark.parametrize("service", SERVICES)
def test_queue_is_declared_with_the_message(ask: Ask, module_uri: str, service: str) -> None:
    queue = f"declared-by-{service}"

    ask(service, "publish_declaring", queue)
    ask(service, "publish_declaring", queue)

    wait_until(lambda: queue_state(module_uri, queue) == (2, 0))


# --- queues ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "exchange"),
    [
        ("kept_stock", "stock-fanout"),
        ("kept_here", "here-fanout"),
        ("kept_native", "native-fanout"),
    ],
)
def test_queue_that_the_server_names_gets_its_messages(
    ask: Ask, module_uri: str, service: str, exchange: str
) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(module_uri))
    properties = pika.BasicProperties(content_type="application/json", content_encoding="utf-8")
    channel = connection.channel()
    channel.confirm_delivery()
    channel.basic_publish(exchange, "", b'"news"', properties)
    connection.close()

    assert heard(ask, service, 1) == [["anonymous", "str", "news"]]
