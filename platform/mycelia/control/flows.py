"""The flows at a broker, asked how they stand: for `mycelia flow`, and for whoever shows them elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

import msgspec

from mycelia.amqp import Link
from mycelia.clients.broker_questions import BrokerQuestions
from mycelia.errors import LinkError
from mycelia.flow.flow_watch import FLOWS_EXCHANGE, FLOWS_KEY
from mycelia.flow.standing import FlowFigures, FlowStanding, flow_figures
from mycelia.logs.stream_ends import end_of

__all__ = ["FlowAsker", "log_ends"]

FIRST_WAIT_S: Final = 1.0
"""Seconds for answers while it is not known how many there are; later all who answered before are waited for so long."""

MAX_INSTANCES: Final = 1000
MAX_ENDS: Final = 2000
"""Bounds of what is kept, and of what is asked of the broker each time. Arbitrary."""

_ENDS_AT_ONCE: Final = 32
"""Each takes a channel meanwhile."""


class FlowAsker:
    """Asks all flows at a broker, and remembers what they answered before.

    Args:
        link: an open link.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._questions = BrokerQuestions(link, FLOWS_EXCHANGE)
        self._answers: dict[str, FlowStanding] = {}
        self._before: dict[str, FlowStanding] = {}

    async def start(self, timeout: float) -> None:
        """Make ready to hear answers.

        Raises:
            LinkError: the broker does not let us, or not in time.
        """
        await self._questions.start(timeout)

    async def ask(self) -> None:
        """Ask once. Instances that do not answer within a second are not in the figures; nor is any while the broker is away."""
        expected = set(self._answers)
        self._before, self._answers = self._answers, {}

        def is_enough(body: bytes) -> bool:
            try:
                answer = msgspec.json.decode(body, type=FlowStanding)
            except (msgspec.DecodeError, RecursionError):
                return False  # of another version, or not of ours at all
            if len(self._answers) < MAX_INSTANCES:
                self._answers[answer.id] = answer
            return bool(expected) and expected <= self._answers.keys()

        await self._questions.ask_all(is_enough, FIRST_WAIT_S, FLOWS_KEY)

    async def figures(self, flow: str | None = None) -> list[FlowFigures]:
        """What the last answers say, with how much of their logs lies before them.

        Args:
            flow: of this one alone: its group, or `service.method`.
        """
        chosen = self._chosen(flow)
        logs = {
            (source.log, partition)
            for one in chosen
            for stage in one.stages
            for source in stage.sources
            for partition in range(source.partitions)
        }
        return flow_figures(chosen, self._before, await log_ends(self._link, logs))

    def groups_of(self, flow: str) -> list[str]:
        """The group of each flow that answered and is called so: by its group, or as `service.method`."""
        chosen = {(one.flow, one.service, one.method) for one in self._chosen(flow)}
        return sorted(group for group, _, _ in chosen)

    def _chosen(self, flow: str | None) -> list[FlowStanding]:
        return [
            one
            for one in self._answers.values()
            if flow in (None, one.flow, f"{one.service}.{one.method}")
        ]

    @property
    def known(self) -> list[str]:
        """The flows that answered."""
        return sorted({one.flow for one in self._answers.values()})


async def log_ends(link: Link, partitions: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
    """Of partitions of logs the offset that their next entry gets; without those that do not tell."""
    at_once = asyncio.Semaphore(_ENDS_AT_ONCE)
    ends: dict[tuple[str, int], int] = {}

    async def look(log: str, partition: int) -> None:
        async with at_once:
            try:
                ends[log, partition] = await end_of(link, log, partition)
            except LinkError:
                return

    await asyncio.gather(*(look(*one) for one in sorted(partitions)[:MAX_ENDS]))
    return ends
