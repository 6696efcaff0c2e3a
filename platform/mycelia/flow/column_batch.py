"""A batch of records, as the columns that operators work on. Pure.

Columns and not records: what one step needs of a batch is mostly one column, and Python walks a list of it at the speed of C.
Three lists cost nothing where a step leaves two of them as they are (docs/decisions/0020).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable
from itertools import accumulate, compress
from typing import Any, Final

__all__ = ["BEGINNING_OF_TIME", "END_OF_TIME", "ColumnBatch", "Selection", "Spread"]

BEGINNING_OF_TIME: Final = -(2**62)
"""The watermark of an input that has said nothing yet, in milliseconds."""

END_OF_TIME: Final = 2**62
"""The watermark of an input that has ended."""


class Selection:
    """A step that kept those records whose entry in `kept` is true."""

    __slots__ = ("kept",)

    def __init__(self, kept: list[Any]) -> None:
        self.kept = kept

    def before(self, position: int) -> int:
        """Where a record stood, before the step."""
        return [index for index, kept in enumerate(self.kept) if kept][position]


class Spread:
    """A step that made `counts[i]` records of the i-th."""

    __slots__ = ("counts",)

    def __init__(self, counts: list[int]) -> None:
        self.counts = counts

    def before(self, position: int) -> int:
        return bisect_right(list(accumulate(self.counts)), position)


class ColumnBatch:
    """Records side by side: `keys[i]`, `times[i]` and `values[i]` are one record's.

    Who is given columns does not change them: the same lists may be on their way to another operator.

    Args:
        times: event times, milliseconds since 1970.
        values: what the records say.
        keys: what they are about; None as long as nothing has been said of keys.
        channel: the source's partition that they came from, as the engine calls it.
        trail: the steps that changed which records these are, since the batch that the engine was given; None if these are
            no records of that batch, but results. It is asked for the position of a record that makes trouble.
    """

    __slots__ = ("_span", "channel", "keys", "times", "trail", "values")

    def __init__(
        self,
        times: list[int],
        values: list[Any],
        keys: list[Any] | None = None,
        channel: Hashable = 0,
        trail: tuple[Selection | Spread, ...] | None = None,
    ) -> None:
        self.times = times
        self.values = values
        self.keys = keys
        self.channel = channel
        self.trail = trail
        self._span: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"ColumnBatch({self.times!r:.80}, {self.values!r:.80}, {self.keys!r:.80})"

    @property
    def span(self) -> tuple[int, int]:
        """The earliest and the latest event time; there is at least one record. Several steps ask, and it is found once."""
        if self._span is None:
            self._span = min(self.times), max(self.times)
        return self._span

    def with_values(self, values: list[Any]) -> ColumnBatch:
        """The same records, which say something else."""
        return self._at_the_same_times(values, self.keys)

    def with_keys(self, keys: list[Any]) -> ColumnBatch:
        """The same records, about something else."""
        return self._at_the_same_times(self.values, keys)

    def _at_the_same_times(self, values: list[Any], keys: list[Any] | None) -> ColumnBatch:
        batch = ColumnBatch(self.times, values, keys, self.channel, self.trail)
        batch._span = self._span
        return batch

    def only(self, kept: list[bool]) -> ColumnBatch:
        """Those of the records whose entry in `kept` is true."""
        return ColumnBatch(
            list(compress(self.times, kept)),
            list(compress(self.values, kept)),
            None if self.keys is None else list(compress(self.keys, kept)),
            self.channel,
            None if self.trail is None else (*self.trail, Selection(kept)),
        )

    def origin(self, position: int) -> int | None:
        """Which record of the engine's batch the one at `position` is, or was made of; None if it is a result."""
        if self.trail is None:
            return None
        for step in reversed(self.trail):
            position = step.before(position)
        return position
