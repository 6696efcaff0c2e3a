"""A service written for Nameko runs unchanged on Mycelia: `nameko run` with `SERVICE_CONTAINER_CLS: mycelia.Container`."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from tests.nameko.processes import NamekoRun, StockClient, queue_state
from websockets.sync.client import ClientConnection, connect


@pytest.fixture(scope="module")
def run(module_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NamekoRun]:
    directory = tmp_path_factory.mktemp("existing")
    config = {
        "AMQP_URI": module_uri,
        "SERVICE_CONTAINER_CLS": "mycelia.Container",
        "WEB_SERVER_ADDRESS": "127.0.0.1:0",
        "FROM_CONFIG": "from the file",
        "DB_URIS": {"existing:Base": f"sqlite:///{directory}/planes.db"},
    }
    run = NamekoRun("tests.nameko.existing_service:Existing", config=config, directory=directory)
    with run.start():
        run.await_queues("rpc-existing", "work-items")
        run.await_output("ready")
        yield run


@pytest.fixture(scope="module")
def address(run: NamekoRun) -> str:
    found = re.search(r"http_listening.*?(127\.0\.0\.1:\d+)", run.output)
    assert found, run.output
    return found[1]


@pytest.fixture(scope="module")
def call(run: NamekoRun, stock_client: StockClient) -> Callable[..., Any]:
    """Calls the service with Nameko's own client."""

    def call(method: str, *args: Any, **kwargs: Any) -> Any:
        run.check_alive()
        return stock_client.call("existing", method, *args, **kwargs)

    return call


