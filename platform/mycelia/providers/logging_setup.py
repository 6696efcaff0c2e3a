"""Where log lines go and what they look like: on a terminal for people, otherwise JSON for machines.

All logging ends in the standard library's: the services' `Logger()`, our own layers, and every library. With `LOGGING`
in the configuration its `dictConfig` rules, as in Nameko; a structured event then reads `name key=value …`. Errors of ours
are seen whatever it says, unless it speaks of our loggers by name: a worker's traceback must not be lost because nobody
thought of them.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

from mycelia.errors import ConfigError, traceback_of
from mycelia.log_event import LogEvent, as_plain, as_text
from mycelia.providers.call_fields import fields_of
from mycelia.providers.exception_fields import exception_fields
from mycelia.redaction import without_secrets
from mycelia.runtime import Settings
from mycelia.runtime.settings import USED_BY_SOME

__all__ = ["ConsoleFormatter", "JsonFormatter", "configure_logging", "follow_log_level"]

OURS = "mycelia"
TOLD_TO_NOBODY_ELSE = (OURS, "asyncio", "uvicorn")
"""Loggers whose errors are about what this process does, and are raised to nobody."""

CHATTY = ("uvicorn", "asyncio", "httpx", "watchfiles")
"""Libraries whose INFO is of use only to those who work on them; shown at the level DEBUG."""


def event_of(record: logging.LogRecord) -> tuple[str, Mapping[str, Any]]:
    """The event and the fields of any record: of ours and of `Logger()` as they are, of anybody else's the text."""
    message = record.msg
    if isinstance(message, LogEvent):
        return message.name, message.fields
    try:
        return record.getMessage(), {}
    except Exception as exc:  # noqa: BLE001  # somebody's `%s` of something without a text
        return f"{as_text(message)} (its values cannot be shown: {type(exc).__name__})", {}


_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
"""What JSON lets stand in a text, and some who read it line by line take for an end of the line."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (UTC), `level`, `logger`, `event`, the event's fields.

    An exception is there twice: `exception` is the traceback as text, `exceptions` the chain as data, the raised one first.
    """

    def format(self, record: logging.LogRecord) -> str:
        event, fields = event_of(record)
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": as_text(event),
        }
        # A field never replaces what the line says of itself, nor the event's own fields those of the call.
        for key, value in {**fields_of(record), **fields}.items():
            line[key if key not in line else f"{key}_"] = _shown(key, value)
        if record.exc_info and record.exc_info[1] is not None:
            line["exceptions"] = exception_fields(record.exc_info[1])
            line["exception"] = as_text(traceback_of(record.exc_info[1]).rstrip())
        if record.stack_info:
            line["stack"] = as_text(record.stack_info)
        text = msgspec.json.encode(line).decode()
        return text if text.isascii() else text.translate(_LINE_ENDS)


class ConsoleFormatter(logging.Formatter):
    """One line for a person: time, level, event, fields, then the traceback.

    Args:
        colours: whether to use terminal colours.
    """

    def __init__(self, colours: bool) -> None:
        super().__init__()
        import structlog  # takes longer to import than the rest of this package; a client need not pay for it

        self._render = structlog.dev.ConsoleRenderer(
            colors=colours,
            exception_formatter=structlog.dev.plain_traceback,
            pad_event_to=28,
            sort_keys=False,
        )

    def format(self, record: logging.LogRecord) -> str:
        event, fields = event_of(record)
        line = {
            _one_line(as_text(key)): _for_console(_shown(key, value))
            for key, value in {**fields_of(record), **fields}.items()
        }
        call_id = str(line.get("call_id", ""))
        if call_id.startswith(f"{line.get('service')}.{line.get('method')}."):
            del line["service"], line["method"]  # the call id says them already
        if line.get("attempt") == 1:
            del line["attempt"]
        line["event"] = _indented(as_text(event))
        line["level"] = record.levelname.lower()
        line["timestamp"] = (
            datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        )
        if not record.name.startswith("mycelia"):
            line["logger"] = record.name
        if record.exc_info and record.exc_info[1] is not None:
            line["exc_info"] = record.exc_info
        if record.stack_info:
            line["stack"] = record.stack_info
        return as_text(str(self._render(None, record.levelname.lower(), line)))


_CONTROLS = {
    n: repr(chr(n))[1:-1] for n in (*range(32), *range(127, 160), 0x2028, 0x2029) if chr(n) != "\t"
}
"""What would move a terminal's cursor, change its colours, or begin another line."""
_CONTROLS_BUT_NEWLINE = {n: text for n, text in _CONTROLS.items() if n != 10} | {10: "\n    "}


def _one_line(text: str) -> str:
    return text if text.isprintable() else text.translate(_CONTROLS)


