"""Flows in a test: virtual time, partitions interleaved by a seed, and crashes at any point, in one process and without a broker.

    driver = FlowDriver({"hourly": delays}, seed=7, crash_rate=0.2)
    driver.append("flights.departed", flights, times=[…], batch=50)
    driver.end()
    assert driver.given("hourly") == […]

It does what a runner does, over logs and a store in memory: takes entries in some order, commits state, positions and an outbox in one
write, publishes the outbox, and after a crash starts from what was written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, Final, NamedTuple

from mycelia.durations import Duration, seconds_of
from mycelia.errors import ConfigError
from mycelia.flow import Engine, FlowOutput, FlowPlan, Given, MemoryStore, RejectedRecord, Stream
from mycelia.flow.asked_state import MOST_WINDOWS, state_output
from mycelia.flow.state_codec import decode_state, encode_state
from mycelia.flow.tables import rows_of, table_step

__all__ = ["DrivenRecord", "FlowDriver"]

_POSITIONS: Final = "~driver-positions"
_OUTBOX: Final = "~driver-outbox"


class DrivenRecord(NamedTuple):
    """What left the flow: its id, and the record. One that is published again has the same id."""

    id: str
    key: Any
    time_ms: int
    value: Any


class _Entry(NamedTuple):
    """A batch in a log, or its end."""

    values: list[Any]
    times: list[int]
    keys: list[Any] | None
    is_end: bool = False


class _Crash(Exception):
    """The process dies here."""


class FlowDriver:
    """Runs a flow over records that a test appends.

    Args:
        outputs: the streams that leave the flow, by name; or what `as_table()` gave, for `table()`.
        partitions: of each source, or of the sources by name.
        seed: decides in which order partitions are read, when is committed, and where it crashes. The order does not depend on
            crashes: the same seed without them reads the same.
        crash_rate: how likely a crash is at each of the points where one may come: after a batch, before and after a commit, among what is published.
    """

    def __init__(
        self,
        outputs: Mapping[str, Stream[Any] | FlowOutput],
        *,
        partitions: int | Mapping[str, int] = 1,
        seed: int = 0,
        crash_rate: float = 0.0,
    ) -> None:
        self.plan = FlowPlan({name: stream.port for name, stream in outputs.items()})
        self.now_ms = 0
        self.crashes = 0
        """How often it crashed."""
        self.published: list[tuple[str, DrivenRecord]] = []
        """All that was published, with its output's name; what a crash made it publish again is there again."""
        self.rejected: list[RejectedRecord] = []
        """What the flow went on without; perhaps more than once, where it crashed after it."""
        self.store = MemoryStore()
        self._partitions = {
            source: list(
                range(partitions if isinstance(partitions, int) else partitions.get(source, 1))
            )
            for source in self.plan.sources
        }
        self._logs: dict[tuple[str, int], list[_Entry]] = {
            (source, partition): []
            for source, numbers in self._partitions.items()
            for partition in numbers
        }
        self._seed = seed
        self._crash_rate = crash_rate
        self._chance = Random(f"{seed} crashes")
        self._uncommitted: list[Given] = []
        self._start()

    # --- what a test does ----------------------------------------------------------------------------

    def append(
        self,
        source: str,
        values: Sequence[Any],
        *,
        times: Sequence[int] | None = None,
        keys: Sequence[Any] | None = None,
        partition: int = 0,
        batch: int = 100,
    ) -> None:
        """Put records at the end of a partition, in entries of `batch`. Without `times` they are of time 0; see `Stream.event_time()`."""
        log = self._logs.get((source, partition))
        if log is None:
            known = ", ".join(f"{name}/{number}" for name, number in self._logs)
            raise ConfigError(
                f'no partition {partition} of "{source}" in this driver; there are {known}.'
            )
        when = [0] * len(values) if times is None else list(times)
        for at in range(0, len(values), batch):
            log.append(
                _Entry(
                    list(values[at : at + batch]),
                    when[at : at + batch],
                    None if keys is None else list(keys[at : at + batch]),
                )
            )

    def run(self) -> None:
        """Until all that was appended is read, committed and published, through all crashes."""
        while True:
            while self._unread():
                self._survive(self._read_some)
            if self._survive(self._commit):
                return

    def end(self) -> None:
        """Let all sources end, and run: all windows close."""
        for log in self._logs.values():
            log.append(_Entry([], [], None, is_end=True))
        self.run()

    def advance(self, duration: Duration) -> None:
        """Let time on the wall come by, after all that was appended: timers of processing time, partitions that fall silent."""
        self.run()
        self.now_ms += round(seconds_of(duration, "advance()") * 1000)
        while not self._survive(self._tick):
            pass

    def table(self, name: str) -> dict[Any, Any]:
        """What a table (`KeyedStream.as_table()`) says of each key, as of the last commit."""
        step = table_step(name)
        if step not in self.plan.signatures():
            raise ConfigError(f'the flow has no table "{name}".')
        return {key: value for key, _, value in rows_of(self.store, step)}

    def state(self, name: str) -> dict[Any, Any]:
        """What `as_state()` tells of each key, as of the last commit: the state that a function keeps, or a list of `OpenWindow`."""
        for node, named in self.plan.names.items():
            if named == state_output(name):
                ((step, _),) = node.inputs
                break
        else:
            raise ConfigError(f'the flow has no state that is asked for as "{name}".')
        of_step = self.store.scan(self.plan.names[step])
        kept = {decode_state(key): decode_state(data) for key, data in of_step}
        if (read := step.open_windows) is None:
            return kept
        found = {key: read(plain, MOST_WINDOWS)[0] for key, plain in kept.items()}
        return {key: windows for key, windows in found.items() if windows}

    def records(self, output: str) -> list[DrivenRecord]:
        """What left by an output, each id once, in the order in which it was published first.

        Raises:
            AssertionError: one id was given to two records.
        """
        found: dict[str, DrivenRecord] = {}
        for name, record in self.published:
            if name == output:
                first = found.setdefault(record.id, record)
                assert encode_state(first) == encode_state(record), (
                    f"{record.id} was published as {first} and as {record}"
                )
        return list(found.values())

    def given(self, output: str) -> list[Any]:
        """The values of `records()`."""
        return [record.value for record in self.records(output)]

    # --- what a runner does --------------------------------------------------------------------------

    def _start(self) -> None:
        """From what is written. What was to be published is published, perhaps again."""
        self._engine = Engine(self.plan, self._partitions, store=self.store)
        (written,) = self.store.read(_POSITIONS, [b""])
        self._positions: dict[tuple[str, int], int] = (
            dict.fromkeys(self._logs, 0) if written is None else decode_state(written)
        )
        self._uncommitted = []

    def _unread(self) -> list[tuple[str, int]]:
        return [one for one, log in self._logs.items() if self._positions[one] < len(log)]

    def _survive(self, step: Callable[[], None]) -> bool:
        """Take a step; whether it was taken to its end. If not, what was written is where it goes on."""
        try:
            step()
        except _Crash:
            self.crashes += 1
            self._start()
            while not self._survive(self._publish):
                pass
            return False
        return True

    def _tick(self) -> None:
        self._uncommitted += self._engine.tick(self.now_ms)
        self._commit()

    def _may_crash(self) -> None:
        if self._chance.random() < self._crash_rate:
            raise _Crash

    def _read_some(self) -> None:
        """An entry of one of the partitions; now and then a commit. Both are told by how many entries were read before."""
        number = sum(self._positions.values())
        chance = Random(f"{self._seed} {number}")
        one = chance.choice(self._unread())
        source, partition = one
        values, times, keys, is_end = self._logs[one][self._positions[one]]
        if is_end:
            given = self._engine.end(source, partition, now_ms=self.now_ms)
        else:
            given = self._engine.feed(
                source, partition, list(values), list(times), keys, now_ms=self.now_ms
            )
        self._uncommitted += given
        self.rejected += self._engine.take_rejected()
        self._positions[one] += 1
        self._may_crash()
        if chance.random() < 0.4:
            self._commit()

    def _commit(self) -> None:
        outbox = {
            encode_state([output, number]): encode_state(list(record))
            for output, number, record in self._outgoing()
        }
        changes = self._engine.take_changes()
        changes[_POSITIONS] = {b"": encode_state(self._positions)}
        changes[_OUTBOX] = dict(outbox)
        self._may_crash()
        self.store.write(changes)
        self._uncommitted = []
        self._may_crash()
        self._publish()

    def _outgoing(self) -> list[tuple[str, int, DrivenRecord]]:
        return [
            (given.output, given.first_number + at, DrivenRecord(*record))
            for given in self._uncommitted
            for at, record in enumerate(
                zip(given.ids(), given.keys, given.times, given.values, strict=True)
            )
        ]

    def _publish(self) -> None:
        rows = {(*decode_state(key),): (key, data) for key, data in self.store.scan(_OUTBOX)}
        crashes = bool(rows) and self._chance.random() < self._crash_rate
        dies_after = self._chance.randrange(len(rows)) if crashes else None
        for number, row in enumerate(sorted(rows)):
            self.published.append((row[0], DrivenRecord(*decode_state(rows[row][1]))))
            if number == dies_after:
                raise _Crash
        self.store.write({_OUTBOX: {key: None for key, _ in rows.values()}})