@pytest.fixture(scope="module")
def web(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{address}", timeout=10) as client:
        yield client


def _await(condition: Callable[[], Any], timeout: float = 10.0) -> Any:
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not come true"
    return value


def test_process_has_been_handed_over(run: NamekoRun) -> None:
    assert "starting services" not in run.output  # that is what Nameko's own runner says


# --- rpc -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["echo", "echo_async"])
def test_rpc_methods_answer(call: Callable[..., Any], method: str) -> None:
    assert call(method, {"a": [1, "ü"]}) == {"a": [1, "ü"]}


def test_errors_are_those_of_nameko(call: Callable[..., Any]) -> None:
    assert call("fail", "no")["text"] == "ValueError no"
    assert call("nothing")["type"] == "MethodNotFound"
    assert call("echo")["type"] == "IncorrectSignature"


def test_proxies_and_their_subclasses_call_services(call: Callable[..., Any]) -> None:
    assert call("call_myself", "abc") == ["abc", "abc", "ABC"]
    assert call("await_myself", "abc") == "abc"


def test_remote_errors_are_caught_by_nameko_class(call: Callable[..., Any]) -> None:
    assert call("catch_remote_error") == "ValueError: caught by Nameko's name"
    assert "nobody" in call("catch_unknown_service")


def test_config_and_context_data_are_injected(call: Callable[..., Any]) -> None:
    assert call("surroundings") == {
        "token": "token of the stock client",
        "language": None,
        "from_config": "from the file",
        "thread": True,
    }


# --- events, messages, time ------------------------------------------------------------------------


@pytest.mark.parametrize("event_type", ["pooled", "single", "cast", "host_cast"])
def test_events_of_all_kinds_are_handled(call: Callable[..., Any], event_type: str) -> None:
    call("announce", event_type, {"n": event_type})

    _await(lambda: [event_type, {"n": event_type}] in call("what_happened")["seen"])


def test_queues_are_declared_as_nameko_declares_them(run: NamekoRun) -> None:
    uri = run.config["AMQP_URI"]

    for queue in (
        "evt-existing-pooled--existing.on_pooled",
        "evt-existing-single",
        "evt-existing-host_cast--existing.on_host_cast-host-1",
    ):
        assert queue_state(uri, queue) == (0, 1), queue


def test_published_message_is_consumed_from_a_kombu_queue(call: Callable[..., Any]) -> None:
    call("put_to_work", {"item": 1})

    _await(lambda: ["work", {"item": 1}] in call("what_happened")["seen"])


def test_timer_ticks(call: Callable[..., Any]) -> None:
    before = call("what_happened")["ticks"]

    _await(lambda: call("what_happened")["ticks"] >= before + 2)


# --- third-party extensions ------------------------------------------------------------------------


def test_third_party_entrypoint_runs_workers_and_hears_their_results(
    call: Callable[..., Any],
) -> None:
    log = _await(lambda: [line for line in call("recorded")["log"] if line.startswith("feed got")])

    assert log == ["feed got 1 in is", "feed got 2 in is", "feed got error a bad item"]


def test_third_party_provider_takes_part_in_each_worker(call: Callable[..., Any]) -> None:
    call("echo", 1)
    call("fail", "x")
    log = call("recorded")["log"]

    text = " ".join(log)
    assert "get echo rpc ['value'] setup existing succeeded teardown" in text
    assert "get fail rpc ['text'] setup existing failed teardown" in text


def test_shared_extension_is_set_up_once(call: Callable[..., Any]) -> None:
    assert call("recorded")["setups"] == 1


def test_nameko_sqlalchemy_commits_and_rolls_back(call: Callable[..., Any]) -> None:
    call("migrate")
    call("add_plane", "N1", 149)
    assert call("add_plane_badly", "N2")["text"] == "ValueError rolled back"

    assert call("planes") == [["N1", 149]]


# --- http ------------------------------------------------------------------------------------------


def test_path_values_and_query_arrive(web: httpx.Client) -> None:
    response = web.get("/planes/N1/rows/12", params={"class": "eco"})

    assert (response.status_code, response.json()) == (200, ["N1", 12, "eco"])
    assert response.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("verb", ["POST", "PUT"])
def test_status_headers_and_body_are_taken_from_the_result(web: httpx.Client, verb: str) -> None:
    response = web.request(verb, "/planes", content="tail=ü")

    assert (response.status_code, response.text) == (201, "tail=ü")
    assert response.headers["location"] == "/planes/N1"


def test_each_request_is_a_line_as_nameko_writes_it(web: httpx.Client, run: NamekoRun) -> None:
    web.get("/planes/N1/rows/7?q=1%202", headers={"X-Forwarded-For": "10.0.0.1, 10.0.0.2"})

    run.await_output('"GET /planes/N1/rows/7?q=1%202 HTTP/1.1\\" 200 ')
    (line,) = [line for line in run.output.splitlines() if "rows/7?q=1%202" in line]
    assert json.loads(line)["logger"] == "nameko.web.server"
    assert re.fullmatch(
        r"10\.0\.0\.1,10\.0\.0\.2,127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4} \d\d:\d\d:\d\d\] "
        r'"GET /planes/N1/rows/7\?q=1%202 HTTP/1\.1" 200 \d+ \d+\.\d{6}',
        json.loads(line)["event"],
    )


def test_chunked_request_body_arrives(web: httpx.Client) -> None:
    response = web.post("/planes", content=iter([b"in ", b"pieces"]))

    assert response.text == "in pieces"


def test_response_object_is_sent_as_it_is(web: httpx.Client) -> None:
    response = web.get("/response")

    assert (response.status_code, response.content) == (202, b"\x00\x01")
    assert response.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/expected", 400, "Error: ValueError: your fault\n"),
        ("/bad-request", 400, "Error: BadRequest: not like this\n"),
        ("/unexpected", 500, "Error: TypeError: our fault\n"),
        ("/not-text", 500, "Error: TypeError: Payload must be a string. Got `{'a': 'dict'}`\n"),
    ],
)
def test_errors_have_nameko_form(web: httpx.Client, path: str, status: int, text: str) -> None:
    response = web.get(path)

    assert (response.status_code, response.text) == (status, text)


