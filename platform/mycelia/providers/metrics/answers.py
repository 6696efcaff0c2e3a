"""How processes that count answer `mycelia top`: over the broker, each by a queue of its own, and only when somebody asks.

Whoever asks publishes to the exchange `mycelia-top`, and gets a `ProcessAnswer` as JSON of each process (`clients/broker_questions.py`).
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable

import msgspec

from mycelia.amqp import Delivery, Exchange, Link
from mycelia.clients.broker_questions import AnsweringQueue, send_answer
from mycelia.errors import MyceliaError, describe
from mycelia.log_event import event
from mycelia.providers.metrics.cells import Reading
from mycelia.providers.metrics.health import Health

__all__ = ["TOP_EXCHANGE", "Answering", "ProcessAnswer"]

log = logging.getLogger("mycelia.metrics")

TOP_EXCHANGE = Exchange("mycelia-top", "fanout")

ASKED_OF = frozenset(
    {
        *("mycelia_calls", "mycelia_call_duration_seconds", "mycelia_retried_calls"),
        *("mycelia_workers", "mycelia_calls_waiting", "mycelia_dead_letters"),
        *("mycelia_consumers", "mycelia_consumers_paused", "mycelia_consumer_unsettled"),
    }
)
"""The metrics that an answer holds."""

MAX_SERIES = 5000
"""Series of one answer, which is then about 1 MB. A bound, because names may come from outside."""

SAME_ANSWER_S = 0.2
"""Seconds for which an answer is given again: however many ask, they cost a process no more than this. Arbitrary."""


class ProcessAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What one process answers. What has counted nothing is left out."""

    id: str
    """Of this process; another one after a restart."""
    host: str
    pid: int
    at: float
    """Of its own clock, seconds: two answers tell how long lay between them."""
    up_s: float
    health: Health
    readings: list[Reading]


class Answering:
    """Answers from `start()` on, as long as the link lives.

    Args:
        link: of the process.
        health: whether the process is ready.
        read: all that is counted, as it is now.
    """

    def __init__(
        self, link: Link, health: Callable[[], Health], read: Callable[[], list[Reading]]
    ) -> None:
        self._link = link
        self._health = health
        self._read = read
        self._queue = AnsweringQueue(link, TOP_EXCHANGE, self._on_question)
        self._began = time.monotonic()
        self._answer = b""
        self._answered_at = -SAME_ANSWER_S

    async def start(self) -> None:
        """Listen for questions. Without the permission to, that is said, and nothing is answered."""
        try:
            await self._queue.start("")
        except MyceliaError as exc:
            log.warning(
                event(
                    "top_not_answered",
                    reason=describe(exc),
                    detail="`mycelia top` does not show this process; mycelia.metrics.answers_top: false says no more",
                )
            )

    def _on_question(self, question: Delivery) -> None:
        send_answer(self._link, question, self._made())

    def _made(self) -> bytes:
        now = time.monotonic()
        if now - self._answered_at >= SAME_ANSWER_S:
            answer = ProcessAnswer(
                id=self._queue.id,
                host=socket.gethostname(),
                pid=os.getpid(),
                at=now,
                up_s=round(now - self._began, 3),
                health=self._health(),
                readings=list(filter(_is_asked_of, self._read()))[:MAX_SERIES],
            )
            self._answer = msgspec.json.encode(answer)
            self._answered_at = now
        return self._answer


def _is_asked_of(reading: Reading) -> bool:
    series = reading.series
    if series.name not in ASKED_OF or series.labels.get("direction") == "outbound":
        return False
    return any(reading.values) or series.labels.get("outcome", "ok") == "ok"
