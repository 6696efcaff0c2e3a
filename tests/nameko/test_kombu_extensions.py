"""Extensions that override what works on kombu's messages run as they do on stock Nameko, in the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pika
import pytest
from tests.nameko.processes import NamekoRun, queue_state
from tests.nameko.raw_rpc import publish_raw, raw_call, take
from tests.nameko.waiting import taken, wait_until

from mycelia import BlockingClient
from mycelia.errors import IncorrectSignature, MethodNotFound, RemoteError

SIDES = ("stock", "here")
Ask = Callable[..., Any]
both_sides = pytest.mark.parametrize("side", SIDES)


@pytest.fixture(scope="module")
def runs(module_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NamekoRun]]:
    directory = tmp_path_factory.mktemp("reaching")
    config = {"AMQP_URI": module_uri, "ACCEPT": ["json", "yaml"]}
    stock = NamekoRun("tests.nameko.kombu_services:Stock", config=config, directory=directory)
    ours = NamekoRun(
        "tests.nameko.kombu_services:Here",
        config={
            **config,
            "SERVICE_CONTAINER_CLS": "mycelia.Container",
            "mycelia": {"rpc_timeout": 1},
        },
        directory=directory,
        handed_over=True,
    )
    with stock.start(), ours.start():
        stock.await_queues("rpc-reaching_stock", "again-stock", _event_queue("stock"))
        ours.await_output("ready")
        yield [stock, ours]


@pytest.fixture(scope="module")
def ask(runs: list[NamekoRun], module_uri: str) -> Iterator[Ask]:
    with BlockingClient(module_uri, timeout=10) as client:

        def ask(side: str, method: str, *args: Any) -> Any:
            for run in runs:
                run.check_alive()
            return client.call(f"reaching_{side}", method, *args)

        yield ask


def heard(ask: Ask, side: str, word: Any, count: int) -> list[Any]:
    """What the service's handlers have heard of `word`; what other tests sent stays for them."""
    return taken(lambda: ask(side, "take_heard", word), count)


@both_sides
def test_entrypoint_that_calls_no_super_init_is_served(ask: Ask, side: str) -> None:
    assert heard(ask, side, "begun", 1) == ["begun"]


@both_sides
def test_timer_without_an_interval_runs_on_and_on(ask: Ask, side: str) -> None:
    wait_until(lambda: bool(ask(side, "has_ticked")))


@both_sides
def test_rpc_subclass_has_its_own_handle_message_and_handle_result(ask: Ask, side: str) -> None:
    assert ask(side, "count", 5) == [5, "CountingRpc", f"reaching_{side}.count"]
    with pytest.raises(RemoteError, match="ValueError no"):
        ask(side, "fail")


@both_sides
def test_providers_hear_the_result_that_handle_result_gives_beside_an_error(
    ask: Ask, side: str
) -> None:
    with pytest.raises(RemoteError, match="ValueError no"):
        ask(side, "fail")

    told = ["beside the error", "ValueError"]
    assert heard(ask, side, told, 1)[0] == told


@both_sides
def test_ordinary_methods_beside_such_ones_are_served_too(ask: Ask, side: str) -> None:
    assert ask(side, "beside", 6) == 6
    with pytest.raises(IncorrectSignature):
        ask(side, "beside")
    with pytest.raises(MethodNotFound):
        ask(side, "nothing")


@both_sides
def test_event_handler_with_a_base_beside_the_stock_class(
    ask: Ask, module_uri: str, side: str
) -> None:
    publish_raw(
        module_uri,
        "feed.events",
        f"again_{side}",
        b'"event"',
        content_type="application/json",
        content_encoding="utf-8",
    )

    assert heard(ask, side, "event", 3) == ["event"] * 3
    wait_until(lambda: (queue_state(module_uri, _event_queue(side)) or (1, 0))[0] == 0)


def _event_queue(side: str) -> str:
    return f"evt-feed-again_{side}--reaching_{side}.on_again"


@both_sides
def test_consumer_that_requeues_by_itself(ask: Ask, module_uri: str, side: str) -> None:
    publish_raw(
        module_uri,
        "",
        f"again-{side}",
        b'"message"',
        content_type="application/json",
        content_encoding="utf-8",
    )

    assert heard(ask, side, "message", 3) == ["message"] * 3


@both_sides
def test_proxies_made_by_hand(ask: Ask, side: str) -> None:
    assert ask(side, "call_loudly", 7) == ["loud", 7]
    assert ask(side, "call_bound", 8) == 8


