"""`Logger` in running services, and the two forms of log lines."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mycelia import Client, Logger, RpcProxy, Runner, configure_logging, rpc, timer
from mycelia.amqp.uri import parse_uri
from mycelia.errors import ConfigError, RemoteError
from mycelia.log_event import LogEvent, event
from mycelia.providers.logging_setup import ConsoleFormatter, JsonFormatter
from mycelia.testing import eventually
from mycelia.wire import trace_id_of

URI = "memory://logger"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Undo what a test did to the process's logging."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def config(**section: Any) -> dict[str, Any]:
    return {"AMQP_URI": URI, "mycelia": section}


def json_lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


class Inner:
    name = "inner"
    log = Logger(team="ops")

    @rpc
    async def on_the_loop(self) -> None:
        self.log.info("looked_up", tail_number="N1", delays=[1, 2])

    @rpc
    def in_a_thread(self) -> None:
        self.log.bind(step=2).warning("slow %s", "plane", took_s=1.5)
        logging.getLogger("library").error("prose of %s", "a library")

    @rpc
    def broken_in_a_thread(self) -> None:
        raise KeyError("x")

    @rpc
    async def broken_on_the_loop(self) -> None:
        raise KeyError("x")

    @rpc
    async def failing(self) -> None:
        try:
            raise KeyError("x")
        except KeyError:
            self.log.exception("went_wrong", key="x")
        self.log.debug("not shown")


# --- in a service ---------------------------------------------------------------------------------------


async def test_lines_carry_the_call_they_belong_to(stream: io.StringIO) -> None:
    configure_logging(config(), stream)
    async with Runner(config(), [Inner]), Client(URI) as client:
        await asyncio.gather(*(client.call("inner", "on_the_loop") for _ in range(5)))

    lines = [line for line in json_lines(stream) if line["event"] == "looked_up"]
    assert len({line["call_id"] for line in lines}) == 5
    line = lines[0]
    assert line["call_id"].startswith("inner.on_the_loop.")
    assert (line["service"], line["method"], line["level"]) == ("inner", "on_the_loop", "info")
    assert (line["tail_number"], line["delays"], line["team"]) == ("N1", [1, 2], "ops")
    assert line["logger"] == __name__
    assert line["time"].endswith("+00:00")


async def test_lines_of_threads_and_of_other_loggers_carry_it_too(stream: io.StringIO) -> None:
    configure_logging(config(), stream)
    async with Runner(config(), [Inner]), Client(URI) as client:
        await client.call("inner", "in_a_thread")

    own, library = (line for line in json_lines(stream) if line["level"] in ("warning", "error"))
    assert (own["event"], own["step"], own["took_s"]) == ("slow plane", 2, 1.5)
    assert (library["event"], library["logger"]) == ("prose of a library", "library")
    assert own["call_id"] == library["call_id"]
    assert own["call_id"].startswith("inner.in_a_thread.")


@pytest.mark.parametrize("method", ["broken_in_a_thread", "broken_on_the_loop"])
async def test_a_failed_worker_is_logged_with_its_call(stream: io.StringIO, method: str) -> None:
    configure_logging(config(), stream)
    async with Runner(config(), [Inner]), Client(URI) as client:
        with pytest.raises(RemoteError):
            await client.call("inner", method)

    (line,) = [line for line in json_lines(stream) if line["event"] == "worker_failed"]
    assert (line["service"], line["method"]) == ("inner", method)
    assert line["call_id"].startswith(f"inner.{method}.")


async def test_errors_come_with_their_traceback_and_levels_count(stream: io.StringIO) -> None:
    configure_logging(config(), stream)
    async with Runner(config(), [Inner]), Client(URI) as client:
        await client.call("inner", "failing")

    lines = json_lines(stream)
    (line,) = [line for line in lines if line["event"] == "went_wrong"]
    assert line["level"] == "error"
    assert line["exception"].startswith("Traceback (most recent call last):")
    assert line["exception"].endswith("KeyError: 'x'")
    assert "not shown" not in stream.getvalue()


async def test_a_traced_call_is_logged_with_its_trace(stream: io.StringIO) -> None:
    configure_logging(config(), stream)

    class Outer:
        name = "outer"
        inner: Any = RpcProxy("inner")
        log = Logger()

        @rpc
        async def ask(self) -> None:
            from mycelia import get_current_call

            call = get_current_call()
            assert call is not None
            call.context["traceparent"] = TRACEPARENT
            self.log.info("asked")
            await self.inner.on_the_loop()

    async with Runner(config(), [Outer, Inner]), Client(URI) as client:
        await client.call("outer", "ask")

    lines = {line["event"]: line for line in json_lines(stream)}
    assert lines["asked"]["trace_id"] == lines["looked_up"]["trace_id"] == TRACE_ID


@pytest.mark.parametrize("traceparent", [None, "", 5, "00-short-x-01", "no dashes"])
def test_what_is_no_traceparent_has_no_trace_id(traceparent: Any) -> None:
    assert trace_id_of(traceparent) is None


async def test_a_logger_works_where_logging_was_never_configured(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Any handler of the standard library shows the whole line."""
    caplog.set_level("INFO")
    async with Runner(config(), [Inner]), Client(URI) as client:
        await client.call("inner", "on_the_loop")

    (line,) = [r.getMessage() for r in caplog.records if r.name == __name__]
    assert line.startswith("looked_up service=inner method=on_the_loop call_id=inner.on_the_loop.")
    assert line.endswith("team=ops tail_number=N1 delays='[1, 2]'")


