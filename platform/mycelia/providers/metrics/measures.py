"""What is counted of each call: middleware around it, made once for its target, that adds to cells.

| metric | of | counted when |
|---|---|---|
| `mycelia_calls_total` | all calls | they have ended, by `outcome` |
| `mycelia_errors_total` | all calls | they have ended with an error, by its class |
| `mycelia_call_duration_seconds` | all calls but refused ones | they have ended |
| `mycelia_retried_calls_total` | those that arrive | one has ended that was not its message's first attempt |
| `mycelia_queue_time_seconds` | those that arrive, whose publishing time is known | the first attempt begins: since it was published |
| `mycelia_critical_time_seconds` | the same | a call has ended well: since it was published |
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from mycelia.call import Call, CallKind, Direction, Middleware, Next, Observer, Outcome, Target
from mycelia.errors import DeadlinePassed, HandlerTimeout, Overloaded, class_name_of
from mycelia.providers.metrics.cells import Cells, CellsFull
from mycelia.wire import PUBLISHED_HEADER, read_published_ms

__all__ = [
    "CALLS",
    "CRITICAL_TIME",
    "DURATION",
    "ERRORS",
    "OUTCOMES",
    "QUEUE_TIME",
    "RETRIED",
    "Measures",
    "outcome_name",
]

CALLS = "mycelia_calls"
ERRORS = "mycelia_errors"
DURATION = "mycelia_call_duration_seconds"
RETRIED = "mycelia_retried_calls"
QUEUE_TIME = "mycelia_queue_time_seconds"
CRITICAL_TIME = "mycelia_critical_time_seconds"

OUTCOMES = ("ok", "error", "refused", "expired", "shed", "timeout", "cancelled")

MAX_ERRORS = 20
"""Classes of error that a target has series of its own for; further ones are counted as `other`. Arbitrary: a bound, because
a caller sees the classes of whatever it calls."""

LONGER = (300.0, 1800.0, 7200.0, 86400.0)
"""Bounds of waiting times beyond those of durations: a message may wait for long."""

FROM_THE_BROKER = "timestamp_in_ms"
"""Header that a broker adds whose message interceptor `set_header_timestamp` is on."""


def outcome_name(outcome: Outcome) -> str:
    """One of `OUTCOMES`."""
    error = outcome.error
    if error is None:
        return "ok"
    if isinstance(error, HandlerTimeout):
        return "timeout"
    if outcome.is_refused:
        if isinstance(error, DeadlinePassed):
            return "expired"
        return "shed" if isinstance(error, Overloaded) else "refused"
    return "cancelled" if issubclass(type(error), asyncio.CancelledError) else "error"


class Measures:
    """Makes the middleware that counts.

    Args:
        cells: where it counts.
        bounds: of durations, in seconds; waiting times have further ones.
    """

    def __init__(self, cells: Cells, bounds: tuple[float, ...]) -> None:
        self.cells = cells
        self.bounds = bounds
        self.long_bounds = (*bounds, *(bound for bound in LONGER if bound > bounds[-1]))
        self.left_out = 0
        """Targets that there was no room for."""

    def middleware(self, direction: Direction, target: Target) -> Middleware | None:
        """What counts the calls of `target`; `None` where there is no room for another one's cells."""
        labels = {
            "direction": direction.value,
            "kind": target.kind.value,
            "service": target.service,
            "method": target.method,
        }
        try:
            if direction is Direction.OUTBOUND:
                return self._outbound(labels, target.kind)
            return self._inbound(labels, target.kind)
        except CellsFull:
            self.left_out += 1
            return None

    def _ends(self, labels: dict[str, str]) -> tuple[_Ends, int]:
        outcomes = {
            outcome: self.cells.series(CALLS, {**labels, "outcome": outcome}, "counter").at
            for outcome in OUTCOMES
        }
        durations = self.cells.series(DURATION, labels, "histogram", self.bounds).at
        return _Ends(self.cells, labels, outcomes), durations

    def _inbound(self, labels: dict[str, str], kind: CallKind) -> Middleware:
        ends, durations = self._ends(labels)
        ok = ends.outcomes["ok"]
        values, bounds = self.cells.values, self.bounds
        sum_of_durations = durations + len(bounds) + 1
        its = {name: value for name, value in labels.items() if name != "direction"}
        retried = self.cells.series(RETRIED, its, "counter").at
        observe_waits = None
        if kind not in (CallKind.TIMER, CallKind.HTTP):
            observe_waits = _Waits(self.cells, its, self.long_bounds).observe
        monotonic = time.monotonic

        def count_arrived(call: Call, outcome: Outcome) -> None:
            if call.attempt > 1 and call.refusal is None:
                values[retried] += 1.0
            if call.started_at:
                lasted = monotonic() - call.started_at
                values[durations + bisect_left(bounds, lasted)] += 1.0
                values[sum_of_durations] += lasted
            if outcome.error is None:
                values[ok] += 1.0
            else:
                ends.count(outcome)
            message = call.message
            if observe_waits is None or message is None:
                return
            headers = call.headers
            if message.properties.timestamp is not None or (
                headers and (PUBLISHED_HEADER in headers or FROM_THE_BROKER in headers)
            ):
                observe_waits(call, outcome)

        return Observer(count_arrived)

    def _outbound(self, labels: dict[str, str], kind: CallKind) -> Middleware:
        ends, durations = self._ends(labels)
        ok = ends.outcomes["ok"]
        values, bounds = self.cells.values, self.bounds
        sum_of_durations = durations + len(bounds) + 1
        monotonic, wall = time.monotonic, time.time

        async def count_leaving(call: Call, next: Next) -> Outcome:
            headers = call.headers
            if type(headers) is dict:  # made for this call; a middleware's own may be anybody's
                headers[PUBLISHED_HEADER] = int(wall() * 1000)
            started_at = monotonic()
            try:
                outcome = await next(call)
            except BaseException:
                ends.count_cancelled()
                raise
            lasted = monotonic() - started_at
            values[durations + bisect_left(bounds, lasted)] += 1.0
            values[sum_of_durations] += lasted
            if outcome.error is None:
                values[ok] += 1.0
            else:
                ends.count(outcome)
            return outcome

        return count_leaving