def test_call_of_such_a_proxy_ends_though_nobody_answers(ask: Ask, module_uri: str) -> None:
    """Nameko's waits for ever: there is a queue for the request, and nobody reads it."""
    connection = pika.BlockingConnection(pika.URLParameters(module_uri))
    channel = connection.channel()
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.queue_bind(queue, "nameko-rpc", "deaf.*")

    assert ask("here", "call_unanswered") == "timeout"
    connection.close()


@both_sides
def test_publisher_with_a_core_of_its_own(ask: Ask, module_uri: str, side: str) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(module_uri))
    channel = connection.channel()
    queue = channel.queue_declare("", exclusive=True).method.queue

    ask(side, "publish_to", queue, 9)

    _, _, body = next(channel.consume(queue, auto_ack=True, inactivity_timeout=10))
    connection.close()
    assert body.replace(b" ", b"") == b'["core",9]'


@both_sides
def test_undeliverable_message_is_caught_by_nameko_s_name(ask: Ask, side: str) -> None:
    assert ask(side, "publish_to_nobody") == "undeliverable"


@both_sides
def test_dispatcher_has_its_own_serializer_and_headers(
    ask: Ask, module_uri: str, side: str
) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(module_uri))
    channel = connection.channel()
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.queue_bind(queue, f"reaching_{side}.events", "emitted")

    ask(side, "dispatch", {"a": 1})

    _, properties, body = next(channel.consume(queue, auto_ack=True, inactivity_timeout=10))
    connection.close()
    assert (properties.content_type, body) == ("application/x-yaml", b"a: 1\n")
    assert properties.headers["tenant"] == "t1"


def test_request_that_its_extension_cannot_answer_is_put_aside(ask: Ask, module_uri: str) -> None:
    """Nameko's container dies of it, and the next instance, and so on."""
    publish_raw(
        module_uri,
        "nameko-rpc",
        "reaching_here.beside",
        b'{"args": [1], "kwargs": {}}',
        content_type="application/json",
        content_encoding="utf-8",
    )  # without reply_to

    wait_until(lambda: queue_state(module_uri, "rpc-reaching_here.dead") == (1, 0))
    assert ask("here", "beside", 1) == 1
    raw = raw_call(module_uri, "reaching_here.beside", {"args": [2], "kwargs": {}})
    assert raw["result"] == 2


def test_methods_that_a_package_has_replaced_are_the_ones_that_run(
    module_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: dict[str, Any] = {}
    for side, config in (("stock", {}), ("here", {"SERVICE_CONTAINER_CLS": "mycelia.Container"})):
        monkeypatch.setenv("SIDE", side)
        run = NamekoRun(
            "tests.nameko.patched_services:Traced",
            config={"AMQP_URI": module_uri, **config},
            directory=tmp_path,
        )
        with run.start(), BlockingClient(module_uri, timeout=10) as client:
            run.await_queues(f"rpc-traced_{side}")
            said[side] = client.call(f"traced_{side}", "outer")

    assert said["here"] == said["stock"] == ["traced", [["traced", 1], ["inner"]]]


def test_stop_lets_workers_finish_and_their_messages_be_settled(
    module_uri: str, tmp_path: Path
) -> None:
    config = {"AMQP_URI": module_uri, "SERVICE_CONTAINER_CLS": "mycelia.Container"}
    run = NamekoRun(
        "tests.nameko.kombu_services:Slow", config=config, directory=tmp_path, handed_over=True
    )
    with (
        run.start(),
        BlockingClient(module_uri, timeout=10) as client,
        ThreadPoolExecutor() as pool,
    ):
        run.await_output("ready")
        publish_raw(module_uri, "", "slow-messages", b'"m"', content_type="application/json")
        answer = pool.submit(client.call, "slow", "work", 1)
        run.await_output("work begins")
        run.await_output("message begins")

        assert run.terminate() == 0
        assert answer.result(5)[0] == 1
        assert "message ends" in run.output
    assert queue_state(module_uri, "slow-messages") == (0, 0)
    assert queue_state(module_uri, "rpc-slow") == (0, 0)


def test_message_that_cannot_be_decoded_is_put_aside(ask: Ask, module_uri: str) -> None:
    publish_raw(module_uri, "", "again-here", b"{", content_type="application/json")

    wait_until(lambda: queue_state(module_uri, "again-here.dead") == (1, 0))
    letter = take(module_uri, "again-here.dead")
    assert letter is not None
    assert letter[1]["x-mycelia-reason"] == "undecodable"
