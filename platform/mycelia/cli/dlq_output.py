"""What `mycelia dlq` prints: for people, and as JSON."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any, Final, Self

import msgspec

from mycelia.control.dead_letters import (
    DeadLetterQueue,
    Letter,
    LetterGroups,
    Payload,
    RedriveReport,
)
from mycelia.durations import duration_text
from mycelia.entrypoints.republished import TRACEBACK_HEADER
from mycelia.logs.batch_format import INDEX_HEADER, OFFSET_HEADER, PARTITION_HEADER

__all__ = [
    "Progress",
    "as_json",
    "for_terminal",
    "of_letter",
    "of_queue",
    "of_report",
    "print_groups",
    "print_letter",
    "print_queues",
    "print_report",
]

PROGRESS_S: Final = 0.2
QUIET_PROGRESS_S: Final = 5.0
"""Between two lines of progress where there is no terminal."""


# --- JSON ------------------------------------------------------------------------------------------------


def as_json(value: Any, indent: int | None = 2) -> str:
    """JSON of what the wire may bring: bytes in base64, dates as text, half characters escaped."""
    return json.dumps(_plain(value), indent=indent, ensure_ascii=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime | date):
        return msgspec.to_builtins(value)  # as `mycelia call` shows them
    return str(value)


def of_queue(
    queue: DeadLetterQueue,
    oldest_ms: int | None,
    groups: LetterGroups | None,
    looked_at: int,
    trouble: str | None,
) -> dict[str, Any]:
    """One dead-letter queue."""
    row: dict[str, Any] = {
        "queue": queue.name,
        "messages": queue.messages,
        "oldest": _time(oldest_ms),
        "trouble": trouble,
    }
    if groups is not None:
        row["looked_at"] = looked_at
        row["groups"] = [
            {
                "count": group.count,
                "error_type": group.error_type,
                "handler": group.handler,
                "reason": group.reason,
                "error": group.error,
                "oldest": _time(group.oldest_ms),
                "newest": _time(group.newest_ms),
            }
            for group in groups.ranked()
        ]
        row["in_further_groups"] = groups.others
    return row


def of_letter(letter: Letter) -> dict[str, Any]:
    """One dead letter, with all that it has."""
    properties = letter.properties
    payload = Payload.of(letter.body, properties)
    return {
        "dead_letter_queue": letter.dead_letter_queue,
        "position": letter.position,
        "message_id": letter.message_id,
        "reason": letter.reason,
        "error_type": letter.error_type,
        "error": letter.error,
        "traceback": letter.traceback,
        "service": letter.service,
        "method": letter.method,
        "attempts": letter.attempts,
        "first_failed": _time(letter.first_failed_at_ms),
        "failed": _time(letter.failed_at_ms),
        "trace_id": letter.trace_id,
        "queue": letter.queue,
        "exchange": letter.exchange,
        "routing_key": letter.routing_key,
        "log_place": _log_place(letter),
        "properties": _properties_of(letter),
        "headers": properties.headers or {},
        "size_bytes": len(letter.body),
        "payload": payload.value,
        "payload_form": payload.form,
        "payload_problem": payload.problem,
    }


def of_report(report: RedriveReport, dry_run: bool = False) -> dict[str, Any]:
    """What a run has done."""
    return {
        "dead_letter_queue": report.dead_letter_queue,
        "dry_run": dry_run,
        "there": report.there,
        "looked_at": report.looked_at,
        "chosen": report.chosen,
        "done": report.sent,
        "destinations": dict(report.destinations),
        "stranded": [
            {"queue": one.queue, "why": one.why, "count": count}
            for one, count in report.stranded.items()
        ],
        "foreign": report.foreign,
        "maybe_twice": report.maybe_twice,
        "moved_to_the_end": report.moved_to_the_end,
        "error": report.error,
    }


def _properties_of(letter: Letter) -> dict[str, Any]:
    values = msgspec.structs.asdict(letter.properties)
    del values["headers"]
    return {name: value for name, value in values.items() if value is not None}


def _log_place(letter: Letter) -> dict[str, int] | None:
    """Where in a log it was; `None`: in none."""
    headers = letter.properties.headers or {}
    names = {"partition": PARTITION_HEADER, "offset": OFFSET_HEADER, "record": INDEX_HEADER}
    told = {name: headers.get(header) for name, header in names.items()}
    return {name: at for name, at in told.items() if type(at) is int} or None


def _place_text(letter: Letter) -> str | None:
    place = _log_place(letter) or {}
    return ", ".join(f"{name} {at}" for name, at in place.items()) or None


def _time(ms: int | None) -> str | None:
    if ms is None:
        return None
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return None


# --- for people ------------------------------------------------------------------------------------------


def for_terminal(value: object) -> str:
    """Text of somebody else's as it may come to a terminal: what would steer it is escaped."""
    text = value if isinstance(value, str) else str(value)
    return "".join(
        one if one.isprintable() or one in "\n\t" else one.encode("unicode_escape").decode()
        for one in text
    )