class _Ends:
    """Counts how the calls of one target end, other than well."""

    def __init__(self, cells: Cells, labels: dict[str, str], outcomes: Mapping[str, int]) -> None:
        self.outcomes = outcomes
        self._cells = cells
        self._labels = labels
        self._errors: dict[str, int] = {}

    def count(self, outcome: Outcome) -> None:
        self._cells.values[self.outcomes[outcome_name(outcome)]] += 1.0
        assert outcome.error is not None
        self._count_error(class_name_of(outcome.error))

    def count_cancelled(self) -> None:
        self._cells.values[self.outcomes["cancelled"]] += 1.0
        self._count_error("CancelledError")

    def _count_error(self, name: str) -> None:
        if name not in self._errors and len(self._errors) >= MAX_ERRORS:
            name = "other"
        at = self._errors.get(name)
        if at is None:
            at = self._errors[name] = self._cell_of(name)
        if at >= 0:
            self._cells.values[at] += 1.0

    def _cell_of(self, name: str) -> int:
        try:
            return self._cells.series(ERRORS, {**self._labels, "error": name}, "counter").at
        except CellsFull:
            return -1


class _Waits:
    """Observes how long the messages of one target have waited, and how long until they were done with."""

    def __init__(self, cells: Cells, labels: dict[str, str], bounds: tuple[float, ...]) -> None:
        self._values = cells.values
        self._bounds = bounds
        self._queue = cells.series(QUEUE_TIME, labels, "histogram", bounds).at
        self._critical = cells.series(CRITICAL_TIME, labels, "histogram", bounds).at

    def observe(self, call: Call, outcome: Outcome) -> None:
        published = published_at(call)
        if published is None or not call.started_at:
            return
        # Wall clocks of two machines: what seems to come before its publishing has not waited.
        since = max(0.0, time.time() - published)
        if outcome.error is None:
            self._add(self._critical, since)
        if call.attempt == 1:
            self._add(self._queue, max(0.0, since - (time.monotonic() - call.started_at)))

    def _add(self, at: int, seconds: float) -> None:
        self._values[at + bisect_left(self._bounds, seconds)] += 1.0
        self._values[at + len(self._bounds) + 1] += seconds


def published_at(call: Call) -> float | None:
    """When the message of a call was published, in seconds since the epoch; `None` where nobody has said.

    By the millisecond where its publisher has metrics on, or the broker notes it; else by the second, as AMQP has it. Then the
    end of that second counts: a wait is rather up to a second longer than said than ever shorter.
    """
    ms = read_published_ms(call.headers)
    if ms is None:
        ms = _by_the_broker(call.headers)
    if ms is not None:
        return ms / 1000
    message = call.message
    seconds = None if message is None else message.properties.timestamp
    return seconds + 1.0 if type(seconds) is int and seconds > 0 else None


def _by_the_broker(headers: Mapping[str, Any] | None) -> int | None:
    ms = headers.get(FROM_THE_BROKER) if headers else None
    return ms if type(ms) is int and ms > 0 else None
