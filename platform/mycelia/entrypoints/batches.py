"""Messages handled by lists: collected until there are enough or it has been long enough, and settled each for itself.

Each message keeps its own `Call`, with its attempts, retries and dead letter. The list is a call too (`Call.items`), the one that a worker
runs and middleware sees. What cannot be read is left out of the list and settled alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import msgspec

from mycelia.amqp import Delivery
from mycelia.call import (
    Ack,
    Arguments,
    Call,
    DeadLetter,
    GiveBack,
    Outcome,
    Redeliver,
    Requeue,
    Target,
)
from mycelia.durations import Duration, seconds_of
from mycelia.errors import BrokerUnavailable, ConfigError, RuntimeStateError, describe
from mycelia.runtime import Lane

__all__ = ["Batch", "Batches", "ItemOutcome", "outcomes_of"]

MAX_SIZE = 65535
"""Messages that a consumer may have at once; AMQP's prefetch has 16 bits."""

Word = Literal["done", "retry", "dead"]

ItemOutcome = Word | BaseException | Ack | Requeue | Redeliver | DeadLetter | None
"""What a handler says of one item. An error: as if the method had raised it for this item. `"retry"`: as if it had raised an error;
`"dead"`: to the dead letters, as `rejected`. `None` is `"done"`."""


class Batch(msgspec.Struct, frozen=True):
    """How large the lists of a handler are: `@event_handler("feed", "departed", batch=Batch(size=500, within=0.2))`.

    Args:
        size: messages in a list at most.
        within: seconds, or text as "200ms", after the first one's arrival from which a list waits for no more.

    Raises:
        ConfigError: one of these is something else.
    """

    size: int = 500
    within: Duration = 0.2

    def __post_init__(self) -> None:
        if type(self.size) is not int or not 1 <= self.size <= MAX_SIZE:
            raise ConfigError(
                f"Batch(size={self.size!r:.60}): expected a whole number from 1 to {MAX_SIZE}."
            )
        seconds_of(self.within, "Batch(within=)")


class RetryAsked(Exception):
    """The handler has said "retry" of one item."""


class Batches:
    """The lists of one handler, as they are made and run.

    Args:
        batch: how large they are.
        target: of the calls that they are.
        lane: runs them.
    """

    def __init__(self, batch: Batch, target: Target, lane: Lane) -> None:
        self._size = batch.size
        self._within = seconds_of(batch.within, "Batch(within=)")
        self._target = target
        self._lane = lane
        self._open: list[Call] = []
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False

    def add(self, item: Call) -> None:
        """Take a message in."""
        self._open.append(item)
        if self._is_over:
            self.stop()
        elif len(self._open) >= self._size:
            self._close()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._within, self._close)

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        items, self._open = tuple(self._open), []
        if items:
            self._lane.submit(
                Call(self._target, arrived_at=items[0].arrived_at, items=items, read=_read)
            )

    def drop_lost(self) -> list[Call]:
        """Drop messages that have not begun and that the broker has taken back, and return them."""
        waiting = [item for batch in self._lane.take_backlog() for item in batch.items]
        waiting += self._open
        self._open = []
        lost = [item for item in waiting if _delivery(item).is_lost]
        for item in waiting:
            if not _delivery(item).is_lost:
                self.add(item)
        return lost

    def stop(self) -> None:
        """Give back what no worker has, also what comes yet."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        for item in self._open:
            _delivery(item).nack(requeue=True)
        self._open.clear()


def _delivery(item: Call) -> Delivery:
    assert item.message is not None
    return item.message


def _read(batch: Call) -> Arguments:
    """The payloads that can be read. Of the others, `refusal` says why they are left out.

    Raises:
        RuntimeStateError: none of them can.
    """
    payloads: list[Any] = []
    for item in batch.items:
        if _delivery(item).is_lost:
            item.refusal = BrokerUnavailable("the broker has taken the message back")
            continue
        try:
            payloads.append(item.decode()[0][0])
        except Exception as exc:  # noqa: BLE001  whatever is wrong with one is no harm to the others
            item.refusal = exc
    if not payloads:
        raise RuntimeStateError(f"{batch.target.name}: nothing in this batch can be handled.")
    return (payloads,), {}


def outcomes_of(batch: Call, outcome: Outcome) -> list[tuple[Call, Outcome]]:
    """What came of each item of a batch whose worker has come to `outcome`."""
    is_one_for_all = outcome.error is not None or outcome.settlement is not None
    handled = [item for item in batch.items if item.refusal is None]
    if is_one_for_all or outcome.value is None:
        outcomes: Iterable[Outcome] = [outcome] * len(handled)
    else:
        try:
            outcomes = _each(batch, outcome.value, len(handled))
        except Exception as exc:  # noqa: BLE001  what the method returned may raise whenever it is asked
            error = exc
            if not isinstance(exc, RuntimeStateError):
                error = RuntimeStateError(
                    f"{batch.target.name}: what it returned cannot be read as outcomes: {describe(exc)}"
                )
            outcomes = [Outcome(error=error)] * len(handled)
    told = iter(outcomes)
    return [
        (item, _left_out(item) if item.refusal is not None else next(told)) for item in batch.items
    ]


def _left_out(item: Call) -> Outcome:
    is_lost = isinstance(item.refusal, BrokerUnavailable)
    return Outcome(error=item.refusal, is_refused=True, settlement=GiveBack() if is_lost else None)


def _each(batch: Call, value: object, count: int) -> list[Outcome]:
    """
    Raises:
        RuntimeStateError: the method's value is no list of as many outcomes as it was given items.
    """
    name = batch.target.name
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RuntimeStateError(
            f"{name}: a method with batch= returns None, or a list of outcomes, not {type(value).__name__}."
        )
    if len(value) != count:
        raise RuntimeStateError(
            f"{name}: it was given {count} items and returned outcomes of {len(value)}."
        )
    return [_said(name, place, said) for place, said in enumerate(value)]


def _said(name: str, place: int, said: object) -> Outcome:
    if said is None or said == "done":
        return Outcome()
    if isinstance(said, BaseException):
        return Outcome(error=said)
    if said == "retry":
        return Outcome(error=RetryAsked("the handler asks for another attempt"))
    if said == "dead":
        return Outcome(settlement=DeadLetter())
    if isinstance(said, Redeliver) and not said.is_a_time:
        raise RuntimeStateError(
            f"{name}: the outcome of item {place} is {said!r:.60}, and that is no number of seconds."
        )
    if isinstance(said, Ack | Requeue | Redeliver | DeadLetter):
        return Outcome(settlement=said)
    words = ", ".join(map(repr, get_args(Word)))
    raise RuntimeStateError(
        f"{name}: the outcome of item {place} is of type {type(said).__name__}; expected {words}, None, or an error."
    )
