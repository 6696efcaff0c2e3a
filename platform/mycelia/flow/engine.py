"""A flow that runs: batches go in, results come out, and what changed is there to be written. No I/O, no clock.

    engine = Engine(plan, {"flights.departed": [0, 1, 2]}, store=store)
    given = engine.feed("flights.departed", 0, values, times, now_ms=…)
    store.write(engine.take_changes() | the offsets, and what was given)     in one transaction

Each call is a turn: the batch passes through the operators in the order of the plan, and each is told the watermark once it has
taken what came to it. The same batches in the same order give the same results with the same ids, whatever was written and
begun again between them (as far as no processing time is asked for).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from itertools import compress
from typing import Any, Final, NamedTuple

from mycelia.errors import ConfigError, FlowFunctionError, RuntimeStateError, StateIncompatible
from mycelia.flow.async_steps import RunsCoroutines, in_own_loop
from mycelia.flow.column_batch import BEGINNING_OF_TIME, END_OF_TIME, ColumnBatch
from mycelia.flow.equal_keys import key_state
from mycelia.flow.graph import Building, FlowNode, FlowPlan
from mycelia.flow.operators import FiredTimer, Operator
from mycelia.flow.state import Changes, StoreReader, UnkeptKey
from mycelia.flow.state_codec import decode_state, encode_state
from mycelia.flow.stateless import FlowStep, Fused, Watching
from mycelia.flow.watermarks import Silence

__all__ = ["Engine", "Given", "RejectedRecord", "saved_watermarks"]

SPACE: Final = "~engine"
"""Where the engine keeps what is not an operator's."""


def saved_watermarks(store: StoreReader) -> dict[str, int]:
    """How far event time had come for each step when a store was written last; without those that have seen nothing, and the ended."""
    (saved,) = store.read(SPACE, [b"state"])
    if saved is None:
        return {}
    watermarks: dict[str, int] = decode_state(saved).get("watermarks", {})
    return {name: one for name, one in watermarks.items() if BEGINNING_OF_TIME < one < END_OF_TIME}


class Given:
    """What left a flow by one of its outputs in one turn.

    Attributes:
        output: its name.
        first_number: of the first of these, counted from 0 since the flow began.
        numbers: of each of them.
    """

    __slots__ = ("first_number", "flow", "keys", "numbers", "output", "times", "values")

    def __init__(self, flow: str, output: str, first_number: int, columns: ColumnBatch) -> None:
        self.flow = flow
        self.output = output
        self.first_number = first_number
        self.numbers: Sequence[int] = range(first_number, first_number + len(columns))
        self.times = columns.times
        self.values = columns.values
        self.keys: list[Any] = (
            [None] * len(columns.values) if columns.keys is None else columns.keys
        )

    @property
    def id_prefix(self) -> str:
        """What all ids of the output begin with; the record's number follows."""
        return f"{self.flow}/{self.output}/"

    def ids(self) -> list[str]:
        """The id of each record: the same if it is given again after a crash, and no other's."""
        prefix = self.id_prefix
        return [f"{prefix}{number}" for number in self.numbers]

    def without(self, ids: Collection[str]) -> Given:
        """The others, with the ids that they have."""
        kept = [one not in ids for one in self.ids()]
        columns = ColumnBatch(self.times, self.values, self.keys).only(kept)
        others = Given(self.flow, self.output, self.first_number, columns)
        others.numbers = list(compress(self.numbers, kept))
        return others

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"Given({self.output!r}, {self.values!r:.200})"


class RejectedRecord(NamedTuple):
    """A record that a flow went on without.

    Attributes:
        operator: the step that refused it.
        source, partition, position: where it came from, and which record of the batch it was, from 0. None where it is no record of a
            batch, but a result.
        reason: a sentence that names what is wrong.
    """

    operator: str
    source: str | None
    partition: Hashable
    position: int | None
    value: Any
    reason: str


