"""Which call a line names, whoever writes it and wherever; and that no value breaks a line or tells a secret."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import logging.config
import logging.handlers
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from mycelia import (
    CallFields,
    Client,
    Logger,
    Runner,
    configure_logging,
    context,
    event_handler,
    rpc,
)
from mycelia.log_event import LogEvent
from mycelia.providers.call_fields import call_fields
from mycelia.providers.exception_fields import exception_fields
from mycelia.providers.logging_setup import ConsoleFormatter, JsonFormatter
from mycelia.testing import eventually
from mycelia.wire import trace_id_of

URI = "memory://lines-of-calls"
CONFIG = {"AMQP_URI": URI}


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def lines_of(stream: io.StringIO, event: str) -> list[dict[str, Any]]:
    lines = map(json.loads, stream.getvalue().splitlines())
    return [line for line in lines if line["event"] == event]


library = logging.getLogger("a.library")


# --- which call --------------------------------------------------------------------------------------


class Spawning:
    name = "spawning"
    log = Logger()
    may_go_on: asyncio.Event
    tasks: list[asyncio.Task[None]]

    @rpc
    async def on_loop(self) -> None:
        self.tasks.append(asyncio.create_task(self.later()))
        await asyncio.to_thread(library.warning, "there")
        await asyncio.get_running_loop().run_in_executor(None, copy_context().run, self.say)

    @rpc
    def in_thread(self) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(copy_context().run, library.warning, "there").result()
        thread = threading.Thread(target=copy_context().run, args=(self.say,))
        thread.start()
        thread.join()

    def say(self) -> None:
        self.log.warning("said")

    async def later(self) -> None:
        await self.may_go_on.wait()
        self.log.warning("later")
        library.warning("later of a library")

    @event_handler("spawning", "flaky", requeue_on_error=True)
    async def flaky(self, payload: Any) -> None:
        library.warning("tried")
        if len(Spawning.tasks) < 2:
            Spawning.tasks.append(None)  # type: ignore[arg-type]
            raise ValueError


async def test_tasks_and_threads_of_a_worker_name_its_call_also_when_it_has_ended(
    stream: io.StringIO,
) -> None:
    configure_logging(CONFIG, stream)
    Spawning.may_go_on, Spawning.tasks = asyncio.Event(), []
    async with Runner(CONFIG, [Spawning]), Client(URI) as client:
        await client.call("spawning", "on_loop")
        await client.call("spawning", "in_thread")
        Spawning.may_go_on.set()
        await asyncio.gather(*Spawning.tasks)

    on_loop, in_thread = (
        [line["call_id"] for line in lines_of(stream, name)] for name in ("said", "there")
    )
    assert on_loop == in_thread
    assert [call_id.rpartition(".")[0] for call_id in on_loop] == [
        "spawning.on_loop",
        "spawning.in_thread",
    ]
    (later,), (of_library,) = lines_of(stream, "later"), lines_of(stream, "later of a library")
    assert later["call_id"] == of_library["call_id"] == on_loop[0]


async def test_each_attempt_is_told_apart(stream: io.StringIO) -> None:
    configure_logging(CONFIG, stream)
    Spawning.tasks = []
    async with Runner(CONFIG, [Spawning]), Client(URI) as client:
        await client.publish("spawning", "flaky", 1)
        await eventually(lambda: len(lines_of(stream, "tried")) == 3)

    assert [line["attempt"] for line in lines_of(stream, "tried")] == [1, 2, 3]


async def test_within_a_span_of_opentelemetry_a_line_has_its_ids(stream: io.StringIO) -> None:
    configure_logging(CONFIG, stream)
    tracer = TracerProvider().get_tracer("test")

    class Traced:
        name = "traced"

        @rpc
        async def work(self) -> None:
            context["traceparent"] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            library.warning("outside")
            with tracer.start_as_current_span("own") as span:
                library.warning("inside")
                library.warning(format(span.get_span_context().span_id, "016x"))

    async with Runner(CONFIG, [Traced]), Client(URI) as client:
        await client.call("traced", "work")

    outside, inside, last = (
        line
        for line in map(json.loads, stream.getvalue().splitlines())
        if line["logger"] == "a.library"
    )
    assert (outside["trace_id"], "span_id" in outside) == (
        "0af7651916cd43dd8448eb211c80319c",
        False,
    )
    assert (inside["span_id"], inside["trace_id"]) == (last["event"], last["trace_id"])
    assert inside["trace_id"] != outside["trace_id"]
    assert trace.get_current_span().get_span_context().is_valid is False


@pytest.mark.parametrize(
    "hostile", ["00-" + "\n" * 32 + "-x-01", "00-" + "é" * 32 + "-x-01", "-" * 99999]
)
def test_a_traceparent_that_is_none_is_not_shown(hostile: str) -> None:
    assert trace_id_of(hostile) is None


async def test_a_queue_handler_and_a_formatter_of_ones_own_have_the_fields_of_where_it_was_written() -> (
    None
):
    waiting: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler = logging.handlers.QueueHandler(waiting)  # type: ignore[arg-type]
    handler.addFilter(CallFields())
    library.addHandler(handler)
    try:

        class Quiet:
            name = "quiet"

            @rpc
            def work(self) -> None:
                library.error("here")

        async with Runner(CONFIG, [Quiet]), Client(URI) as client:
            await client.call("quiet", "work")
        library.error("outside")
    finally:
        library.removeHandler(handler)

    here, outside = waiting.get(), waiting.get()
    own = logging.Formatter("%(service)s|%(method)s|%(attempt)s|%(trace_id)s|%(message)s")
    assert call_fields() == {}  # nothing is known where it is formatted
    assert own.format(here) == "quiet|work|1||here"
    assert own.format(outside) == "||||outside"
    assert json.loads(JsonFormatter().format(here))["call_id"].startswith("quiet.work.")


def test_the_filter_can_be_named_in_a_logging_block() -> None:
    block = {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"call": {"()": "mycelia.CallFields"}},
        "handlers": {"here": {"class": "logging.NullHandler", "filters": ["call"]}},
        "loggers": {"a.library": {"handlers": ["here"]}},
    }
    logging.config.dictConfig(block)
    (handler,) = library.handlers
    library.removeHandler(handler)

    assert isinstance(handler.filters[0], CallFields)


# --- hostile values ----------------------------------------------------------------------------------

FORGED = "ada\n12:00:00.000 [error    ] forged\r\x1b[2J\x85\u2028\u2029\x00end"


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("place", ["value", "list", "key", "event", "text", "args"])
def test_no_value_begins_a_line_of_its_own_or_moves_the_cursor(
    stream: io.StringIO, form: str, place: str
) -> None:
    configure_logging(CONFIG | {"mycelia": {"log_format": form}}, stream)
    match place:
        case "value":
            library.warning(LogEvent("event", {"user": FORGED}))
        case "list":
            library.warning(LogEvent("event", {"users": [FORGED, {FORGED: FORGED}]}))
        case "key":
            library.warning(LogEvent("event", {FORGED: 1}))
        case "event":
            library.warning(LogEvent(FORGED, {}))
        case "text":
            library.warning(FORGED)
        case "args":
            library.warning("user %s", FORGED)

    text = stream.getvalue()
    assert "\x1b" not in text
    assert "\x00" not in text
    _, *rest = text.removesuffix("\n").splitlines()
    assert "forged" in text
    # A message of several lines stays readable on the console, and can be told from lines of the log.
    assert all(line.startswith("    ") for line in rest)
    assert not rest or (form == "console" and place in ("event", "text", "args"))


@pytest.mark.parametrize("name", ["event", FORGED])
def test_as_text_too_an_event_is_one_line(name: str) -> None:
    text = str(LogEvent(name, {"user": FORGED, "empty": "", "n": 1}))

    assert text.isprintable()
    assert text.endswith(" empty='' n=1")


# --- secrets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["json", "console", "own"])
async def test_tokens_and_passwords_are_not_in_the_lines(
    stream: io.StringIO, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Careless:
        name = "careless"
        log = Logger()

        @rpc
        def work(self, password: str) -> None:
            self.log.warning("all", context=dict(context), password=password, user_id=7, tokens=3)
            self.log.bind(auth_token="t0p").warning("bound", deep=[{"Set-Cookie": "t0p"}])

    if form != "own":
        configure_logging(CONFIG | {"mycelia": {"log_format": form}}, stream)
    async with Runner(CONFIG, [Careless]), Client(URI, context={"auth_token": "t0p"}) as client:
        await client.call("careless", "work", "t0p")

    text = caplog.text if form == "own" else stream.getvalue()
    assert "t0p" not in text
    assert text.count("***") == 4
    assert "7" in text


# --- exceptions as data ------------------------------------------------------------------------------


def failing() -> None:
    secret = "local value"  # noqa: F841  must not be told
    try:
        raise KeyError("x")
    except KeyError as exc:
        error = ValueError("no\nplane")
        error.add_note("look there")
        raise error from exc


def caught(call: Any) -> BaseException:
    try:
        call()
    except BaseException as exc:  # noqa: BLE001
        return exc
    raise AssertionError


def test_an_exception_is_data_in_json_without_values_of_variables() -> None:
    error = caught(failing)
    record = logging.LogRecord(
        "x", logging.ERROR, "", 0, "failed", (), (type(error), error, error.__traceback__)
    )

    line = json.loads(JsonFormatter().format(record))

    raised, cause = line["exceptions"]
    assert (raised["type"], raised["module"], raised["message"]) == (
        "ValueError",
        "builtins",
        "no\nplane",
    )
    assert raised["notes"] == ["look there"]
    assert raised["frames"][-1].startswith(f"{__file__}:")
    assert raised["frames"][-1].endswith(" failing")
    assert (cause["type"], cause["is_cause"]) == ("KeyError", True)
    assert line["exception"].startswith("Traceback")
    assert "local value" not in json.dumps(line["exceptions"])
    assert "look there" in ConsoleFormatter(colours=False).format(record)


def _endless() -> BaseException:
    error: BaseException = ValueError(0)
    for n in range(1000):
        following = ValueError(n)
        following.__context__ = error
        error = following
    return error


def _circle() -> BaseException:
    one, two = ValueError(1), ValueError(2)
    one.__cause__, two.__cause__ = two, one
    return one


def _recursion() -> None:
    _recursion()


class Unspeakable(Exception):
    __notes__ = property(lambda self: 1 / 0)

    def __str__(self) -> str:
        raise OSError


@pytest.mark.parametrize(
    ("error", "types"),
    [
        (_endless(), ["ValueError"] * 10),
        (_circle(), ["ValueError"] * 2),
        (
            ExceptionGroup("g", [KeyError(1), ExceptionGroup("h", [OSError()])]),
            ["ExceptionGroup", "KeyError", "ExceptionGroup", "OSError"],
        ),
        (ValueError("x" * 1_000_000), ["ValueError"]),
        (caught(_recursion), ["RecursionError"]),
        (SystemExit(3), ["SystemExit"]),
    ],
    ids=["endless", "circle", "group", "long", "recursion", "exit"],
)
def test_any_exception_is_data_of_a_bounded_size(error: BaseException, types: list[str]) -> None:
    fields = exception_fields(error)

    assert [one["type"] for one in fields] == types
    assert len(json.dumps(fields)) < 30_000


def test_an_exception_that_cannot_be_looked_at_is_named() -> None:
    (only,) = exception_fields(Unspeakable())

    assert only == {"type": "ZeroDivisionError", "message": "(the rest cannot be had)"}
