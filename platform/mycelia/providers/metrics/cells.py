"""`Cells`: numbers that one process counts in, and that another may read while it does, or after it was killed.

A cell is a 64-bit float in a block of memory, so counting is an addition in place: no lock, no system call. Blocks are never
moved and never given back; what each means is told by a `Series`. In one process of several the memory is a file:

| file | content |
|---|---|
| `NAME.cells` | `CAPACITY` floats, native byte order |
| `NAME.series` | a JSON line for each series: `{"name", "labels", "kind", "at", "size", "bounds"}`, written once its cells are there |

Whoever takes up the same name later goes on counting where the one before ended, however that ended.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

__all__ = ["CAPACITY", "Cells", "CellsFull", "Kind", "Reading", "Series", "read_cells"]

CAPACITY = 1 << 17
"""Cells of one process: 1 MiB, enough for some 2,000 methods. A bound, because names may come from outside."""

Kind = str
"""`counter` | `histogram` (kept over the processes' ends), `sum` | `max` (gauges of living ones, how several make one)."""


class CellsFull(Exception):
    """There is no room for another series."""


class Series(msgspec.Struct, frozen=True):
    """What a block of cells means: one metric with its labels.

    A histogram has a cell for each of `bounds`, one for what is above them all, and one for the sum of what was observed.
    """

    name: str
    labels: dict[str, str]
    kind: Kind
    at: int
    size: int
    bounds: tuple[float, ...] = ()


class Reading(msgspec.Struct, frozen=True):
    """What the cells of a series held when they were read."""

    series: Series
    values: tuple[float, ...]


class Cells:
    """The cells of this process, on its event loop's thread.

    Args:
        path: of the files, without their endings; `None` keeps all in this process.

    Raises:
        OSError: the files cannot be made; no space, for instance.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._series: list[Series] = []
        self._by_key: dict[tuple[str, tuple[tuple[str, str], ...]], Series] = {}
        self._used = 0
        self._file = -1
        if path is None:
            self.values = memoryview(bytearray(8 * CAPACITY)).cast("d")
            return
        self._file = os.open(
            path.with_suffix(".series"), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600
        )
        cells = os.open(path.with_suffix(".cells"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # All of it now: a write to a page that the disk has no room for would kill the process.
            os.posix_fallocate(cells, 0, 8 * CAPACITY)
            self.values = memoryview(mmap.mmap(cells, 8 * CAPACITY)).cast("d")
        finally:
            os.close(cells)
        for series in _read_series(path):
            self._note(series)
            self._used = max(self._used, series.at + series.size)
        if not path.with_suffix(".series").read_bytes().endswith(b"\n"):
            os.write(self._file, b"\n")  # the process before was killed in the middle of a line

    def series(
        self, name: str, labels: dict[str, str], kind: Kind, bounds: tuple[float, ...] = ()
    ) -> Series:
        """The series of these labels, made when first asked for; of a gauge, beginning at 0.

        Raises:
            CellsFull: there is no room for it.
        """
        key = (name, tuple(sorted(labels.items())))
        series = self._by_key.get(key)
        if series is not None and series.bounds == bounds:
            return series
        size = len(bounds) + 2 if kind == "histogram" else 1
        if self._used + size > CAPACITY:
            raise CellsFull
        series = Series(name, labels, kind, self._used, size, bounds)
        self._used += size
        if self._file >= 0:
            self._write(msgspec.json.encode(series) + b"\n")
        self._note(series)
        return series

    def _write(self, line: bytes) -> None:
        try:
            is_whole = os.write(self._file, line) == len(line)
        except OSError as exc:
            raise CellsFull from exc
        if not is_whole:
            raise CellsFull

    def _note(self, series: Series) -> None:
        self._series.append(series)
        self._by_key[series.name, tuple(sorted(series.labels.items()))] = series

    def forget_gauges(self) -> None:
        """Set all gauges to 0: they were those of a process before this one."""
        for series in self._series:
            if series.kind in ("sum", "max"):
                self.values[series.at] = 0.0

    def read(self) -> list[Reading]:
        """All series as they are now."""
        return _readings(self._series, self.values)

    def close(self) -> None:
        """Let go of the file. The cells can be counted in on."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


def read_cells(path: Path) -> list[Reading]:
    """All series of another process, from its files; none where there are no files (yet).

    Args:
        path: as of `Cells`.
    """
    series = list(_read_series(path))
    if not series:
        return []
    try:
        content = path.with_suffix(".cells").read_bytes()
    except FileNotFoundError:
        return []
    if len(content) != 8 * CAPACITY:
        return []
    return _readings(series, memoryview(content).cast("d"))


def _readings(series: Iterable[Series], values: memoryview[float]) -> list[Reading]:
    return [Reading(each, tuple(values[each.at : each.at + each.size].tolist())) for each in series]


def _read_series(path: Path) -> Iterable[Series]:
    try:
        content = path.with_suffix(".series").read_bytes()
    except FileNotFoundError:
        return
    for line in content.split(b"\n"):
        try:
            yield msgspec.json.decode(line, type=Series)
        except msgspec.DecodeError:
            continue  # the last line of one that was killed, or the end
