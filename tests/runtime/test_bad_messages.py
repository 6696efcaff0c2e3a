"""Messages that cannot be handled: answered or dead-lettered with their reason, never dropped, never deadly."""

from __future__ import annotations

import asyncio
import bz2
import functools
import itertools
import json
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from tests.runtime.conftest import Invoke, Serve
from tests.runtime.dead_letter_box import read_dead_letters

from mycelia import Call, Client, Next, Outcome, Redeliver, consume, event_handler, rpc
from mycelia.amqp import ConsumeOptions, Delivery, Exchange, Link, Message, Properties, Queue
from mycelia.errors import MalformedRequest
from mycelia.testing import eventually
from mycelia.wire import decode_reply

BAD_JSON = b'{"args": ['
GOOD = b'{"args": [1], "kwargs": {}}'


class Service:
    name = "service"
    got: list[Any] = []  # noqa: RUF012  shared on purpose

    @rpc
    async def echo(self, value: Any) -> Any:
        return value

    @event_handler("source", "happened")
    async def happened(self, payload: Any) -> None:
        self.got.append(payload)

    @event_handler("source", "failing")
    def failing(self, payload: Any) -> None:
        raise LookupError(f"no plane {payload}")

    @consume("jobs")
    async def job(self, payload: Any) -> None:
        self.got.append(payload)


EVENT_QUEUE = "evt-source-happened--service.happened"


@pytest.fixture(autouse=True)
def _nothing_got() -> None:
    Service.got.clear()


Ask = Callable[[bytes, Properties], Any]


@pytest.fixture
def ask(link: Link) -> Callable[..., Any]:
    """Sends a raw request and waits for the raw reply."""

    async def send(body: bytes, properties: Properties, key: str = "service.echo") -> Any:
        replies: list[Delivery] = []
        await link.declare(Exchange("nameko-rpc"), Queue("answers"))
        from mycelia import Binding

        await link.declare(Binding("answers", "nameko-rpc", "answers"))
        consumer = await link.consume("answers", replies.extend, ConsumeOptions(no_ack=True))
        properties.reply_to, properties.correlation_id = "answers", "1"
        link.publish_nowait(Message("nameko-rpc", key, body, properties))
        await eventually(lambda: replies)
        await consumer.aclose()
        assert replies[0].properties.correlation_id == "1"
        return decode_reply(json.loads(replies[0].body))

    return send


