"""Where log lines go and what they look like: on a terminal for people, otherwise JSON for machines.

All logging ends in the standard library's: the services' `Logger()`, our own layers, and every library. With `LOGGING`
in the configuration its `dictConfig` rules alone, as in Nameko; a structured event then reads `name key=value …`.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

from mycelia.errors import ConfigError
from mycelia.log_event import LogEvent, as_plain, as_text
from mycelia.providers.call_fields import call_fields
from mycelia.runtime import Settings

__all__ = ["ConsoleFormatter", "JsonFormatter", "configure_logging", "follow_log_level"]

CHATTY = ("uvicorn", "asyncio", "httpx")
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


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (UTC), `level`, `logger`, `event`, the event's fields, `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        event, fields = event_of(record)
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": as_text(event),
        }
        # A field never replaces what the line says of itself, nor the event's own fields those of the call.
        for key, value in {**call_fields(), **fields}.items():
            line[key if key not in line else f"{key}_"] = as_plain(value)
        if record.exc_info and record.exc_info[1] is not None:
            trace = "".join(traceback.format_exception(record.exc_info[1]))
            line["exception"] = as_text(trace.rstrip())
        if record.stack_info:
            line["stack"] = as_text(record.stack_info)
        return msgspec.json.encode(line).decode()


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
        line = {key: as_plain(value) for key, value in {**call_fields(), **fields}.items()}
        call_id = str(line.get("call_id", ""))
        if call_id.startswith(f"{line.get('service')}.{line.get('method')}."):
            del line["service"], line["method"]  # the call id says them already
        line["event"] = as_text(event)
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


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, so that a second `configure_logging()` can take it away again."""


def configure_logging(config: Mapping[str, Any], stream: TextIO | None = None) -> None:
    """Set the process's logging up from the configuration. May be called again; the latest call counts.

    `LOGGING`, if there, is given to `logging.config.dictConfig` and nothing else is done, as in Nameko. Otherwise
    everything from level `mycelia.log_level` goes to `stream`, in the form `mycelia.log_format`: "console", "json", or
    "auto", which is the console's on a terminal and JSON anywhere else.

    Args:
        config: the whole configuration.
        stream: where to write; standard error by default.

    Raises:
        ConfigError: a key has a wrong value, or `LOGGING` is not what `dictConfig` takes.
    """
    settings = Settings.from_config(config)
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _Handler)]:
        root.removeHandler(handler)
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
        return
    stream = sys.stderr if stream is None else stream
    handler = _Handler(stream)
    handler.setFormatter(_formatter(settings.mycelia.log_format, stream))
    root.addHandler(handler)
    _set_level(settings)


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
