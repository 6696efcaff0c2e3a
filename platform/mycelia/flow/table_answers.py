"""Tables of a flow, and the state of its steps, asked over the broker: whichever instance is asked finds the partition that has the key, and its
owner answers. What is said of tables here holds for both.

Each partition's owner has bound `<flow>/<stage>/<partition>` at the exchange `mycelia-flows`. The question is a `TableQuestion` in msgpack,
the answer a `TableAnswer` as JSON (`clients/broker_questions.py`). While a partition moves nobody has bound its name: the question comes
back, and is asked again, as long as there is time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from mycelia.amqp import Delivery, Link
from mycelia.clients.broker_questions import AnsweringQueue, BrokerQuestions, send_answer
from mycelia.errors import (
    BrokerUnavailable,
    PartitionAway,
    StateUnavailable,
    UnknownTableKey,
    Unroutable,
    describe,
)
from mycelia.flow.asked_state import KeyAnswer, ReadsKey
from mycelia.flow.flow_watch import FLOWS_EXCHANGE
from mycelia.flow.state_codec import decode_state, encode_state
from mycelia.log_event import event

__all__ = ["FlowTables", "ReadsTable", "TableAnswer", "TablePlace", "TableQuestion"]

log = logging.getLogger("mycelia.flow")

ASK_AGAIN_S: Final = 0.2
"""Seconds between two questions to a partition that nobody has, or whose owner did not answer."""

ONE_ANSWER_S: Final = 2.0
"""Seconds for one answer: an owner that has just died is missed no longer, and the next one is asked."""


class TableQuestion(msgspec.Struct, frozen=True, kw_only=True):
    table: str
    key: bytes
    """As state has it."""


class TableAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One of: the row; none, because there is none; why it cannot be told, or not by this one."""

    row: KeyAnswer | None = None
    error: str | None = None
    is_elsewhere: bool = False
    """Whoever was asked has left the partition."""


class TablePlace(NamedTuple):
    """Where a table is, or another step that is asked; and how it is read."""

    table: str
    step: str
    stage: str
    partitions: int
    reads: ReadsKey
    nothing: str = "nothing"
    """What it has of a key that is not there, for an error's text."""


class ReadsTable(Protocol):
    """Reads a row of a partition that is this instance's own, as of the last commit. It does not block the loop."""

    async def __call__(self, place: TablePlace, partition: int, key: Any) -> KeyAnswer | None: ...