def _indented(text: str) -> str:
    """Text whose further lines cannot be taken for lines of the log."""
    return text if text.isprintable() else text.translate(_CONTROLS_BUT_NEWLINE)


def _for_console(value: Any) -> Any:
    return _one_line(value) if isinstance(value, str) else value


def _shown(key: object, value: Any) -> Any:
    """A field's value as JSON can carry it, without what its name says is secret, at any depth."""
    return without_secrets(as_plain(value), key)


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, so that a second `configure_logging()` can take it away again."""


def configure_logging(config: Mapping[str, Any], stream: TextIO | None = None) -> None:
    """Set the process's logging up from the configuration. May be called again; the latest call counts.

    `LOGGING`, if there, is given to `logging.config.dictConfig`, as in Nameko; where our errors would not be seen after that,
    and it does not name our loggers, they go to `stream` as they would without it. Otherwise
    everything from level `mycelia.log_level` goes to `stream`, in the form `mycelia.log_format`: "console", "json", or
    "auto", which is the console's on a terminal and JSON anywhere else.

    Args:
        config: the whole configuration.
        stream: where to write; standard error by default.

    Raises:
        ConfigError: a key has a wrong value, or `LOGGING` is not what `dictConfig` takes.
    """
    settings = Settings.from_config(config, unchecked=USED_BY_SOME)
    root = logging.getLogger()
    for logger in (root, logging.getLogger(OURS)):
        for handler in [h for h in logger.handlers if isinstance(h, _Handler)]:
            logger.removeHandler(handler)
    if settings.LOGGING is not None:
        from logging.config import (
            dictConfig,
        )  # brings a socket server along: only for those who use it

        try:
            dictConfig(settings.LOGGING)
        except (ValueError, TypeError, AttributeError, ImportError) as exc:
            cause = f" ({exc.__cause__})" if exc.__cause__ else ""
            raise ConfigError(
                f'configuration key "LOGGING" is not what logging.config.dictConfig takes: {exc}{cause}'
            ) from exc
        _let_errors_be_seen(settings, stream)
        return
    stream = sys.stderr if stream is None else stream
    handler = _Handler(stream)
    handler.setFormatter(_formatter(settings.mycelia.log_format, stream))
    root.addHandler(handler)
    _set_level(settings)


def _let_errors_be_seen(settings: Settings, stream: TextIO | None) -> None:
    """After a `LOGGING` block: undo what it did to loggers of ours that it does not name."""
    named = (settings.LOGGING or {}).get("loggers") or {}
    for name, logger in logging.Logger.manager.loggerDict.items():
        # `disable_existing_loggers` is true by default: all modules imported so far would be silent.
        if isinstance(logger, logging.Logger) and _top_of(name) in TOLD_TO_NOBODY_ELSE:
            logger.disabled = False
    if any(_top_of(str(name)) == OURS for name in named):
        return
    ours = logging.getLogger(OURS)
    if not ours.isEnabledFor(logging.ERROR):
        ours.setLevel(logging.ERROR)
    if _shows_errors(ours):
        return
    stream = sys.stderr if stream is None else stream
    handler = _Handler(stream)
    handler.setLevel(logging.ERROR)
    handler.setFormatter(_formatter(settings.mycelia.log_format, stream))
    ours.addHandler(handler)


def _top_of(name: str) -> str:
    return name.partition(".")[0]


def _shows_errors(logger: logging.Logger) -> bool:
    """Whether an error that `logger` takes comes to a handler that does something with it."""
    handlers: list[logging.Handler] = []
    at: logging.Logger | None = logger
    while at is not None:
        handlers += at.handlers
        at = at.parent if at.propagate else None
    return not handlers or any(  # without any, `logging.lastResort` writes it
        handler.level <= logging.ERROR and not isinstance(handler, logging.NullHandler)
        for handler in handlers
    )


def follow_log_level(old: Settings, new: Settings) -> None:
    """For `Host.on_change()`: log from another `mycelia.log_level` on. Not where `LOGGING` says what is logged."""
    if new.LOGGING is None and new.mycelia.log_level != old.mycelia.log_level:
        _set_level(new)


def _set_level(settings: Settings) -> None:
    level = logging.getLevelName(settings.mycelia.log_level)
    logging.getLogger().setLevel(level)
    for name in CHATTY:
        logging.getLogger(name).setLevel(
            logging.NOTSET if level <= logging.DEBUG else logging.WARNING
        )


def _formatter(form: str, stream: TextIO) -> logging.Formatter:
    is_terminal = stream.isatty()
    if form == "json" or (form == "auto" and not is_terminal):
        return JsonFormatter()
    return ConsoleFormatter(colours=is_terminal and "NO_COLOR" not in os.environ)
