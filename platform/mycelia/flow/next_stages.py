"""What the stages behind have taken of the logs between, as far as an instance of a flow knows: of its own partitions from each commit, of others' by asking.

| question | exchange `mycelia-flows`, routing key `taken/<flow>`, without a body; see `clients/broker_questions.py` |
|---|---|
| answer | JSON: `[[stage, log, partition, {producer: highest sequence}], …]` of the partitions that are the instance's own |

Nobody asks until a stage has written half of what it may be ahead, so who keeps up costs a question for each half of that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from mycelia.amqp import Delivery, Link, Message
from mycelia.clients.broker_questions import AnsweringQueue, BrokerQuestions, send_answer
from mycelia.flow.ahead import Ahead, Reader
from mycelia.flow.flow_watch import FLOWS_EXCHANGE, WatchedCommit
from mycelia.flow.partition_run import StageDescription
from mycelia.log_event import event
from mycelia.logs import LogPosition

__all__ = ["NextStages", "RoomBehind"]

log = logging.getLogger("mycelia.flow")

ASK_EVERY: Final = 0.25
"""Seconds between two questions, of all partitions of an instance together."""

ANSWERS_S: Final = 1.0
"""Seconds for the answers to one."""

TOLD_AFTER: Final = 5.0
"""Seconds that a stage may wait for the next one before it is said: a sink that is slow for a moment is nothing to tell."""

TELL_EVERY: Final = 60.0

_Taken = list[tuple[str, str, int, dict[str, int]]]


class NextStages:
    """Knows what has been taken of a flow's logs between stages. Belongs to one event loop.

    Args:
        link: of the process.
        flow: its group.
        stages: all of them.
        owned: the partitions of a stage that are this instance's own.
        max_bytes: how much a partition may be ahead.
    """

    def __init__(
        self,
        link: Link,
        flow: str,
        stages: Iterable[StageDescription],
        owned: Callable[[str], Iterable[int]],
        max_bytes: int,
    ) -> None:
        self._link = link
        self._flow = flow
        self._owned = owned
        self._max_bytes = max_bytes
        self._logs: dict[str, dict[str, str]] = {}
        """By stage, and by what it calls a source that is a log between stages: the log's name."""
        self._readers: dict[str, list[str]] = {}
        self._all: set[Reader] = set()
        for stage in stages:
            for source, relay in stage.relays.items():
                self._logs.setdefault(stage.name, {})[source] = relay.log.name
                self._readers.setdefault(relay.log.name, []).append(stage.name)
                self._all |= {
                    Reader(stage.name, relay.log.name, one) for one in range(relay.log.partitions)
                }
        self._taken: dict[Reader, dict[str, int]] = {}
        self._silent: set[Reader] = set()
        """Of whom nobody told anything when it was asked last."""
        self._moved = asyncio.Event()
        self._queue = AnsweringQueue(link, FLOWS_EXCHANGE, self._on_question)
        self._questions = BrokerQuestions(link, FLOWS_EXCHANGE)
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = -ASK_EVERY
        self.is_ready = not self._all
        """Whether others can be heard; where there are none to hear, at once."""
        self._is_closed = False

    # --- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Be ready to ask and to answer, where the flow has several stages.

        Raises:
            MyceliaError: the broker does not let us.
        """
        if self.is_ready:
            return
        await self._queue.start(self._key)
        await self._questions.start(30.0)
        self.is_ready = True

    async def aclose(self) -> None:
        """Idempotent."""
        self._is_closed = True
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()
            await asyncio.wait([asking])
        await self._queue.aclose()
        await self._questions.aclose()

    @property
    def _key(self) -> str:
        return f"taken/{self._flow}"

    # --- what is known ---------------------------------------------------------------------------

    def room_behind(
        self,
        stage: StageDescription,
        producer: str,
        sequences: Mapping[str, int],
        call: str,
        partition: int,
    ) -> RoomBehind | None:
        """For the owner of a partition; None where nobody reads what it gives."""
        if not stage.gives:
            return None
        readers = {one.log.name: self._readers[one.log.name] for one in stage.gives}
        return RoomBehind(
            self,
            Ahead(producer, readers, sequences, self._bound(stage)),
            call,
            stage.name,
            partition,
        )

    def _bound(self, stage: StageDescription) -> int:
        """At most half of what the logs keep, whoever writes to them: what has not been taken is not to be deleted."""
        kept = [
            size // 2 // relay.writers
            for relay in stage.gives
            if (size := relay.log.layout.retain_bytes) is not None
        ]
        return max(min([self._max_bytes, *kept]), 1)

    def note(self, stage: str, partition: int, positions: Mapping[str, LogPosition]) -> None:
        """A partition of ours has been committed, or taken over, with these positions."""
        for source, name in self._logs.get(stage, {}).items():
            seen = positions[source].seen if source in positions else {}
            self._hear(Reader(stage, name, partition), {one: its[0] for one, its in seen.items()})

    def committed(self, commit: WatchedCommit) -> None:
        self.note(commit.stage, commit.partition, commit.positions)

    def taken_of(self, reader: Reader, producer: str) -> int | None:
        """As `TakenOf`."""
        known = self._taken.get(reader)
        return None if known is None else known.get(producer, -1)

    def is_silent(self, reader: Reader) -> bool:
        """Whether nobody who answers has this partition."""
        return reader in self._silent

    def _hear(self, reader: Reader, taken: Mapping[str, int]) -> None:
        known = self._taken.setdefault(reader, {})
        for producer, sequence in taken.items():
            if sequence > known.get(producer, -1):
                known[producer] = sequence
        self._silent.discard(reader)
        self._moved.set()

    async def wait(self, timeout: float) -> None:
        """Until something has been taken, or is known to have been; or the time is over."""
        self._moved.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._moved.wait()
        except TimeoutError:
            return

    # --- others ----------------------------------------------------------------------------------

    def ask(self) -> None:
        """Hear from the others how far they have come, soon. Does not wait."""
        others = self._others()
        now = time.monotonic()
        if (
            not self.is_ready
            or self._is_closed
            or not others
            or self._asking is not None
            or now - self._asked_at < ASK_EVERY
        ):
            return
        self._asked_at = now
        name = f"mycelia:flow:{self._flow}:taken"
        self._asking = asyncio.get_running_loop().create_task(self._ask(others), name=name)

    def _others(self) -> set[Reader]:
        return {one for one in self._all if one.partition not in self._owned(one.stage)}

    async def _ask(self, others: set[Reader]) -> None:
        waiting = set(others)

        def hear(body: bytes) -> bool:
            try:
                told = msgspec.json.decode(body, type=_Taken)
            except (msgspec.DecodeError, RecursionError):
                return False
            for stage, name, partition, taken in told:
                reader = Reader(stage, name, partition)
                if reader in self._all:
                    self._hear(reader, taken)
                    waiting.discard(reader)
            return not waiting

        try:
            await self._questions.ask_all(hear, ANSWERS_S, self._key)
            self._silent = waiting & self._others()
            self._moved.set()
        finally:
            self._asking = None

    def _on_question(self, question: Delivery) -> None:
        owned = {stage: set(self._owned(stage)) for stage in self._logs}
        told: list[Any] = [
            (*reader, taken)
            for reader, taken in self._taken.items()
            if reader.partition in owned[reader.stage]
        ]
        send_answer(self._link, question, msgspec.json.encode(told))


class RoomBehind:
    """Whether one partition of a stage may go on, for those behind it. Told in a line where it may not for long."""

    def __init__(
        self, next_stages: NextStages, ahead: Ahead, call: str, stage: str, partition: int
    ) -> None:
        self._next = next_stages
        self._ahead = ahead
        self._place = {"call": call, "stage": stage, "partition": partition}
        self._since: float | None = None
        self._told_at: float | None = None
        self.waits: str | None = None
        """For whom it waits, in words."""

    @property
    def bytes(self) -> int:
        """That are still to be taken."""
        return self._ahead.bytes

    def wrote(self, messages: Iterable[Message]) -> None:
        self._ahead.wrote(messages)

    async def has_room(self, timeout: float) -> bool:
        """Whether more may be written; if not, after it was waited for as long."""
        ahead = self._ahead
        if not self._next.is_ready:
            return True
        if ahead.is_far:
            ahead.look(self._next.taken_of)
            if ahead.is_far:
                self._next.ask()
        if ahead.has_room:
            self._go_on()
            return True
        self._say()
        await self._next.wait(timeout)
        return False

    def _say(self) -> None:
        now = time.monotonic()
        if self._since is None:
            self._since = now
        readers = sorted(self._ahead.waits_for)
        first = next((one for one in readers if self._next.is_silent(one)), readers[0])
        has = (
            "no instance that answers has it"
            if self._next.is_silent(first)
            else "it has not taken all"
        )
        others = f", and {len(readers) - 1} more" if len(readers) > 1 else ""
        self.waits = f'stage "{first.stage}", partition {first.partition}: {has}{others}'
        due = self._since + TOLD_AFTER if self._told_at is None else self._told_at + TELL_EVERY
        if now >= due:
            self._told_at = now
            log.warning(
                event(
                    "flow_waits_for_next_stage",
                    **self._place,
                    waits_for=self.waits,
                    ahead_bytes=self._ahead.bytes,
                    max_bytes=self._ahead.max_bytes,
                    waited_s=round(now - self._since, 1),
                )
            )

    def _go_on(self) -> None:
        if self._told_at is not None and self._since is not None:
            waited = round(time.monotonic() - self._since, 1)
            log.info(event("flow_goes_on", **self._place, waited_s=waited))
        self._since = self._told_at = self.waits = None