async def test_a_timers_lines_have_a_call_as_well(stream: io.StringIO) -> None:
    configure_logging(config(), stream)

    class Ticking:
        name = "ticking"
        log = Logger()

        @timer(0.01)
        async def tick(self) -> None:
            self.log.info("ticked")

    async with Runner(config(), [Ticking]):
        await eventually(lambda: "ticked" in stream.getvalue())

    line = next(line for line in json_lines(stream) if line["event"] == "ticked")
    assert line["call_id"].startswith("ticking.tick.")


# --- the forms --------------------------------------------------------------------------------------------


async def test_life_cycle_messages_of_our_own_layers_have_fields_in_json(
    stream: io.StringIO,
) -> None:
    configure_logging(config(), stream)
    async with Runner(config(), [Inner]):
        pass

    lines = json_lines(stream)
    assert [(line["event"], line["service"]) for line in lines] == [
        ("service_started", "inner"),
        ("service_stopped", "inner"),
    ]
    assert {line["logger"] for line in lines} == {"mycelia.runtime"}


async def test_the_console_has_one_line_for_each_event_and_the_traceback_below(
    stream: io.StringIO,
) -> None:
    configure_logging(config(log_format="console"), stream)
    async with Runner(config(), [Inner]), Client(URI) as client:
        await client.call("inner", "failing")
        await client.call("inner", "on_the_loop")

    text = stream.getvalue()
    started = next(line for line in text.splitlines() if "service_started" in line)
    looked_up = next(line for line in text.splitlines() if "looked_up" in line)
    assert "\x1b" not in text  # no colours where there is no terminal
    assert "info" in started
    assert started.endswith("service=inner")
    assert "tail_number=N1" in looked_up
    assert "call_id=inner.on_the_loop." in looked_up
    assert "service=" not in looked_up  # the call id says it
    assert "KeyError: 'x'" in text


@pytest.mark.parametrize(
    "value",
    [object(), ValueError("x"), {1, 2}, b"bytes", float("nan"), 2**80, {"a": object()}, Path("/x")],
)
@pytest.mark.parametrize("form", ["json", "console"])
def test_any_value_can_be_logged(value: Any, form: str, stream: io.StringIO) -> None:
    configure_logging(config(log_format=form), stream)

    logging.getLogger("any").info(LogEvent("event", {"value": value, "level": "field", "event": 1}))

    assert len(stream.getvalue().splitlines()) == 1
    if form == "json":
        (line,) = json_lines(stream)
        assert (line["event"], line["level"], line["level_"]) == ("event", "info", "field")


