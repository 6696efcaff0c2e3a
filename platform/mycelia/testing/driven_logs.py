"""What a test puts before a driven flow: entries, as whoever writes to a source would have made them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mycelia.errors import ConfigError
from mycelia.flow.described_flow import AnySource
from mycelia.flow.sources.events import QueueSource
from mycelia.logs import Log
from mycelia.logs.partitioning import partitions_of
from mycelia.logs.record_shape import checked_column

__all__ = ["DrivenEntry", "DrivenLogs"]


class DrivenEntry(NamedTuple):
    """A batch in a partition of a source, or its end."""

    values: list[Any]
    times: list[int]
    keys: list[Any] | None
    ids: list[str] | None = None
    """Of messages of a queue, as they are told."""
    is_end: bool = False


class DrivenLogs:
    """The sources of a flow, by name and partition, with all that was ever appended to them.

    Args:
        partitions: by source.
        declared: what is known of sources.
    """

    def __init__(
        self, partitions: Mapping[str, Sequence[int]], declared: Mapping[str, AnySource]
    ) -> None:
        self.partitions = {name: list(numbers) for name, numbers in partitions.items()}
        self.declared = dict(declared)
        self.entries: dict[tuple[str, int], list[DrivenEntry]] = {
            (name, number): [] for name, numbers in partitions.items() for number in numbers
        }

    @property
    def windows(self) -> dict[str, int]:
        """Of the queues among them, how many message ids are remembered."""
        return {
            name: one.window
            for name, one in self.declared.items()
            if isinstance(one, QueueSource) and name in self.partitions
        }

    def ticks(self, after_ms: int, until_ms: int) -> dict[str, list[int]]:
        """Which moments come to the sources that are ticks."""
        return {
            name: list(range((after_ms // every + 1) * every, until_ms + 1, every))
            for name, one in self.declared.items()
            if name in self.partitions
            and (every := one.interval_ms if not isinstance(one, Log) else None)
        }

    def append(
        self,
        source: str | AnySource,
        values: Sequence[Any],
        times: Sequence[int] | None,
        keys: Sequence[Any] | None,
        ids: Sequence[str] | None,
        partition: int | None,
        batch: int,
        now_ms: int,
    ) -> None:
        """See `FlowDriver.append()`.

        Raises:
            ConfigError: there is no such partition; or ids are told of what has none.
            ContractError: a value has no key or time where its source has them.
            TypeError: the values are no sequence of records, but one text, a dictionary, a generator.
        """
        checked_column(values, "append()")
        name = source if isinstance(source, str) else source.name
        if not isinstance(source, str):
            self.declared.setdefault(name, source)
        of = self.declared.get(name)
        if ids is not None and not isinstance(of, QueueSource):
            raise ConfigError(f'ids= are of messages; "{name}" is not known as a queue, or events.')
        if keys is None and of is not None and of.shape.has_key:
            keys = of.shape.keys_of(values)
        if times is None and of is not None and of.shape.has_time:
            times = [now_ms if one is None else one for one in of.shape.times_of(values)]
        if times is None:
            times = [now_ms] * len(values)
        if partition is None and isinstance(of, Log) and keys is not None:
            among = self.partitions.get(name, [])
            placed = (
                [among[one] for one in partitions_of(keys, len(among), lambda: 0)]
                if among
                else [0] * len(keys)
            )
        else:
            placed = [partition or 0] * len(values)
        for number in sorted(set(placed)):
            at = [index for index, one in enumerate(placed) if one == number]
            log = self._log(name, number)
            for begin in range(0, len(at), batch):
                some = at[begin : begin + batch]
                log.append(
                    DrivenEntry(
                        [values[one] for one in some],
                        [times[one] for one in some],
                        None if keys is None else [keys[one] for one in some],
                        None if ids is None else [ids[one] for one in some],
                    )
                )

    def end(self) -> None:
        for log in self.entries.values():
            log.append(DrivenEntry([], [], None, is_end=True))

    def go_on_from(self, before: DrivenLogs) -> None:
        """Have what has been appended to the same sources of another."""
        for one, log in before.entries.items():
            if one in self.entries:
                self.entries[one] = list(log)
            elif log:
                name, number = one
                raise ConfigError(
                    f'partition {number} of "{name}" is none of the flow that goes on; its records would be lost.'
                )

    def _log(self, name: str, partition: int) -> list[DrivenEntry]:
        log = self.entries.get((name, partition))
        if log is None:
            known = ", ".join(f"{name}/{number}" for name, number in self.entries)
            raise ConfigError(
                f'no partition {partition} of "{name}" in this driver; there are {known}.'
            )
        return log
