"""A dead letter as a record, which ones are meant, and what they have in common. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from mycelia.amqp import Delivery, Properties
from mycelia.entrypoints.dead_letters import SUFFIX
from mycelia.entrypoints.origin import EXCHANGE_HEADER, ROUTING_KEY_HEADER
from mycelia.entrypoints.republished import (
    ERROR_HEADER,
    FIRST_FAILED_HEADER,
    LEFT_OUT_HEADER,
    QUEUE_HEADER,
    REASON_HEADER,
    TRACE_ID_HEADER,
    TRACEBACK_HEADER,
)

__all__ = ["Letter", "LetterFilter", "LetterGroup", "LetterGroups"]

MAX_GROUPS: Final = 1000
"""Groups that are told apart; further ones are counted together. Arbitrary; it bounds the memory."""


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a dead-letter queue, and what its headers tell of its fate.

    A field is `None` where the header is missing or is not what it should be: anybody can put a message into such a queue.
    """

    dead_letter_queue: str
    position: int
    """In its queue as it was when it was looked at, from 1."""
    body: bytes
    properties: Properties
    reason: str | None
    error_type: str | None
    error: str | None
    traceback: str | None
    service: str | None
    method: str | None
    attempts: int | None
    first_failed_at_ms: int | None
    failed_at_ms: int | None
    trace_id: str | None
    queue: str | None
    """Of the handler that could not handle it."""
    exchange: str | None
    routing_key: str | None

    @classmethod
    def of(cls, delivery: Delivery, dead_letter_queue: str, position: int) -> Letter:
        """Read it. Never raises, whatever the headers hold."""
        headers: Mapping[Any, Any] = delivery.properties.headers or {}

        def text(name: str) -> str | None:
            value = headers.get(name)
            return value if isinstance(value, str) else None

        def number(name: str) -> int | None:
            value = headers.get(name)
            return value if type(value) is int else None

        queue = text(QUEUE_HEADER)
        if queue is None and LEFT_OUT_HEADER in headers and dead_letter_queue.endswith(SUFFIX):
            queue = dead_letter_queue.removesuffix(SUFFIX)  # it had no room for more than its body
        return cls(
            dead_letter_queue=dead_letter_queue,
            position=position,
            body=delivery.body,
            properties=delivery.properties,
            reason=text(REASON_HEADER),
            error_type=text("x-mycelia-error-type"),
            error=text(ERROR_HEADER),
            traceback=text(TRACEBACK_HEADER),
            service=text("x-mycelia-service"),
            method=text("x-mycelia-method"),
            attempts=number("x-mycelia-attempts"),
            first_failed_at_ms=number(FIRST_FAILED_HEADER),
            failed_at_ms=number("x-mycelia-failed-at-ms"),
            trace_id=text(TRACE_ID_HEADER),
            queue=queue,
            exchange=text(EXCHANGE_HEADER),
            routing_key=text(ROUTING_KEY_HEADER),
        )

    @property
    def handler(self) -> str | None:
        """`service.method`."""
        if self.service is None or self.method is None:
            return None
        return f"{self.service}.{self.method}"

    @property
    def is_ours(self) -> bool:
        """Whether Mycelia made it a dead letter; anything else in the queue is somebody else's affair."""
        headers = self.properties.headers or {}
        return self.reason is not None or LEFT_OUT_HEADER in headers

    def is_same(self, other: Letter) -> bool:
        """Whether both are one message, looked at twice: the broker's counts of it may differ."""
        return (self.body, self.message_id, self.failed_at_ms, self.first_failed_at_ms) == (
            other.body,
            other.message_id,
            other.failed_at_ms,
            other.first_failed_at_ms,
        ) and (self.queue, self.routing_key, self.attempts, self.error, self.trace_id) == (
            other.queue,
            other.routing_key,
            other.attempts,
            other.error,
            other.trace_id,
        )

    @property
    def message_id(self) -> str | None:
        return self.properties.message_id


class LetterFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which dead letters are meant: those that all of what is given here is true of."""

    error: str | None = None
    """The error's class, with or without its module."""
    handler: str | None = None
    """`service.method`, or the method alone."""
    reason: str | None = None
    older_than_s: float | None = None
    """It failed last at least so many seconds ago."""
    newer_than_s: float | None = None
    """It failed last within so many seconds."""
    text: str | None = None
    """In the body as it travels, the error or the traceback."""
    message_ids: tuple[str, ...] = ()
    """It is one of these."""

    def accepts(self, letter: Letter, now: float) -> bool:
        """Whether `letter` is meant; `now` is wall-clock seconds."""
        return (
            (self.error is None or _is_named(letter.error_type, self.error))
            and (self.handler is None or self.handler in (letter.handler, letter.method))
            and (self.reason is None or letter.reason == self.reason)
            and self._is_of_age(letter, now)
            and (not self.message_ids or letter.message_id in self.message_ids)
            and (self.text is None or _holds(letter, self.text))
        )

    def _is_of_age(self, letter: Letter, now: float) -> bool:
        if self.older_than_s is None and self.newer_than_s is None:
            return True
        if letter.failed_at_ms is None:
            return False
        age = now - letter.failed_at_ms / 1000
        return (self.older_than_s is None or age >= self.older_than_s) and (
            self.newer_than_s is None or age <= self.newer_than_s
        )

    @property
    def is_empty(self) -> bool:
        """Whether it means all of them."""
        return self == LetterFilter()


def _is_named(error_type: str | None, wanted: str) -> bool:
    return error_type is not None and (
        error_type == wanted or error_type.rpartition(".")[2] == wanted
    )


def _holds(letter: Letter, text: str) -> bool:
    return (
        text.encode("utf-8", "surrogateescape") in letter.body
        or text in (letter.error or "")
        or text in (letter.traceback or "")
    )


class LetterGroup(msgspec.Struct, kw_only=True):
    """Dead letters that failed with the same kind of error in the same handler."""

    error_type: str | None
    handler: str | None
    reason: str | None
    count: int = 0
    oldest_ms: int | None = None
    newest_ms: int | None = None
    error: str | None = None
    """The text of the first one's error."""


class LetterGroups:
    """Counts dead letters by error and handler."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str | None, ...], LetterGroup] = {}
        self.others = 0
        """Those of further groups than `MAX_GROUPS`."""

    def add(self, letter: Letter) -> None:
        key = (letter.error_type, letter.handler, letter.reason)
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= MAX_GROUPS:
                self.others += 1
                return
            group = self._groups[key] = LetterGroup(
                error_type=letter.error_type,
                handler=letter.handler,
                reason=letter.reason,
                error=letter.error,
            )
        group.count += 1
        group.oldest_ms = _extreme(min, group.oldest_ms, letter.failed_at_ms)
        group.newest_ms = _extreme(max, group.newest_ms, letter.failed_at_ms)

    def ranked(self) -> list[LetterGroup]:
        """The largest first."""
        return sorted(self._groups.values(), key=lambda group: -group.count)


def _extreme(choose: Any, *values: int | None) -> int | None:
    known: Iterable[int] = [value for value in values if value is not None]
    return choose(known, default=None)  # type: ignore[no-any-return]  # min or max