class Unspeakable:
    def __str__(self) -> str:
        raise LookupError("no text")


class UnspeakableError(Exception):
    def __str__(self) -> str:
        return f"order {self.args[0]['id']}"


@dataclass
class Account:
    user: str
    password: str = field(repr=False)


(ENDPOINT,) = parse_uri("amqp://ada:s3cret@broker.example:5672/")

CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (True, True),
        (3, 3),
        (2.5, 2.5),
        (None, None),
        ("two words", "two words"),
        (ConfigError("no key"), "ConfigError: no key"),
        (TimeoutError(), "TimeoutError"),
        (float("inf"), "inf"),
        (2**80, str(2**80)),
        (10**5000, "int (no text: ValueError)"),
        (Path("/x"), "/x"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
        ([1, None, Path("/x"), {2: "b"}], [1, None, "/x", {"2": "b"}]),
        (Account("ada", "s3cret"), "Account(user='ada')"),
        (ENDPOINT, "broker.example:5672"),
        (Unspeakable(), "Unspeakable (no text: LookupError)"),
        ([Unspeakable()], ["Unspeakable (no text: LookupError)"]),
        (
            UnspeakableError({}),
            "UnspeakableError: (its text cannot be had: __str__ raised KeyError)",
        ),
        ("Ann \ud83d", "Ann \\ud83d"),
        (ValueError("Ann \ud83d"), "ValueError: Ann \\ud83d"),
        ({"\ud83d": "\ud83d"}, {"\\ud83d": "\\ud83d"}),
        (CYCLE, [[[["[[...]]"]]]]),
    ],
    ids=lambda v: type(v).__name__,
)
def test_values_keep_their_types_in_json_and_none_breaks_the_line(
    value: Any, shown: Any, stream: io.StringIO
) -> None:
    configure_logging(config(log_format="json"), stream)

    logging.getLogger("mycelia.any").info(event("happened", value=value))
    configure_logging(config(log_format="console"), text := io.StringIO())
    logging.getLogger("mycelia.any").info(event("happened", value=value))

    (line,) = json_lines(stream)
    assert (line["event"], line["value"]) == ("happened", shown)
    assert "happened" in text.getvalue()
    text.getvalue().encode()


def test_lines_of_others_are_the_text_they_are_and_cannot_forge_a_field(
    stream: io.StringIO,
) -> None:
    configure_logging(config(log_format="json"), stream)

    logging.getLogger("other").info("retrying attempt=%d", 2)
    logging.getLogger("mycelia.x").info(event("said", text='forged=1 "more": 2'))

    others, ours = json_lines(stream)
    assert (others["event"], "attempt" in others) == ("retrying attempt=2", False)
    assert (ours["event"], ours["text"]) == ("said", 'forged=1 "more": 2')
    assert "forged" not in ours


def test_somebody_elses_line_whose_values_have_no_text_is_still_written() -> None:
    def said(message: str, *args: Any, error: Exception | None = None) -> dict[str, Any]:
        """By the formatter alone: pytest's own handlers do not stand such a line."""
        exc_info = (type(error), error, None) if error is not None else None
        record = logging.LogRecord("library", logging.INFO, "", 1, message, args, exc_info)
        assert ConsoleFormatter(colours=False).format(record).encode()
        line: dict[str, Any] = json.loads(JsonFormatter().format(record))
        return line

    error = UnspeakableError({})
    error.__cause__ = ValueError("\ud83d")

    assert said("lost %s", Unspeakable())["event"] == (
        "lost %s (its values cannot be shown: LookupError)"
    )
    assert said("half \ud83d")["event"] == "half \\ud83d"
    trace = said("failed", error=error)["exception"]
    assert "UnspeakableError: <exception str() failed>" in trace
    assert "ValueError: \\ud83d" in trace