def _line(value: object, width: int = 200) -> str:
    """One line of it."""
    text = " ".join(for_terminal(value).split())
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _ago(iso: str | None) -> str:
    if iso is None:
        return "?"
    seconds = time.time() - datetime.fromisoformat(iso).timestamp()
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit} ago"
    return f"{duration_text(max(0, int(seconds)))} ago"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Columns as wide as they need to be; numbers in the first to the right, the last as long as it is."""
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head) - 1)]
    for row in (head, *rows):
        cells = [
            row[0].rjust(widths[0]),
            *(c.ljust(w) for c, w in zip(row[1:-1], widths[1:], strict=True)),
        ]
        print("  ".join((*cells, row[-1])).rstrip())


def print_queues(rows: list[dict[str, Any]]) -> None:
    """The table of `ls`."""
    if not rows:
        print("no dead-letter queues")
        return
    table: list[tuple[str, ...]] = []
    for row in rows:
        oldest = _ago(row["oldest"]) if row["messages"] and not row["trouble"] else ""
        table.append((str(row["messages"]), oldest, _line(row["queue"], 300)))
    _table(("MESSAGES", "OLDEST", "QUEUE"), table)
    for row in rows:
        if row["trouble"]:
            print(f"mycelia dlq: {row['trouble']}", file=sys.stderr)


def print_groups(rows: list[dict[str, Any]]) -> None:
    """What `ls --group` adds."""
    for row in rows:
        if not row["groups"]:
            continue
        looked = row["looked_at"]
        of_all = "" if looked >= row["messages"] else f" (the first {looked} of {row['messages']})"
        print(f"\n{_line(row['queue'], 300)}{of_all}")
        _table(
            ("COUNT", "ERROR", "HANDLER", "OLDEST", "NEWEST", "FOR INSTANCE"),
            [
                (
                    str(group["count"]),
                    _line(group["error_type"] or group["reason"] or "?", 60),
                    _line(group["handler"] or "?", 60),
                    _ago(group["oldest"]),
                    _ago(group["newest"]),
                    _line(group["error"] or "", 80),
                )
                for group in row["groups"]
            ],
        )
        if row["in_further_groups"]:
            print(f"and {row['in_further_groups']} of further kinds")


def print_letter(letter: Letter, total: int) -> None:
    """All of one dead letter."""
    failed, first = _time(letter.failed_at_ms), _time(letter.first_failed_at_ms)
    error = letter.error_type and f"{letter.error_type}: {letter.error}"
    when = failed and f"{failed} ({_ago(failed)})"
    tried = letter.attempts and f"{letter.attempts}, the first failed {first}"
    print(f"{_line(letter.dead_letter_queue, 300)}  {letter.position} of {total}")
    for name, value in (
        ("message id", letter.message_id),
        ("handler", letter.handler),
        ("reason", letter.reason),
        ("error", error),
        ("failed", when),
        ("attempts", tried),
        ("queue", letter.queue),
        ("exchange", letter.exchange),
        ("routing key", letter.routing_key),
        ("trace", letter.trace_id),
        ("in the log", _place_text(letter)),
    ):
        if value:
            print(f"{name:12} {_line(value, 500)}")
    print("properties")
    for name, one in _properties_of(letter).items():
        print(f"  {name} = {_line(one, 500)}")
    headers = {
        name: one
        for name, one in (letter.properties.headers or {}).items()
        if name != TRACEBACK_HEADER
    }
    if headers:
        print("headers")
        for name, one in headers.items():
            print(f"  {_line(name)} = {_line(one, 500)}")
    if letter.traceback:
        print("traceback")
        print(
            "\n".join(f"  {for_terminal(line)}" for line in letter.traceback.rstrip().split("\n"))
        )
    payload = Payload.of(letter.body, letter.properties)
    form = "" if payload.form == "json" else f", {payload.form}"
    print(
        f"payload ({letter.properties.content_type or 'no content type'}, {len(letter.body)} bytes{form})"
    )
    if payload.problem:
        print(f"  ! {_line(payload.problem, 500)}")
    print(for_terminal(payload.text))


def print_report(report: RedriveReport, done: str) -> None:
    """What a run has done; on stderr what it has not, and what to do."""
    count = report.destinations.total() or report.sent
    print(
        f"{count} {done}, {report.looked_at} of {report.there} looked at: {report.dead_letter_queue}"
    )
    for destination, number in report.destinations.most_common():
        print(f"  {number} to {_line(destination, 300)}")

    def say(text: str) -> None:
        print(f"mycelia dlq: {text}", file=sys.stderr)

    for stranded, number in report.stranded.most_common():
        of_queue = "" if stranded.queue is None else f' of queue "{_line(stranded.queue, 300)}"'
        say(f"{number}{of_queue} stay where they are: {stranded.why}.")
    if report.stranded:
        say(
            "They can go elsewhere: to another queue (--to QUEUE), to every handler of the event (--to-exchange), or into a "
            "queue that waits for its service (--unattended)."
        )
    if report.foreign:
        say(
            f"{report.foreign} are no dead letters of Mycelia's and were left alone (redrive --to, purge --foreign)."
        )
    if report.maybe_twice:
        say(f"{report.maybe_twice} may be in both places: the connection was lost in between.")
    if report.moved_to_the_end:
        say(
            f"{report.moved_to_the_end} are at the end of the queue now: its delivery limit is RabbitMQ's default, and they had "
            "nearly been looked at too often."
        )
    if report.error is not None:
        say(f"ended early: {report.error} What was not {done} is where it was.")


class Progress:
    """Tells how far a run is: one line that changes on a terminal, a line now and then elsewhere."""

    def __init__(self, done: str) -> None:
        self._done = done
        self._is_terminal = sys.stderr.isatty()
        self._every = PROGRESS_S if self._is_terminal else QUIET_PROGRESS_S
        self._told_at = time.monotonic()
        self._has_told = False

    def tell(self, report: RedriveReport) -> None:
        now = time.monotonic()
        if now - self._told_at < self._every:
            return
        self._told_at = now
        self._has_told = True
        count = report.destinations.total() or report.sent
        text = f"{count} {self._done}, {report.looked_at} of {report.there} looked at"
        if self._is_terminal:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._is_terminal and self._has_told:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