BAD_REQUESTS = {
    "broken-json": (BAD_JSON, Properties("application/json", "utf-8")),
    "unknown-type": (GOOD, Properties("application/x-unknown", "utf-8")),
    "pickle-not-accepted": (GOOD, Properties("application/x-python-serialize", "binary")),
    "no-type": (GOOD, Properties()),
    "not-utf-8": (b'{"args": ["\xff"], "kwargs": {}}', Properties("application/json", "utf-8")),
    "empty": (b"", Properties("application/json", "utf-8")),
    "a-list": (b"[]", Properties("application/json", "utf-8")),
    "no-kwargs": (b'{"args": []}', Properties("application/json", "utf-8")),
    "args-no-list": (b'{"args": 1, "kwargs": {}}', Properties("application/json", "utf-8")),
    "kwargs-no-dict": (b'{"args": [], "kwargs": []}', Properties("application/json", "utf-8")),
    "unknown-compression": (
        GOOD,
        Properties("application/json", "utf-8", {"compression": "application/x-zip"}),
    ),
    "broken-compression": (
        GOOD,
        Properties("application/json", "utf-8", {"compression": "application/x-gzip"}),
    ),
    "oversized": (
        b'{"args": ["' + b"x" * 2000 + b'"], "kwargs": {}}',
        Properties("application/json", "utf-8"),
    ),
    "oversized-when-decompressed": (
        zlib.compress(b'{"args": ["' + b"x" * 100_000 + b'"], "kwargs": {}}'),
        Properties("application/json", "utf-8", {"compression": "application/x-gzip"}),
    ),
    "deeply-nested": (b"[" * 900 + b"]" * 900, Properties("application/json", "utf-8")),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
async def test_request_that_cannot_be_read_is_answered_with_the_reason(
    serve: Serve, invoke: Invoke, ask: Ask, case: str
) -> None:
    await serve(Service, config={"mycelia": {"max_body_bytes": 1900}})
    body, properties = BAD_REQUESTS[case]

    with pytest.raises(MalformedRequest) as caught:
        await ask(body, properties)

    assert str(caught.value)
    assert await invoke("service", "echo", "alive") == "alive"


async def test_request_without_reply_to_is_run_and_done(
    serve: Serve, invoke: Invoke, link: Link
) -> None:
    await serve(Service)
    for body in (GOOD, BAD_JSON):
        link.publish_nowait(
            Message("nameko-rpc", "service.echo", body, Properties("application/json", "utf-8"))
        )

    assert await invoke("service", "echo", "alive") == "alive"
    assert await link.message_count("rpc-service") == 0


async def test_compressed_request_is_read(serve: Serve, ask: Ask) -> None:
    await serve(Service)
    properties = Properties("application/json", "utf-8", {"compression": "application/x-gzip"})

    assert await ask(zlib.compress(GOOD), properties) == 1


# Read in Nameko as raw text or bytes, or valid as an event's payload.
READABLE_AS_EVENT = {
    "no-type",
    "empty",
    "a-list",
    "no-kwargs",
    "args-no-list",
    "kwargs-no-dict",
    "deeply-nested",
}


@pytest.mark.parametrize("case", [case for case in BAD_REQUESTS if case not in READABLE_AS_EVENT])
async def test_event_that_cannot_be_read_is_dead_lettered_with_the_reason(
    serve: Serve, client: Client, link: Link, case: str
) -> None:
    await serve(Service, config={"mycelia": {"max_body_bytes": 1900}})
    body, properties = BAD_REQUESTS[case]

    await link.publish(Message("source.events", "happened", body, properties))

    (letter,) = await read_dead_letters(link, EVENT_QUEUE, 1)
    headers = letter.properties.headers or {}
    assert letter.body == body
    assert letter.properties.content_type == properties.content_type
    assert headers["x-mycelia-reason"] == "undecodable"
    assert headers["x-mycelia-error-type"] == "UndecodableMessage"
    assert headers["x-mycelia-error"]
    await client.publish("source", "happened", "alive")
    await eventually(lambda: Service.got == ["alive"])
    assert await link.message_count(EVENT_QUEUE) == 0


def _many(piece: bytes) -> bytes:
    return b'{"args":[[' + piece * 2_000_000 + b'0]],"kwargs":{}}'


_JSON = "application/json"
# Made when they are wanted: to compress them takes seconds.
BOMBS: dict[str, tuple[Callable[[], bytes], Properties, str]] = {
    "punycode": (lambda: b"a-" * 150_000, Properties(_JSON, "punycode"), '"punycode" is not known'),
    "punycode-text": (
        lambda: b"a-" * 150_000,
        Properties(None, "punycode"),
        '"punycode" is not known',
    ),
    "lists": (
        lambda: zlib.compress(_many(b"[],")),
        Properties(_JSON, "utf-8", {"compression": "application/x-gzip"}),
        "values, more than the limit of",
    ),
    "texts": (
        lambda: bz2.compress(_many(b'"ab",')),
        Properties(_JSON, "utf-8", {"compression": "application/x-bz2"}),
        "values, more than the limit of",
    ),
    "zeros": (
        lambda: bz2.compress(bytes(200 * 1024 * 1024)),
        Properties(_JSON, "utf-8", {"compression": "application/x-bz2"}),
        "more than 134217728 bytes once decompressed",
    ),
}


@functools.cache
def bomb(case: str) -> bytes:
    return BOMBS[case][0]()


@pytest.mark.parametrize("case", BOMBS)
async def test_small_body_that_asks_for_much_work_is_refused_with_its_numbers(
    serve: Serve, ask: Ask, client: Client, link: Link, case: str
) -> None:
    await serve(Service)
    body, (_, properties, words) = bomb(case), BOMBS[case]
    assert len(body) <= 300_000

    with pytest.raises(MalformedRequest, match=words):
        await ask(body, properties)
    await link.publish(Message("source.events", "happened", body, properties))
    (letter,) = await read_dead_letters(link, EVENT_QUEUE, 1)

    headers = letter.properties.headers or {}
    assert headers["x-mycelia-reason"] == "undecodable"
    assert words in headers["x-mycelia-error"]
    await client.publish("source", "happened", "alive")
    await eventually(lambda: Service.got == ["alive"])


async def test_event_without_content_type_or_body_is_handed_over_as_nameko_does(
    serve: Serve, link: Link
) -> None:
    await serve(Service)

    await link.publish(Message("source.events", "happened", b"plain", Properties()))
    await link.publish(
        Message("source.events", "happened", b"", Properties("application/json", "utf-8"))
    )

    await eventually(lambda: Service.got == ["plain", b""])


async def test_compressed_event_is_read(serve: Serve, link: Link) -> None:
    await serve(Service)
    properties = Properties("application/json", "utf-8", {"compression": "application/x-gzip"})

    await link.publish(Message("source.events", "happened", zlib.compress(b"[1]"), properties))

    await eventually(lambda: Service.got == [[1]])


async def test_failed_event_is_dead_lettered_with_its_whole_story(
    serve: Serve, link: Link, client: Client
) -> None:
    await serve(Service)
    before_ms = int(time.time() * 1000)

    await client.publish(
        "source", "failing", "N14228", correlation_id="c", headers={"own": "header"}, message_id="m"
    )

    (letter,) = await read_dead_letters(link, "evt-source-failing--service.failing", 1)
    headers = dict(letter.properties.headers or {})
    traceback = headers.pop("x-mycelia-traceback")
    failed_at_ms = headers.pop("x-mycelia-failed-at-ms")
    assert headers.pop("x-mycelia-first-failed-at-ms") == failed_at_ms
    stack = headers.pop("nameko.call_id_stack")
    assert letter.body == b'"N14228"'
    assert headers == {
        "own": "header",
        "x-mycelia-reason": "handler_error",
        "x-mycelia-error-type": "LookupError",
        "x-mycelia-error": "no plane N14228",
        "x-mycelia-queue": "evt-source-failing--service.failing",
        "x-mycelia-exchange": "source.events",
        "x-mycelia-routing-key": "failing",
        "x-mycelia-service": "service",
        "x-mycelia-method": "failing",
        "x-mycelia-attempts": 1,
    }
    assert 'raise LookupError(f"no plane {payload}")' in traceback
    assert before_ms <= failed_at_ms <= int(time.time() * 1000)
    assert stack[0].startswith("tester.call.")
    assert letter.properties.correlation_id == "c"
    assert letter.properties.message_id == "m"
    assert letter.properties.delivery_mode == 2


async def test_long_error_and_traceback_are_cut(serve: Serve, link: Link, client: Client) -> None:
    class Wordy:
        name = "wordy"

        @consume("words")
        def fail(self, payload: Any) -> None:
            raise ValueError("!" + "é" * 100_000)

    await serve(Wordy)
    await link.publish(Message("", "words", b"1", Properties("application/json", "utf-8")))

    (letter,) = await read_dead_letters(link, "words", 1)
    headers = letter.properties.headers or {}
    assert 4095 <= len(headers["x-mycelia-error"].encode()) <= 4096
    assert 16383 <= len(headers["x-mycelia-traceback"].encode()) <= 16384


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_requeue_on_error_backs_off_and_ends_in_the_dead_letter_queue(
    serve: Serve, link: Link, client: Client, kind: str
) -> None:
    tried: list[float] = []

    class Threaded:
        name = "stubborn"

        @event_handler("source", "happened", requeue_on_error=True)
        def happened(self, payload: Any) -> None:
            tried.append(time.monotonic())
            raise LookupError("still not")

    class OnLoop:
        name = "stubborn"

        @event_handler("source", "happened", requeue_on_error=True)
        async def happened(self, payload: Any) -> None:
            tried.append(time.monotonic())
            raise LookupError("still not")

    service = Threaded if kind == "def" else OnLoop
    await serve(service, config={"mycelia": {"requeue_attempts": 3}})
    await client.publish("source", "happened", 1, message_id="m")

    (letter,) = await read_dead_letters(link, "evt-source-happened--stubborn.happened", 1)

    pauses = [later - earlier for earlier, later in itertools.pairwise(tried)]
    headers = letter.properties.headers or {}
    assert len(tried) == 3
    assert pauses[0] >= 0.1
    assert pauses[1] >= 0.2
    assert headers["x-mycelia-reason"] == "too_many_attempts"
    assert headers["x-mycelia-attempts"] == 3
    assert letter.properties.message_id == "m"


@pytest.mark.parametrize("attempt", [-(2**62), 0, "1", "x", 2**62, 2**63 - 1, True, [7]])
async def test_attempt_that_somebody_made_up_neither_loops_nor_skips_the_limit(
    serve: Serve, link: Link, client: Client, attempt: Any
) -> None:
    tried: list[int] = []

    class Counting:
        name = "counting"

        @event_handler("source", "happened", requeue_on_error=True)
        async def happened(self, payload: Any) -> None:
            tried.append(payload)
            raise LookupError("still not")

    await serve(Counting, config={"mycelia": {"requeue_attempts": 2}})
    await client.publish("source", "happened", 1, headers={"x-mycelia-attempt": attempt})

    queue = "evt-source-happened--counting.happened"
    (letter,) = await read_dead_letters(link, queue, 1)

    assert 1 <= len(tried) <= 2
    assert (letter.properties.headers or {})["x-mycelia-attempts"] >= 2
    assert await link.message_count(queue) == 0


async def test_requeued_message_does_not_hold_up_the_others(serve: Serve, client: Client) -> None:
    got: list[Any] = []

    class Patient:
        name = "patient"

        @event_handler("source", "happened", requeue_on_error=True, concurrency=1)
        async def happened(self, payload: int) -> None:
            got.append(payload)
            if payload == 0 and got.count(0) < 2:
                raise LookupError("later")

    await serve(Patient)
    for n in range(3):
        await client.publish("source", "happened", n)

    await eventually(lambda: got == [0, 1, 2, 0])


async def test_messages_that_wait_for_another_attempt_take_no_place_in_the_prefetch(
    serve: Serve, client: Client, link: Link
) -> None:
    got: list[int] = []

    class Patient:
        name = "patient"

        @event_handler("source", "happened", concurrency=1, prefetch=1)
        async def happened(self, payload: int) -> None:
            got.append(payload)

    async def try_the_first_two_again(call: Call, next: Next) -> Outcome:
        outcome = await next(call)
        return outcome.replace(settlement=Redeliver(after=60)) if call.args[0] < 2 else outcome

    await serve(Patient, inbound=(try_the_first_two_again,))
    for n in range(3):
        await client.publish("source", "happened", n)

    await eventually(lambda: 2 in got)
    assert got == [0, 1, 2]
    assert await link.message_count("mycelia.delay.short.32s") == 2


async def test_stop_puts_messages_that_wait_for_their_retry_back(
    serve: Serve, client: Client, link: Link
) -> None:
    failed = asyncio.Event()

    class Impatient:
        name = "impatient"

        @event_handler("source", "happened", requeue_on_error=True)
        async def happened(self, payload: int) -> None:
            failed.set()
            raise LookupError("later")

    runner = await serve(Impatient)
    await client.publish("source", "happened", 1)
    await failed.wait()
    await runner.stop()

    async def is_back() -> bool:
        return await link.message_count("evt-source-happened--impatient.happened") == 1

    await eventually(is_back)


@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
async def test_message_whose_handlers_die_is_dead_lettered_in_the_end(
    serve: Serve, client: Client, link: Link, monkeypatch: pytest.MonkeyPatch, queue_type: str
) -> None:
    monkeypatch.setattr("mycelia.entrypoints.subscription.DELIVERY_LIMIT", 3)
    begun: list[int] = []

    class Fatal:
        name = "fatal"

        @event_handler("source", "happened", queue_type=queue_type)
        async def happened(self, payload: int) -> None:
            begun.append(payload)
            await asyncio.Event().wait()  # never has an outcome: its process is about to end

    runner = await serve(Fatal)
    await client.publish("source", "happened", 1)
    for ends in range(1, 4):
        await eventually(lambda ends=ends: len(begun) == ends)
        await runner.stop(grace=0)
        runner = await serve(Fatal)

    (letter,) = await read_dead_letters(link, "evt-source-happened--fatal.happened", 1)

    headers = letter.properties.headers or {}
    assert headers["x-mycelia-reason"] == "too_many_attempts"
    assert headers["x-mycelia-attempts"] == 4
    assert len(begun) == 3
