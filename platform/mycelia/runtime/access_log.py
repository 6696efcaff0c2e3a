"""Access lines: one for each call that arrives, of every kind, in one form (`mycelia: access_log:`).

    call_ended kind=rpc call=planes.get outcome=ok duration_ms=1.2 waited_ms=0.1 attempt=1 call_id=planes.get.… caller=…

Written by a middleware outside of all others of the services, so that a call that is refused has its line too. An HTTP request has
the one that the server writes when the response has left (`entrypoints/http/server.py`), whoever answered it.
"""

from __future__ import annotations

import logging
import math
import random
import time
from asyncio import CancelledError
from collections.abc import Callable
from typing import Any

from mycelia.call import (
    Call,
    CallKind,
    Direction,
    Middleware,
    Observer,
    Outcome,
    Target,
    current_call,
    redacted_arguments,
)
from mycelia.errors import DeadlinePassed, HandlerTimeout, class_name_of
from mycelia.log_event import event
from mycelia.runtime.settings import AccessLogSection
from mycelia.wire import CALL_ID_STACK

__all__ = ["AccessLog"]

log = logging.getLogger("mycelia.access_log")

FROM_THE_BROKER = "timestamp_in_ms"
"""Header that a broker adds whose message interceptor `set_header_timestamp` is on."""

MAX_CALL_ID = 300
"""Characters of a caller's id that are shown; it comes from outside."""


class AccessLog:
    """Writes access lines; a source of middleware.

    Args:
        section: what is written.
        chance: a number in [0, 1) for each success, where they are sampled.
    """

    def __init__(
        self, section: AccessLogSection, *, chance: Callable[[], float] = random.random
    ) -> None:
        self._section = section
        self._chance = chance
        self._slow = math.inf if section.slower_than is None else section.slower_than

    @classmethod
    def of(cls, asked_for: bool | AccessLogSection | None) -> AccessLog | None:
        """What the setting `mycelia.access_log` asks for; `None` where it asks for nothing."""
        if not asked_for:
            return None
        return cls(AccessLogSection() if asked_for is True else asked_for)

    def middleware(self, direction: Direction, target: Target) -> Middleware | None:
        if direction is not Direction.INBOUND or target.kind is CallKind.HTTP:
            return None
        return Observer(self._call_ended)

    def _call_ended(self, call: Call, outcome: Outcome) -> None:
        now = time.monotonic()
        started_at = call.started_at or now
        duration = now - started_at
        if outcome.error is not None:
            word = outcome_word(call, outcome)
        elif self._is_written("ok", duration):
            word = "ok"
        else:
            return
        message = call.message
        token = current_call.set(call)  # a worker in a thread was handled in another context
        try:
            self._write(
                word,
                kind=call.kind.value,
                call=call.target.name,
                outcome=word,
                error=None if outcome.error is None else class_name_of(outcome.error),
                duration_ms=_ms(duration),
                waited_ms=_ms(started_at - call.arrived_at),
                queued_s=_queued_s(call),
                attempt=call.attempt,
                call_id=call.call_id,
                caller=_caller_of(call),
                in_bytes=None if message is None else len(message.body),
                out_bytes=None if outcome.body is None else len(outcome.body),
                arguments=redacted_arguments(call) if self._section.arguments else None,
            )
        finally:
            current_call.reset(token)

    def write_request(
        self,
        call: Call | None,
        *,
        verb: str,
        path: str,
        status: int,
        is_broken: bool,
        duration: float,
        client: str | None,
        out_bytes: int,
    ) -> None:
        """The line of an HTTP request, when its response has left.

        Args:
            call: what the request became; `None` where no method of a service answered it.
            status: of the response; 0 where there was none, because the client had gone.
            is_broken: whether the response broke off.
            duration: seconds.
        """
        if not status:
            word = "cancelled"
        elif status == 503 and (call is None or call.refusal is not None):
            word = "refused"  # the service stops, or has too much to do
        elif is_broken or status >= 500:
            word = "failed"
        else:
            word = "ok" if status < 400 else "refused"
        if not self._is_written(word, duration):
            return
        shown = redacted_arguments(call) if call is not None and self._section.arguments else None
        self._write(
            word,
            kind=CallKind.HTTP.value,
            call=None if call is None else call.target.name,
            outcome=word,
            verb=verb,
            path=path,
            status=status,
            duration_ms=_ms(duration),
            waited_ms=_ms(call.started_at - call.arrived_at)
            if call is not None and call.started_at
            else None,
            call_id=None if call is None else call.call_id,
            client=client,
            out_bytes=out_bytes,
            arguments=shown,
        )

    def _is_written(self, word: str, duration: float) -> bool:
        if word != "ok":
            return True
        if not log.isEnabledFor(logging.INFO):
            return False
        sample = self._section.sample
        return sample >= 1.0 or duration >= self._slow or self._chance() < sample

    def _write(self, word: str, **fields: Any) -> None:
        known = {name: value for name, value in fields.items() if value is not None}
        try:
            if word == "ok":
                log.info(event("call_ended", **known))
            elif word in ("failed", "timed_out"):
                log.error(event("call_ended", **known))
            else:
                log.warning(event("call_ended", **known))
        except Exception as exc:  # noqa: BLE001  handlers are the application's; a call does not fail for its line
            log.debug(event("access_line_failed", reason=class_name_of(exc)))


def outcome_word(call: Call, outcome: Outcome) -> str:
    """What came of a call, in a word: `ok`, `raised` (an expected error), `refused`, `expired`, `cancelled`, `timed_out`, `failed`."""
    error = outcome.error
    if error is None:
        return "ok"
    try:
        if isinstance(error, DeadlinePassed):
            return "expired"
        if outcome.is_refused:
            return "refused"
        if isinstance(error, HandlerTimeout):
            return "timed_out"
        if isinstance(error, CancelledError):
            return "cancelled"
        declared = call.target.declared
        return "raised" if declared is not None and declared.expects(error) else "failed"
    except BaseException:  # noqa: BLE001  its `__class__` is a property, and may do anything
        return "failed"


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _caller_of(call: Call) -> str | None:
    """The id of the call that this one came from. What nobody has asked for is not decoded."""
    stack = call.carried(CALL_ID_STACK)
    if isinstance(stack, list) and stack and isinstance(stack[-1], str):
        return stack[-1][:MAX_CALL_ID]
    return None


def _queued_s(call: Call) -> float | None:
    """Seconds from publishing to arrival, to the second unless the broker stamps; `None` where the message does not say."""
    message = call.message
    if message is None:
        return None
    arrived = time.time() - (time.monotonic() - call.arrived_at)
    stamp = (call.headers or {}).get(FROM_THE_BROKER)
    if type(stamp) is int:
        return round(max(arrived - stamp / 1000, 0.0), 3)
    published = message.properties.timestamp
    return float(max(int(arrived - published), 0)) if type(published) is int else None