@pytest.mark.parametrize("chatty", ["httpx", "watchfiles.main"])
def test_the_level_is_set_and_chatty_libraries_stay_quiet_unless_asked(
    stream: io.StringIO, chatty: str
) -> None:
    configure_logging(config(log_level="INFO"), stream)
    logging.getLogger(chatty).info("connecting")
    logging.getLogger("own").debug("detail")
    assert stream.getvalue() == ""

    configure_logging(config(log_level="DEBUG"), stream)
    logging.getLogger(chatty).info("connecting")
    logging.getLogger("own").debug("detail")
    assert [line["event"] for line in json_lines(stream)] == ["connecting", "detail"]

    configure_logging(config(log_level="ERROR"), stream)
    logging.getLogger("own").warning("no more")
    assert "no more" not in stream.getvalue()


def test_a_second_configuration_replaces_the_first() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging(config(), first)
    configure_logging(config(), second)

    logging.getLogger("x").info("once")

    assert first.getvalue() == ""
    assert len(json_lines(second)) == 1


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"log_level": "LOUD"}, "log_level must be one of DEBUG, INFO"),
        ({"log_format": "xml"}, 'log_format must be "auto", "console" or "json"'),
        ({"log_level": 5}, "log_level"),
    ],
)
def test_a_setting_that_cannot_be_is_named(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        configure_logging(config(**section))


# --- LOGGING, as Nameko has it ------------------------------------------------------------------------------


async def test_logging_of_the_configuration_rules_alone(tmp_path: Path) -> None:
    target = tmp_path / "own.log"
    with_logging = config() | {
        "LOGGING": {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"own": {"format": "%(levelname)s|%(name)s|%(message)s"}},
            "handlers": {
                "file": {
                    "class": "logging.FileHandler",
                    "filename": str(target),
                    "formatter": "own",
                }
            },
            "loggers": {__name__: {"level": "INFO", "handlers": ["file"], "propagate": False}},
        }
    }
    try:
        configure_logging(with_logging)
        async with Runner(with_logging, [Inner]), Client(URI) as client:
            await client.call("inner", "on_the_loop")
    finally:
        own = logging.getLogger(__name__)
        for handler in own.handlers[:]:
            own.removeHandler(handler)
            handler.close()
        own.propagate = True
        own.setLevel(logging.NOTSET)

    (line,) = target.read_text().splitlines()
    assert line.startswith(f"INFO|{__name__}|looked_up service=inner method=on_the_loop call_id=")


@pytest.mark.parametrize(
    "logging_section", [{}, {"version": 1, "handlers": {"x": {"class": "no.such.Handler"}}}]
)
def test_a_logging_section_that_cannot_be_is_a_config_error(logging_section: Any) -> None:
    with pytest.raises(ConfigError, match='"LOGGING" is not what'):
        configure_logging(config() | {"LOGGING": logging_section})


# --- where it goes ------------------------------------------------------------------------------------------

SCRIPT = """
import logging
from mycelia import configure_logging
from mycelia.log_event import event
configure_logging({})
logging.getLogger("mycelia.x").info(event("hello", who="world"))
"""


def test_without_a_terminal_lines_are_json_on_standard_error() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=30
    )

    assert done.stdout == ""
    line = json.loads(done.stderr)
    assert (line["event"], line["who"]) == ("hello", "world")


@pytest.mark.parametrize("no_color", [False, True])
def test_on_a_terminal_lines_are_for_people(no_color: bool) -> None:
    master, slave = pty.openpty()
    environ = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
    if no_color:
        environ["NO_COLOR"] = "1"
    try:
        subprocess.run(
            [sys.executable, "-c", SCRIPT], stderr=slave, env=environ, check=True, timeout=30
        )
        text = os.read(master, 10_000).decode()
    finally:
        os.close(slave)
        os.close(master)

    assert "hello" in text
    assert not text.startswith("{")
    assert ("\x1b[" in text) != no_color