@pytest.mark.parametrize(
    ("verb", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/planes/N1/rows/one", 404), ("DELETE", "/planes", 405)],
)
def test_paths_without_rule_are_answered_by_werkzeug(
    web: httpx.Client, verb: str, path: str, status: int
) -> None:
    assert web.request(verb, path).status_code == status


def test_custom_handler_forms_its_own_responses(web: httpx.Client) -> None:
    known, unknown = web.get("/cors/known"), web.get("/cors/unknown")

    assert (known.text, known.headers["access-control-allow-origin"]) == ("value", "*")
    assert (unknown.status_code, unknown.json()) == (404, {"error": "NOT_FOUND"})


# --- websocket -------------------------------------------------------------------------------------


@contextmanager
def _socket(address: str) -> Iterator[tuple[ClientConnection, str]]:
    with connect(f"ws://{address}/ws") as socket:
        hello = json.loads(socket.recv(5))
        assert (hello["type"], hello["event"]) == ("event", "connected")
        yield socket, hello["data"]["socket_id"]


def _ask(socket: ClientConnection, method: str, **data: Any) -> Any:
    socket.send(json.dumps({"method": method, "data": data, "correlation_id": method}))
    return json.loads(socket.recv(5))


def test_websocket_rpc_answers_with_the_correlation_id(address: str) -> None:
    with _socket(address) as (socket, _):
        answer = _ask(socket, "subscribe", channel="delays")

    assert answer == {
        "type": "result",
        "success": True,
        "data": ["delays"],
        "correlation_id": "subscribe",
    }


def test_websocket_errors_have_nameko_form(address: str) -> None:
    with _socket(address) as (socket, _):
        failed = _ask(socket, "fail_on_socket")
        unknown = _ask(socket, "nothing")
        wrong = _ask(socket, "subscribe")
        socket.send("{")
        malformed = json.loads(socket.recv(5))

    assert (failed["success"], failed["error"]) == (
        False,
        {
            "exc_type": "ValueError",
            "exc_path": "builtins.ValueError",
            "exc_args": ["on the socket"],
            "value": "on the socket",
        },
    )
    assert unknown["error"]["exc_type"] == "MethodNotFound"
    assert wrong["error"]["exc_type"] == "IncorrectSignature"
    assert malformed["error"]["exc_type"] == "MalformedRequest"


def test_hub_reaches_subscribers_and_nobody_else(address: str, call: Callable[..., Any]) -> None:
    with _socket(address) as (first, _), _socket(address) as (second, _):
        _ask(first, "subscribe", channel="delays")
        _ask(second, "subscribe", channel="delays")
        _ask(second, "unsubscribe", channel="delays")
        call("broadcast", "delays", "late")
        heard = json.loads(first.recv(5))
        second.send(json.dumps({"method": "whisper", "data": {"text": "psst"}}))
        whispered = json.loads(second.recv(5))

    assert heard == {"type": "event", "event": "said", "data": {"text": "late"}}
    assert whispered == {"type": "event", "event": "whispered", "data": {"text": "psst"}}


def test_hub_says_when_nobody_is_there(call: Callable[..., Any]) -> None:
    assert call("unicast_to_nobody") is False


# --- the end ---------------------------------------------------------------------------------------


def test_sigterm_ends_the_service_in_order(
    run: NamekoRun, address: str, call: Callable[..., Any]
) -> None:
    """The last test of the module: it stops the service. What is under way is answered (Nameko's fault 26)."""
    with _socket(address), ThreadPoolExecutor(1) as pool:
        response = pool.submit(httpx.get, f"http://{address}/slow", timeout=10)
        _await(lambda: ["slow", None] in call("what_happened")["seen"])
        assert run.terminate() == 0
        assert len(response.result().content) == 1_000_000

    assert "service_stopped" in run.output
    assert "extension_hook_failed" not in run.output
    assert queue_state(run.config["AMQP_URI"], "rpc-existing") == (0, 0)
