"""Whether all who take part in a group are the same method: instances ask each other, when one comes and now and then.

| | |
|---|---|
| question | exchange `mycelia-groups`, routing key `log-<log>--<group>`, without a body; see `clients/broker_questions.py` |
| answer | a `GroupPeer` as JSON |

Two methods in one group would each have some of its partitions, and neither all of the records. So who comes to a group that another
method is in stays out of it until that has gone. New code under the same `service.method` is the same method. Instances of an earlier
version do not answer, and are taken for ours.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from mycelia.amqp import Delivery, Exchange, Link
from mycelia.clients.broker_questions import AnsweringQueue, BrokerQuestions, send_answer
from mycelia.errors import BrokerBlocked, BrokerUnavailable, MyceliaError, describe
from mycelia.log_event import event

__all__ = ["GROUPS_EXCHANGE", "GroupPeer", "GroupPeers", "comes_before"]

log = logging.getLogger("mycelia.logs")

GROUPS_EXCHANGE: Final = Exchange("mycelia-groups", "direct")

ANSWERS_S: Final = 1.0
"""Seconds for the answers: a process that is busy for longer is heard at the next question."""

TOGETHER_S: Final = 5.0
"""Seconds within which who came first is not told by the time; longer than a question is under way."""


class GroupPeer(msgspec.Struct, frozen=True, kw_only=True):
    """What an instance answers."""

    id: str
    method: str
    """`service.method`."""
    owner: str
    """`host:pid`, for people."""
    taking_part_s: float | None = None
    """For how long it has; `None`: it stays out."""


def comes_before(other: GroupPeer, mine: GroupPeer) -> bool:
    """Whether `mine` is to stay out of the group, or to leave it, for the other's sake: another method that was there first. Of two that came
    at the same moment the alphabet decides."""
    if other.method == mine.method:
        return False
    if other.taking_part_s is None or mine.taking_part_s is None:
        if (other.taking_part_s is None) == (mine.taking_part_s is None):
            return other.method < mine.method
        return mine.taking_part_s is None
    ahead = other.taking_part_s - mine.taking_part_s
    return other.method < mine.method if abs(ahead) < TOGETHER_S else ahead > 0


class GroupPeers:
    """What one instance knows of the others' methods.

    Args:
        name: of the group's queues, without what follows.
    """

    def __init__(self, link: Link, name: str, method: str) -> None:
        self._link = link
        self._name = name
        self._method = method
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
        self._queue = AnsweringQueue(link, GROUPS_EXCHANGE, self._on_question)
        self._questions = BrokerQuestions(link, GROUPS_EXCHANGE)
        self._since: float | None = None
        self._answers = False
        self._asks = False
        self._is_refused = False

    def takes_part(self, does: bool) -> None:
        """Say so to whoever asks from now on."""
        self._since = time.monotonic() if does else None

    async def start(self) -> None:
        """Be ready to answer. Idempotent; without the permission to, that is said once, and nobody is asked.

        Raises:
            BrokerUnavailable, BrokerBlocked: it may be tried again.
        """
        if not self._answers:
            self._answers = await self._may(lambda: self._queue.start(self._name))

    async def _may(self, step: Callable[[], Awaitable[None]]) -> bool:
        """Take it, if the broker lets us."""
        if self._is_refused:
            return False
        try:
            await step()
        except (BrokerUnavailable, BrokerBlocked):
            raise
        except MyceliaError as exc:
            self._is_refused = True
            log.warning(event("log_group_unasked", group=self._name, reason=describe(exc)))
            return False
        return True

    async def aclose(self) -> None:
        """Idempotent."""
        await self._questions.aclose()
        await self._queue.aclose()

    async def ask(self, expected: int) -> GroupPeer | None:
        """The first that is of another method and comes before us, if one answers.

        Args:
            expected: how many are in the group; when as many have answered nobody is waited for.
        """
        if not self._asks:
            self._asks = self._answers and await self._may(lambda: self._questions.start(10.0))
        if not self._asks:
            return None
        heard: dict[str, GroupPeer] = {}

        def hear(body: bytes) -> bool:
            try:
                peer = msgspec.json.decode(body, type=GroupPeer)
            except (msgspec.DecodeError, RecursionError):
                return False
            if peer.id != self._queue.id:
                heard[peer.id] = peer
            taking_part = sum(one.taking_part_s is not None for one in heard.values())
            return taking_part >= expected

        await self._questions.ask_all(hear, ANSWERS_S, self._name)
        mine = self._told()
        return next((one for one in heard.values() if comes_before(one, mine)), None)

    def _told(self) -> GroupPeer:
        since = self._since
        return GroupPeer(
            id=self._queue.id,
            method=self._method,
            owner=self._owner,
            taking_part_s=None if since is None else time.monotonic() - since,
        )

    def _on_question(self, question: Delivery) -> None:
        send_answer(self._link, question, msgspec.json.encode(self._told()))