class FlowTables:
    """The tables of a flow, for one of its instances.

    Args:
        link: of the process.
        flow: its group.
        places: its tables.
        owned: the partitions of a stage that are this instance's own.
        partition_of: the partition that a key is in where its stage is split by it; a guess elsewhere: all others are asked as well.
    """

    def __init__(
        self,
        link: Link,
        flow: str,
        places: Iterable[TablePlace],
        owned: Callable[[str], Iterable[int]],
        read: ReadsTable,
        partition_of: Callable[[Any, int], int],
    ) -> None:
        self._link = link
        self._flow = flow
        self._places: Mapping[str, TablePlace] = {one.table: one for one in places}
        self._owned = owned
        self._read = read
        self._partition_of = partition_of
        self._questions = BrokerQuestions(link, FLOWS_EXCHANGE)
        self._queues: dict[tuple[str, int], AnsweringQueue] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._changing = asyncio.Lock()
        self._is_ready = False

    # --- life ------------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Be ready to ask; bind what is owned by now, and let go of what is not any more. Called again and again.

        Raises:
            LinkError: not all of it could be.
        """
        async with self._changing:
            if not self._is_ready:
                await self._questions.start(30.0)
                self._is_ready = True
            stages = {one.stage for one in self._places.values()}
            owned = {(stage, number) for stage in stages for number in self._owned(stage)}
            for place in [one for one in self._queues if one not in owned]:
                await self._queues.pop(place).aclose()
            for place in sorted(owned - self._queues.keys()):
                queue = AnsweringQueue(self._link, FLOWS_EXCHANGE, self._asked_by(*place))
                await queue.start(self._key(*place))
                self._queues[place] = queue

    async def aclose(self) -> None:
        """Idempotent."""
        async with self._changing:
            for queue in self._queues.values():
                await queue.aclose()
            self._queues.clear()
        await self._questions.aclose()
        if self._answering:
            await asyncio.wait(self._answering, timeout=1.0)

    def _key(self, stage: str, partition: int) -> str:
        return f"{self._flow}/{stage}/{partition}"

    # --- whoever is asked by a client ---------------------------------------------------------------

    async def get(self, table: str, key: Any, timeout: float) -> dict[str, Any]:
        """What a table says of a key, as plain data: the fields of `KeyAnswer` that are of its kind.

        Raises:
            UnknownTableKey: all partitions that may have the key have been asked, and none has it.
            PartitionAway: of one of them it cannot be known.
            StateUnavailable: its owner cannot read it.
        """
        place = self._places[table]
        until = time.monotonic() + timeout
        first = self._partition_of(key, place.partitions)
        row = await self._row(place, first, key, timeout, until)
        if row is None:
            others = [one for one in range(place.partitions) if one != first]
            found = await asyncio.gather(
                *(self._row(place, one, key, timeout, until) for one in others),
                return_exceptions=True,
            )
            rows = [one for one in found if isinstance(one, KeyAnswer)]
            failed = [one for one in found if isinstance(one, BaseException)]
            if not rows and failed:
                raise failed[0]
            row = max(rows, key=lambda one: one.newness, default=None)
        if row is None:
            raise UnknownTableKey(table, self._flow, key, place.nothing)
        # The same whoever has it: another instance would have sent it so.
        told: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(row, enc_hook=str))
        return told

    async def _row(
        self, place: TablePlace, partition: int, key: Any, timeout: float, until: float
    ) -> KeyAnswer | None:
        question = msgspec.msgpack.encode(TableQuestion(table=place.table, key=encode_state(key)))
        while True:
            if partition in self._owned(place.stage):
                return await self._read(place, partition, key)
            left = until - time.monotonic()
            if left <= 0:
                raise PartitionAway(self._flow, place.stage, partition, timeout)
            answer = await self._answer(place, partition, question, min(left, ONE_ANSWER_S))
            if answer is not None and not answer.is_elsewhere:
                if answer.error is not None:
                    what = f'flow "{self._flow}", stage "{place.stage}", partition {partition}'
                    raise StateUnavailable(what, "at its owner", answer.error)
                return answer.row
            await asyncio.sleep(max(min(ASK_AGAIN_S, until - time.monotonic()), 0))

    async def _answer(
        self, place: TablePlace, partition: int, question: bytes, timeout: float
    ) -> TableAnswer | None:
        try:
            body = await self._questions.ask(self._key(place.stage, partition), question, timeout)
        except (Unroutable, BrokerUnavailable):
            return None
        if body is None:
            return None
        try:
            return msgspec.json.decode(body, type=TableAnswer)
        except (msgspec.DecodeError, RecursionError) as exc:
            return TableAnswer(error=f"its answer cannot be read ({exc})")

    # --- whoever owns the partition ------------------------------------------------------------------

    def _asked_by(self, stage: str, partition: int) -> Callable[[Delivery], None]:
        def asked(question: Delivery) -> None:
            task = asyncio.get_running_loop().create_task(
                self._tell(stage, partition, question), name=f"mycelia:flow:{self._flow}:table"
            )
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

        return asked

    async def _tell(self, stage: str, partition: int, question: Delivery) -> None:
        try:
            answer = await self._answer_to(stage, partition, question.body)
            body = msgspec.json.encode(answer, enc_hook=str)
        except Exception as exc:  # noqa: BLE001  whatever it is, whoever asks is told
            log.warning(
                event(
                    "flow_table_unread",
                    flow=self._flow,
                    stage=stage,
                    partition=partition,
                    error=describe(exc),
                )
            )
            body = msgspec.json.encode(TableAnswer(error=describe(exc)))
        send_answer(self._link, question, body)

    async def _answer_to(self, stage: str, partition: int, body: bytes) -> TableAnswer:
        question = msgspec.msgpack.decode(body, type=TableQuestion)
        place = self._places.get(question.table)
        if place is None:
            return TableAnswer(
                error=f'there is no table "{question.table}"; instances of the flow run different code'
            )
        if partition not in self._owned(stage):
            return TableAnswer(is_elsewhere=True)
        return TableAnswer(row=await self._read(place, partition, decode_state(question.key)))