class _Cell:
    """An operator in its place: what waits for it, who feeds it, and who is fed."""

    __slots__ = ("gave", "inbox", "operator", "outputs", "silence", "timing", "to", "watermark")

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self.inbox: list[tuple[int, ColumnBatch]] = []
        self.timing: list[_Cell] = []
        """Those whose watermarks count."""
        self.to: dict[int, list[tuple[_Cell, int]]] = {}
        """By port: the cells that are fed, with their ports."""
        self.outputs: dict[int, list[str]] = {}
        """By port: the names of outputs of the flow."""
        self.watermark = BEGINNING_OF_TIME
        """As those who are fed see it."""
        self.silence: Silence = ""
        """Of all that it comes from. What is idle holds nobody up."""
        self.gave: dict[int, int] = {}
        """By port, records since this engine began."""


class Engine:
    """Runs a plan over the partitions of its sources.

    Args:
        plan: what is run.
        partitions: of each source by its name, its partitions: numbers or names. A source that has none here has ended.
        store: where the state is; None to begin with nothing and keep it in memory.
        flow: the first part of the ids of what is given. Another for each engine that runs the same plan on other partitions.
        collects: whether a turn in which a function without state raises goes on without the record, so that all records of which that is
            true are told at once: the error's `also`. The engine is spent all the same.
        run: runs what `async` steps await, while the call that brought their records waits.
        passed_over: timers that have been given up; their functions are not called.

    Raises:
        ConfigError: nothing was said of a source's partitions, or there are partitions of another.
        StateIncompatible: the store holds state of another plan than this.
    """

    def __init__(
        self,
        plan: FlowPlan,
        partitions: Mapping[str, Iterable[Hashable]],
        *,
        store: StoreReader | None = None,
        flow: str = "flow",
        collects: bool = False,
        run: RunsCoroutines = in_own_loop,
        passed_over: Collection[FiredTimer] = (),
    ) -> None:
        self._plan = plan
        self._passed_over = passed_over
        self._run = run
        self._collects = collects
        self._flow = flow
        self._channels = _channels_of(plan, partitions)
        self._cells: list[_Cell] = []
        self._watching: list[Watching] = []
        self._sources: dict[str, _Cell] = {}
        self._relays = {plan.names[node] for node in plan.nodes if node.is_relay}
        self._cell_of: dict[FlowNode, _Cell] = {}
        self._numbers = dict.fromkeys(plan.outputs, 0)
        self._now_ms = 0
        self._is_spent = False
        self._saved: bytes | None = None
        saved = self._read(store)
        self._build(store, saved.get("watermarks", {}))
        self._numbers.update(saved.get("numbers", {}))

    # --- made once -----------------------------------------------------------------------------------

    def _read(self, store: StoreReader | None) -> dict[str, Any]:
        if store is None:
            return {}
        (self._saved,) = store.read(SPACE, [b"state"])
        if self._saved is None:
            return {}
        saved: dict[str, Any] = decode_state(self._saved)
        now = self._plan.signatures()
        for name, signature in saved["signatures"].items():
            if name not in now:
                raise StateIncompatible(
                    f'flow "{self._flow}": its state has a step "{name}" ({signature}), which is gone. Name the step that it has become '
                    f'(.named("{name}"), or .named(…, was="{name}")), let its state go (@flow(…, dropped=["{name}"])), or reset the flow.'
                )
            if now[name] != signature:
                raise StateIncompatible(
                    f'flow "{self._flow}": the state of step "{name}" is of {signature}, and the step is now {now[name]}. Change it back; or give '
                    f'the new step another name (.named(…)) and let the old state go (@flow(…, dropped=["{name}"])); or reset the flow.'
                )
        versions, known = saved.get("versions", {}), self._plan.versions()
        for name in now:
            has, wants = versions.get(name, 1), known.get(name, 1)
            if has != wants and name in saved["signatures"]:
                raise StateIncompatible(
                    f'flow "{self._flow}": the state of step "{name}" is of version {has}, and the step\'s is {wants}.'
                )
        return saved

    def _build(self, store: StoreReader | None, watermarks: dict[str, int]) -> None:
        plan = self._plan
        consumers = plan.consumers()
        leaving = list(plan.outputs.values())
        cells = self._cell_of
        fused: dict[FlowNode, list[FlowStep]] = {}
        for node in plan.nodes:
            if node.step is not None:
                called = f"{plan.names[node]}: {node.label}"
                step = FlowStep(node.step.kind, called, node.step.function)
                steps = [*self._fused_before(node, fused, consumers, leaving), step]
                fused[node] = steps
                if self._ends_chain(node, consumers, leaving):
                    first = node
                    for _ in steps[1:]:
                        first = first.inputs[0][0]
                    self._place(cells, node, Fused(steps), first.inputs)
                continue
            name = plan.names[node]
            channels = self._channels_before(node)
            if node.kind == "source":
                operator: Operator = Watching(
                    f"{name}~source", channels, 0, None, store, is_relay=node.is_relay
                )
            else:
                assert node.make is not None
                operator = node.make(Building(name, channels, store, self._run))
            operator.watermark = watermarks.get(operator.name, BEGINNING_OF_TIME)
            self._place(cells, node, operator, node.inputs)
            if isinstance(operator, Watching):
                self._watching.append(operator)
            if node.kind == "source":
                self._sources[name] = cells[node]
        for name, (node, port) in plan.outputs.items():
            cells[node].outputs.setdefault(port, []).append(name)

    def _place(
        self,
        cells: dict[FlowNode, _Cell],
        node: FlowNode,
        operator: Operator,
        inputs: tuple[tuple[FlowNode, int], ...],
    ) -> None:
        operator.collects = self._collects
        operator.passed_over = self._passed_over
        cell = cells[node] = _Cell(operator)
        for number, (feeding, port) in enumerate(inputs):
            cells[feeding].to.setdefault(port, []).append((cell, number))
            if operator.timed_by is None or number in operator.timed_by:
                cell.timing.append(cells[feeding])
        self._cells.append(cell)

    def _fused_before(
        self, node: FlowNode, fused: dict[FlowNode, list[FlowStep]], consumers: Any, leaving: Any
    ) -> list[FlowStep]:
        """The steps of the chain that `node` goes on, if what is before it is one that ends with it."""
        (before, _) = node.inputs[0]
        if before in fused and not self._ends_chain(before, consumers, leaving):
            return fused[before]
        return []

    def _ends_chain(self, node: FlowNode, consumers: Any, leaving: Any) -> bool:
        """Whether others than a single further step want what this step gives."""
        next_ones = consumers.get((node, 0), [])
        return (node, 0) in leaving or len(next_ones) != 1 or next_ones[0][0].step is None

    def _channels_before(self, node: FlowNode) -> list[Hashable]:
        """The channels of all sources whose records may come to a node."""
        names = {one.name for one in [node, *self._plan.upstream(node)] if one.kind == "source"}
        return [channel for (name, _), channel in self._channels.items() if name in names]

    # --- turns ---------------------------------------------------------------------------------------

    def feed(
        self,
        source: str,
        partition: Hashable,
        values: list[Any],
        times: list[int],
        keys: list[Any] | None = None,
        *,
        now_ms: int = 0,
    ) -> list[Given]:
        """Take a batch from a partition of a source; returns what leaves the flow because of it.

        Args:
            values: the records. The lists are the engine's from now on.
            times: their event times, milliseconds since 1970.
            keys: their keys, if they have any.
            now_ms: the time on the wall.

        Raises:
            FlowFunctionError: a function of the flow raised. The engine is spent: another starts from the last checkpoint.
        """
        self.put(source, partition, values, times, keys)
        return self._turn(now_ms)

    def put(
        self,
        source: str,
        partition: Hashable,
        values: list[Any],
        times: list[int],
        keys: list[Any] | None = None,
    ) -> None:
        """As `feed()`, and leave it for the next turn: one for batches of several partitions costs less than one each."""
        channel = self._channel(source, partition)
        if values:
            cell = self._sources[source]
            cell.inbox.append((0, ColumnBatch(times, values, keys, channel, ())))

    def tick(self, now_ms: int) -> list[Given]:
        """Let time on the wall come by: for timers that ask for it, and for partitions that have fallen silent."""
        return self._turn(now_ms)

    def end(self, source: str, partition: Hashable, *, now_ms: int | None = None) -> list[Given]:
        """Nothing more will come from a partition. With the last of them, all windows close."""
        channel = self._channel(source, partition)
        for operator in self._watching:
            if channel in operator.channels:
                operator.end(channel)
        return self._turn(self._now_ms if now_ms is None else now_ms)

    def relay(
        self, source: str, partition: Hashable, watermark: int, *, now_ms: int | None = None
    ) -> list[Given]:
        """How far event time has come in a partition of a source that is the cut of another part of the flow (`stages_of()`).

        What was given before the watermark that is told here has been fed before.

        Raises:
            ConfigError: the source is none of those: its records say how far event time has come.
        """
        self.put_relay(source, partition, watermark)
        return self._turn(self._now_ms if now_ms is None else now_ms)

    def put_relay(
        self, source: str, partition: Hashable, watermark: int, silence: Silence = ""
    ) -> None:
        """As `relay()`, and leave it for the next turn; and whether the partition is silent."""
        channel = self._channel(source, partition)
        if source not in self._relays:
            raise ConfigError(
                f'flow "{self._flow}": the watermark of "{source}" comes from its records, and is not relayed.'
            )
        operator = self._sources[source].operator
        assert isinstance(operator, Watching)
        operator.relay(channel, watermark, silence)

    def silence_of(self, output: str) -> Silence:
        """Whether all that an output comes from is silent: to be relayed, if that is a cut."""
        node, _ = self._plan.outputs[output]
        return self._cell_of[node].silence

    def watermark_of(self, output: str) -> int:
        """How far event time has come in what leaves by an output: to be relayed, if that is a cut. `BEGINNING_OF_TIME` before all."""
        node, _ = self._plan.outputs[output]
        return self._cell_of[node].watermark

    def _channel(self, source: str, partition: Hashable) -> str:
        if self._is_spent:
            raise RuntimeStateError(
                f'flow "{self._flow}": this engine has failed in the middle of a batch. Start another from the last checkpoint.'
            )
        found = self._channels.get((source, partition))
        if found is None:
            raise ConfigError(
                f'flow "{self._flow}": there is no partition {partition!r:.60} of "{source}" in this engine.'
            )
        return found

    def _turn(self, now_ms: int) -> list[Given]:
        self._now_ms = now_ms
        given: list[Given] = []
        try:
            for cell in self._cells:
                self._pass(cell, now_ms, given)
        except FlowFunctionError as exc:
            self._is_spent = True
            exc.also = self._collected()
            raise
        except Exception:
            self._is_spent = True
            self._tell_collected()  # whatever it is, it may be for their sake
            raise
        except BaseException:
            self._is_spent = True
            raise
        self._tell_collected()
        return given

    def _tell_collected(self) -> None:
        """Raise what has failed in this turn, if something has, and was collected."""
        if collected := self._collected():
            self._is_spent = True
            collected[0].also = collected[1:]
            raise collected[0]

    def _collected(self) -> list[FlowFunctionError]:
        return [one for cell in self._cells for one in cell.operator.failed]

    def _pass(self, cell: _Cell, now_ms: int, given: list[Given]) -> None:
        """One operator's part of a turn."""
        operator = cell.operator
        operator.tick(now_ms)
        if cell.inbox:
            inbox, cell.inbox = cell.inbox, []
            for port, batch in inbox:
                try:
                    operator.process(port, batch)
                except UnkeptKey as exc:
                    raise _unkept(operator, batch, exc) from exc
        if isinstance(operator, Watching):
            cell.watermark = operator.watch()
            cell.silence = operator.silence
        else:
            timing = [one.watermark for one in cell.timing if one.silence != "idle"]
            watermark = min(timing) if timing else max([one.watermark for one in cell.timing])
            is_silent = all(one.silence for one in cell.timing)
            cell.silence = "" if not is_silent else "empty" if timing else "idle"
            if watermark > operator.watermark:
                operator.advance(watermark)
            cell.watermark = operator.watermark
        if operator.out:
            out, operator.out = operator.out, []
            for port, columns in out:
                cell.gave[port] = cell.gave.get(port, 0) + len(columns)
                for fed, number in cell.to.get(port, ()):
                    fed.inbox.append((number, columns))
                for name in cell.outputs.get(port, ()):
                    given.append(Given(self._flow, name, self._numbers[name], columns))
                    self._numbers[name] += len(columns)

    # --- around it -----------------------------------------------------------------------------------

    def take_changes(self) -> Changes:
        """What changed since the last time, to be written in one transaction with the offsets and with what was given.

        It is written before the next batch is fed, as keys that have left memory are read from the store again. Whoever cannot write
        it gives the engine up, and starts another from what is written.
        """
        changes: Changes = {}
        for cell in self._cells:
            cell.operator.take_changes(changes)
        versions = self._plan.versions()
        saved = encode_state(
            {
                **({"versions": versions} if versions else {}),
                "signatures": self._plan.signatures(),
                "numbers": self._numbers,
                "watermarks": {
                    cell.operator.name: cell.operator.watermark
                    for cell in self._cells
                    if cell.operator.watermark > BEGINNING_OF_TIME
                    and not isinstance(cell.operator, Fused)
                },
            }
        )
        if saved != self._saved:
            self._saved = saved
            changes[SPACE] = {b"state": saved}
        return {space: items for space, items in changes.items() if items}

    def take_rejected(self) -> list[RejectedRecord]:
        """The records that the flow went on without since the last time: without a key, or of an impossible time."""
        found: list[RejectedRecord] = []
        of_channel: dict[Hashable, Any] = {one: place for place, one in self._channels.items()}
        for cell in self._cells:
            for one in cell.operator.rejected:
                source, partition = (None, None) if one.channel is None else of_channel[one.channel]
                found.append(
                    RejectedRecord(
                        one.operator, source, partition, one.position, one.value, one.reason
                    )
                )
            cell.operator.rejected.clear()
        return found

    def origin_of(self, channel: object) -> tuple[str, Hashable] | None:
        """The source and the partition of a `FlowFunctionError.channel`."""
        return next((place for place, one in self._channels.items() if one == channel), None)

    def watermarks(self) -> dict[str, int]:
        """How far event time has come for each step, milliseconds since 1970; without those that have seen nothing, and the ended."""
        return {
            cell.operator.name: cell.watermark
            for cell in self._cells
            if BEGINNING_OF_TIME < cell.watermark < END_OF_TIME
        }

    def gave(self) -> dict[str, list[int]]:
        """By step, how many records have left it since this engine began, for each port. Of steps without state that follow each other, only the last is there."""
        names = self._plan.names
        return {
            names[node]: [cell.gave.get(port, 0) for port in range(max(cell.gave) + 1)]
            for node, cell in self._cell_of.items()
            if cell.gave
        }

    def counts(self) -> dict[str, dict[str, int]]:
        """By step, what it has counted since this engine began: late records, repeated ones, unmatched ones."""
        return {
            cell.operator.name: found for cell in self._cells if (found := cell.operator.counts())
        }


