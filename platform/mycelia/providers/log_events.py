"""What a log line says, as data: an event's name and its fields, whichever way it came in.

Three kinds of records meet in one process: those of `Logger()` (structured from the start), those of our own layers
(`log.info("service_started service=%s", name)`: a name and `key=%s` pairs), and everybody else's (prose). Pure.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any, NamedTuple

from mycelia.log_event import LogEvent, as_text

__all__ = ["event_of"]

OWN_LOGGERS = "mycelia"

_PAIR = re.compile(r"(?:^|\s)([A-Za-z_][\w.]*)=")
_SPEC = re.compile(r"%(?:%|[-#0 +]*\d*(?:\.\d+)?[a-zA-Z])")
_WITH_DETAIL = re.compile(r"(\S+)[:;,]\s+([^%]+)")


def event_of(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """The event and the fields of any record; prose is an event without fields."""
    if isinstance(record.msg, LogEvent):
        return record.msg.name, dict(record.msg.fields)
    is_own = record.name == OWN_LOGGERS or record.name.startswith(OWN_LOGGERS + ".")
    if is_own and isinstance(record.msg, str) and isinstance(record.args, tuple | None):
        arguments = record.args or ()
        template = parse_template(record.msg)
        if template is not None and template.taken == len(arguments):
            return template.fill(arguments)
    try:
        return record.getMessage(), {}
    except Exception as exc:  # noqa: BLE001  # somebody's `%s` of something without a text
        return f"{as_text(record.msg)} (its values cannot be shown: {type(exc).__name__})", {}


class _Field(NamedTuple):
    key: str
    text: str
    """What is formatted with the field's arguments; empty where the value is one argument as it is."""
    taken: int
    """How many of the record's arguments are its own."""


def _value(field: _Field, own: tuple[Any, ...], formats: bool) -> Any:
    if not field.text:
        # As the layer wrote it: `%s` of an object is its text. Its attributes are nobody's business (a broker's
        # endpoint knows the password, and shows itself without).
        return own[0] if isinstance(own[0], str | int | float | None) else str(own[0])
    return (
        field.text % own if formats else field.text
    )  # without arguments, logging leaves "%" alone


class Template(NamedTuple):
    """A format string of one of our own layers, taken apart."""

    event: _Field
    fields: tuple[_Field, ...]
    taken: int

    def fill(self, arguments: tuple[Any, ...]) -> tuple[str, dict[str, Any]]:
        """The event and the fields for the arguments of one record; numbers stay numbers."""
        filled: dict[str, Any] = {}
        position = self.event.taken
        event = str(_value(self.event, arguments[:position], bool(arguments)))
        for field in self.fields:
            own = arguments[position : position + field.taken]
            position += field.taken
            filled[field.key] = _value(field, own, bool(arguments))
        return event, filled


@lru_cache(maxsize=1024)
def parse_template(message: str) -> Template | None:
    """Take `"grace_over service=%s unfinished=%d: cancelled"` apart; `None` for anything of another form.

    The pairs are found in the format string, not in the formatted text, so a value cannot forge a field.
    """
    pairs = list(_PAIR.finditer(message))
    starts = [pair.start() for pair in pairs] + [len(message)]
    event, detail = _split(message[: starts[0]].strip())
    if not _SPEC.sub("x", event).isidentifier():
        return None
    fields: list[_Field] = []
    for pair, end in zip(pairs, starts[1:], strict=True):
        text, more = _split(message[pair.end() : end].strip())
        detail = more or detail
        is_bare = text != "%%" and _SPEC.fullmatch(text) is not None
        fields.append(_Field(pair.group(1), "" if is_bare else text, _specs(text)))
    if detail:
        fields.append(_Field("detail", detail, 0))
    named = _Field("event", event, _specs(event))
    return Template(named, tuple(fields), sum(field.taken for field in (named, *fields)))


def _split(text: str) -> tuple[str, str]:
    """A value and the remark behind it: `"%d: cancelled"` is `"%d"` and `"cancelled"`."""
    match = _WITH_DETAIL.fullmatch(text)
    return (match[1], match[2]) if match else (text, "")


def _specs(text: str) -> int:
    return sum(spec != "%%" for spec in _SPEC.findall(text))
