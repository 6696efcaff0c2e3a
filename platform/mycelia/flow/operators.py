"""What the engine asks of an operator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable
from typing import Any, NamedTuple

from mycelia.errors import FlowFunctionError, describe
from mycelia.flow.aggregations import Aggregation, failing_records
from mycelia.flow.column_batch import BEGINNING_OF_TIME, ColumnBatch
from mycelia.flow.fields import getter_for
from mycelia.flow.state import Changes

__all__ = ["MAIN", "SIDE", "FiredTimer", "Operator", "Rejection"]

MAIN = 0
"""The port of what an operator is for."""

SIDE = 1
"""The port of what is beside it: late records, what a branch does not take."""


class Rejection(NamedTuple):
    """A record that a flow cannot take: without a key, or of an impossible time. It goes on without it.

    Attributes:
        operator: the step that refused it.
        channel: the partition that it came from, as the engine calls it, and `position` in the batch; None of what is a result.
        reason: a sentence that names what is wrong.
    """

    operator: str
    channel: Hashable | None
    position: int | None
    value: Any
    reason: str


class FiredTimer(NamedTuple):
    """A timer of a step, as its function was called: its key, and its name, clock and time (`FlowFunctionError.timer`)."""

    operator: str
    key: Hashable
    timer: tuple[str, str, int, int]


class Operator:
    """A step of a flow, as a function of whole batches.

    The engine calls, from one thread: `process()` with each batch that comes in, then `advance()` if the watermark of its inputs has
    moved, and `tick()` with the time on the wall. What it gives is left in `out`, with the port's number, for the engine to take.

    Attributes:
        name: unique in its flow; its state is kept under it.
        watermark: what `advance()` was last given; what an operator gives next is not earlier, but for late results.
        timed_by: the ports whose watermarks count; None for all.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.out: list[tuple[int, ColumnBatch]] = []
        self.watermark = BEGINNING_OF_TIME
        self.timed_by: tuple[int, ...] | None = None
        self.rejected: list[Rejection] = []
        """For the engine to take."""
        self.collects = False
        """Whether a record over which a function raises is left out, and the rest of its key where there is state, so that others may fail in the same
        turn. The engine is spent after it all the same."""
        self.failed: list[FlowFunctionError] = []
        """Of those, with the cause of each: for the engine to raise."""
        self.passed_over: Collection[FiredTimer] = ()
        """Timers whose functions are not called: they have been given up."""

    def process(self, port: int, batch: ColumnBatch) -> None:
        """Take a batch, not empty, that came in by `port`."""
        raise NotImplementedError

    def advance(self, watermark: int) -> None:
        """Event time has come to `watermark`, which is later than it was."""
        self.watermark = watermark

    def tick(self, now_ms: int) -> None:
        """It is `now_ms`. Called at least once a turn, before the batches."""

    def take_changes(self, changes: Changes) -> None:
        """Put what changed since the last time into `changes`."""

    def reject(self, batch: ColumnBatch, position: int, reason: str) -> None:
        """Go on without the record at `position`, and tell of it."""
        origin = batch.origin(position)
        channel = None if origin is None else batch.channel
        self.rejected.append(Rejection(self.name, channel, origin, batch.values[position], reason))

    def counts(self) -> dict[str, int]:
        """What was counted since the start: `late`, `repeated`. For metrics; not part of the state."""
        return {}

    def fail(
        self,
        cause: BaseException,
        batch: ColumnBatch | None,
        position: int | None,
        key: object = None,
    ) -> FlowFunctionError:
        """The error that names this operator and the record at `position` of `batch`."""
        origin = channel = None
        if batch is not None and position is not None:
            origin = batch.origin(position)
            channel = None if origin is None else batch.channel
            if key is None and batch.keys is not None and position < len(batch.keys):
                key = batch.keys[position]
        error = FlowFunctionError(self.name, cause, origin, key)
        error.channel = channel
        return error

    def tell_failed(self, error: FlowFunctionError, cause: BaseException) -> None:
        """Raise it, or, with `collects`, go on so that the others of the turn are told as well."""
        if not self.collects:
            raise error from cause
        error.__cause__ = cause
        self.failed.append(error)

    def applied(
        self, function: Callable[[Any], Any], batch: ColumnBatch
    ) -> tuple[list[Any], ColumnBatch]:
        """What a function makes of each record, and the records of which it made something: all, or it raises; with `collects`, the others
        are in `failed`.

        A loop in C. `list.extend` keeps what came before the function raised, so how much it kept is where.

        Raises:
            FlowFunctionError: it raised.
        """
        made: list[Any] = []
        failed: list[int] = []
        get = getter_for(function, batch.values)
        values = iter(batch.values)
        while True:
            try:
                made.extend(map(get, values))
                break
            except BaseException as exc:  # noqa: BLE001  raised, or told
                position = len(made) + len(failed)
                self.tell_failed(self.fail(exc, batch, position), exc)
                failed.append(position)
        if not failed:
            return made, batch
        kept = [True] * len(batch)
        for position in failed:
            kept[position] = False
        return made, batch.only(kept)

    def fail_group(
        self,
        cause: BaseException,
        batch: ColumnBatch,
        key: object,
        records: list[Any],
        aggregation: Aggregation[Any, Any],
        held: Iterable[Any] = (),
    ) -> None:
        """`tell_failed()` of those of several records of a key with which an aggregation fails: by themselves, or merged with what is there. Where none can
        be told from the rest, it is all of them; without `collects`, no single one.

        Args:
            held: what the windows of these records hold already.
        """
        places: dict[int, list[int]] = defaultdict(list)
        for position, (of, value) in enumerate(zip(batch.keys or (), batch.values, strict=True)):
            if of == key:
                places[id(value)].append(position)
        is_told = False
        for record, exc in failing_records(aggregation, records, held):
            is_told = True
            self.tell_failed(self.fail(exc, batch, places[id(record)].pop(0), key), exc)
        if is_told:
            return
        if not self.collects:
            raise self.fail(cause, batch, None, key) from cause
        for record in records:
            self.tell_failed(self.fail(cause, batch, places[id(record)].pop(0), key), cause)

    def refuse(self, cause: BaseException, key: object, value: object) -> None:
        """Go on without a result that cannot be told, and tell of `value` in its place; without `collects`, raise."""
        if not self.collects:
            raise self.fail(cause, None, None, key) from cause
        reason = f"key {key!r:.80}: its result cannot be told: {describe(cause)}"
        self.rejected.append(Rejection(self.name, None, None, value, reason))