def _unkept(operator: Operator, batch: ColumnBatch, error: UnkeptKey) -> FlowFunctionError:
    """The error of the first record whose key cannot be kept; those of others are the operator's failures."""
    failed = []
    for position, key in enumerate(batch.keys or ()):
        try:
            key_state(key)
        except BaseException as exc:  # noqa: BLE001  whatever a key's own methods raise
            one = operator.fail(UnkeptKey(operator.name, key, exc), batch, position)
            one.__cause__ = exc
            failed.append(one)
    if not failed:  # of another time: it asks for no record of this batch
        return operator.fail(error, None, None)
    operator.failed += failed[1:]
    return failed[0]


def _channels_of(
    plan: FlowPlan, partitions: Mapping[str, Iterable[Hashable]]
) -> dict[tuple[str, Hashable], str]:
    """A name for each partition of each source. State is kept under it, so it does not depend on what else the flow reads."""
    channels: dict[tuple[str, Hashable], str] = {}
    for name in plan.sources:
        if name not in partitions:
            raise ConfigError(f'the flow reads "{name}", and no partition of it was given.')
        for partition in partitions[name]:
            channels[name, partition] = f"{name}/{partition}"
    for name in partitions:
        if name not in plan.sources:
            raise ConfigError(
                f'the flow does not read "{name}"; its sources: {", ".join(plan.sources)}.'
            )
    return channels
