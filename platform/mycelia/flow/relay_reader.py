"""Reads a log between two stages of a flow. It never begins elsewhere than it has to: what is between two stages is nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from mycelia.errors import OffsetGone
from mycelia.logs import LogEntry
from mycelia.logs.reader import LogReader

__all__ = ["RelayReader"]

_WAYS_OUT: Final = (
    "The log is one between two stages of a flow, and the second has stood still for longer than it keeps (retain_between, retain_between_bytes). "
    "Two ways out: go on from a savepoint (mycelia flow reset --savepoint), or begin anew from a place in the logs that the flow reads "
    "(mycelia flow reset --from). Have it keep more, if that may be again."
)


class RelayReader(LogReader[Any]):
    """A `LogReader` that says what there is to do for a flow where entries are gone."""

    async def open(self, timeout: float | None = 30.0) -> None:
        with _told_with_ways_out():
            await super().open(timeout)

    async def take(self, timeout: float | None = None) -> LogEntry[Any] | None:
        with _told_with_ways_out():
            return await super().take(timeout)


@contextmanager
def _told_with_ways_out() -> Iterator[None]:
    try:
        yield
    except OffsetGone as exc:
        raise exc.with_remedy(_WAYS_OUT) from exc
