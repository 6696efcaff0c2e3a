"""Files that are committed with the checkpoint: JSON lines, and Parquet.

The checkpoint knows how far each file has come: which one, and how many bytes. What leaves with a commit says where it belongs, and is
written there after the commit: the same bytes at the same place, however often. So a kill in the middle leaves what the next owner writes
over, and neither half lines nor doubled ones.

A file is `….part` until it is full: of `max_bytes`, `max_records`, or `every` so long. Then it is renamed, or made a Parquet file of, and never changes
again. Readers take those with the final name.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from contextlib import suppress
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec

from mycelia.durations import Duration, seconds_of
from mycelia.errors import ConfigError, FlowError, UnserializableValueError, describe
from mycelia.extras import require_extra
from mycelia.flow.fields import getter_of
from mycelia.flow.sinks.sink import FlowSink, SinkPlace, SinkRecord
from mycelia.flow.sinks.threaded import SinkThreads, fields_of_record
from mycelia.flow.state_codec import decode_state, encode_state
from mycelia.runtime import Container

__all__ = ["FileSink", "json_lines", "parquet_files"]

T = TypeVar("T")

MIB: Final = 1024 * 1024
_BODY_BYTES: Final = 512 * 1024
"""Of one row of the outbox."""

_LENGTH: Final = struct.Struct(">I")

_OPEN_FOLDERS: Final = 100
"""Of a partition. They are told in each commit, and are files that nobody reads yet."""

_SAFE: Final = " =+,@:"
"""In a folder's name, beside letters and digits; whatever else there is becomes %XX."""

_NAME_BYTES: Final = 200
"""Of a folder's name; file systems take 255."""

_FOLDER_BYTES: Final = 1000
"""Of a path of folders; systems take 4096 with all that is before and after it."""


class _Chunk(msgspec.Struct, array_like=True):
    """What the outbox keeps: `data` at the place `at` of a file, which is full then if `closes`."""

    number: int
    at: int
    data: bytes
    closes: bool
    folder: str = ""


_encode_chunk: Final = msgspec.msgpack.Encoder().encode
_decode_chunk: Final = msgspec.msgpack.Decoder(_Chunk).decode
_encode_json: Final = msgspec.json.Encoder().encode


class _OpenFile:
    """A file that is not full: how far it has come, and what the next chunk has of it."""

    __slots__ = ("at", "count", "data", "number", "since", "size")

    def __init__(self, number: int, since: int, at: int = 0, count: int = 0) -> None:
        self.number = number
        self.since = since
        """The time on the wall when its first record came."""
        self.at = at
        self.count = count
        self.data: list[bytes] = []
        self.size = 0


_PLACES: Final = ("file", "bytes", "records", "since")
"""What is kept of an open file: its number, and how far it has come. Those of a folder's have its name behind them."""


def _opened(kept: dict[str, int]) -> tuple[int, dict[str, _OpenFile]]:
    """The number of the next file, and the open ones by folder, as they are kept; the one of no folder is called ""."""
    opened: dict[str, _OpenFile] = {}
    if kept.get("records"):
        opened[""] = _OpenFile(kept["file"], kept["since"], kept["bytes"], kept["records"])
    for name, number in kept.items():
        kind, slash, folder = name.partition("/")
        if slash and kind == "file":
            at, count, since = (kept[f"{one}/{folder}"] for one in _PLACES[1:])
            opened[folder] = _OpenFile(number, since, at, count)
    return kept.get("file", 0) + ("" in opened), opened


def _keep(kept: dict[str, int], following: int, opened: dict[str, _OpenFile]) -> None:
    """The other way round. There is one of no folder, or there are those of folders."""
    kept.clear()
    kept.update(file=following, bytes=0, records=0, since=0)
    for folder, one in opened.items():
        places = (one.number, one.at, one.count, one.since)
        kept.update(
            {
                f"{name}/{folder}" if folder else name: place
                for name, place in zip(_PLACES, places, strict=True)
            }
        )


class FileSink(FlowSink[T]):
    """Files in a directory; made by `json_lines()` and `parquet_files()`.

    A file is called `GROUP-GENERATION-PARTITION-NUMBER.SUFFIX`: each partition of a flow writes its own, in each folder.
    """

    leaves_out_repeats = True

    suffix = ".jsonl"

    def __init__(
        self,
        directory: str | Path,
        every: Duration | None,
        max_bytes: int,
        max_records: int | None,
        by: str | Callable[[T], object] | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.name = str(directory)
        what = f"{type(self).__name__}({str(directory)!r})"
        self._every_ms = None if every is None else round(seconds_of(every, what) * 1000)
        for name, number in (("max_bytes", max_bytes), ("max_records", max_records)):
            if number is not None and (type(number) is not int or number < 1):
                raise ConfigError(f"{what}: {name}={number!r:.60}; expected a number from 1.")
        if self._every_ms == 0:
            raise ConfigError(f"{what}: every={every!r}; expected a time above 0.")
        self._max_bytes = max_bytes
        self._max_records = max_records
        self._by = None if by is None else getter_of(by, f"{what}: by=")
        self._threads = SinkThreads("mycelia-flow-files")

    async def open(self, container: Container) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if not os.access(self.directory, os.W_OK | os.X_OK):
                raise PermissionError("this process may not write there")
        except OSError as exc:
            raise ConfigError(
                f"files cannot be written to {self.directory}: {exc.strerror or exc}."
            ) from exc

    # --- at the commit ---------------------------------------------------------------------------

    def line(self, value: T) -> bytes:
        """A record as it is written."""
        return _encode_json(value) + b"\n"

    def pack(
        self, records: list[SinkRecord[T]], kept: dict[str, int], now_ms: int, flow: str
    ) -> list[bytes]:
        bodies: list[bytes] = []
        following, opened = _opened(kept)

        def cut(folder: str, one: _OpenFile, closes: bool) -> None:
            if one.data or closes:
                bodies.append(
                    _encode_chunk(_Chunk(one.number, one.at, b"".join(one.data), closes, folder))
                )
            one.at += one.size
            one.data, one.size = [], 0
            if closes:
                del opened[folder]

        for folder, one in list(opened.items()):
            if self._is_old(one.since, now_ms) or (not folder) != (self._by is None):
                cut(folder, one, closes=True)
        for record in records:
            folder = "" if self._by is None else self._folder_of(record.value)
            try:
                line = self.line(record.value)
            except (TypeError, ValueError) as exc:
                raise UnserializableValueError(
                    f"{self.name}: {record.value!r:.80} cannot be written: {exc}."
                ) from exc
            file = opened.get(folder)
            if file is None:
                if len(opened) >= _OPEN_FOLDERS:
                    cut(*min(opened.items(), key=lambda item: item[1].number), closes=True)
                file = opened[folder] = _OpenFile(following, now_ms)
                following += 1
            file.data.append(line)
            file.size += len(line)
            file.count += 1
            if file.at + file.size >= self._max_bytes or file.count == self._max_records:
                cut(folder, file, closes=True)
            elif file.size >= _BODY_BYTES:
                cut(folder, file, closes=False)
        for folder, one in list(opened.items()):
            cut(folder, one, closes=False)
        _keep(kept, following, opened)
        return bodies

    def _is_old(self, since: int, now_ms: int) -> bool:
        return self._every_ms is not None and now_ms - since >= self._every_ms

    def is_due(self, kept: dict[str, int], now_ms: int) -> bool:
        return any(self._is_old(one.since, now_ms) for one in _opened(kept)[1].values())

    def _folder_of(self, value: T) -> str:
        """The folder of a record, as a path with `/`: no text that a record has in it leads out of the directory."""
        assert self._by is not None
        try:
            said = self._by(value)
            parts = said if isinstance(said, tuple) else (said,)
            names = [quote(str(part), safe=_SAFE) for part in parts]
        except Exception as exc:
            raise UnserializableValueError(
                f"{self.name}: by= raised over {value!r:.80}: {describe(exc)}."
            ) from exc
        folder = "/".join(names)
        if len(folder) > _FOLDER_BYTES or any(
            not name.strip(".") or len(name) > _NAME_BYTES for name in names or [""]
        ):
            raise UnserializableValueError(
                f"{self.name}: by= gives {said!r:.80} for {value!r:.80}, which is no name of a folder. Expected a text of 1 to {_NAME_BYTES} "
                "characters, or a tuple of them for folders in folders."
            )
        return folder

    def told_of(self, body: bytes) -> list[SinkRecord[Any]]:
        return []

    # --- after it --------------------------------------------------------------------------------

    async def deliver(self, body: bytes, place: SinkPlace, done: set[str]) -> None:
        await self._threads.run(self._write, _decode_chunk(body), place)

    def _write(self, chunk: _Chunk, place: SinkPlace) -> None:
        flow = "-".join(quote(part, safe="") for part in place.flow.split("/"))
        directory = self.directory / chunk.folder
        final = directory / f"{flow}-{chunk.number:06}{self.suffix}"
        part = final.with_name(f"{final.name}.part")
        if final.exists():  # what comes after a crash has been written before
            part.unlink(missing_ok=True)
            return
        if chunk.folder and not chunk.at:
            directory.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(part, os.O_WRONLY | (0 if chunk.at else os.O_CREAT), 0o666)
        except FileNotFoundError:
            raise FlowError(
                f"{part} is not here, and {chunk.at} bytes of it have been written: on another machine, or somebody removed it. Give all "
                "instances the same directory, or bring the file back."
            ) from None
        try:
            length = os.fstat(file).st_size
            if length < chunk.at:
                raise FlowError(
                    f"{part} has {length} bytes, and {chunk.at} had been written: somebody has cut it. Bring it back."
                )
            os.ftruncate(file, chunk.at)  # half of what follows, if a kill left it
            at = chunk.at
            data = memoryview(chunk.data)
            while data:
                written = os.pwrite(file, data, at)
                at, data = at + written, data[written:]
            os.fsync(file)
        finally:
            os.close(file)
        if chunk.closes:
            self._finish(part, final)
            while directory != self.directory:
                _sync_directory(directory)
                directory = directory.parent
            _sync_directory(directory)

    def _finish(self, part: Path, final: Path) -> None:
        """A full file gets its name."""
        part.rename(final)

    async def aclose(self) -> None:
        self._threads.close()


class _ParquetSink(FileSink[T]):
    """Rows are gathered in a part of its own form, `length, state` each, and made a Parquet file of when it is full."""

    suffix = ".parquet"

    def __init__(self, *args: Any, schema: Any) -> None:
        super().__init__(*args)
        self._schema = schema

    async def open(self, container: Container) -> None:
        require_extra("parquet", f"{container.service_name}: parquet_files()")
        await super().open(container)

    def line(self, value: T) -> bytes:
        data = encode_state(self._row(value))
        return _LENGTH.pack(len(data)) + data

    def _row(self, value: T) -> dict[str, Any]:
        return {
            name: msgspec.to_builtins(
                field, builtin_types=(datetime, date, timedelta, Decimal, bytes)
            )
            for name, field in fields_of_record(value, self.name).items()
        }

    def pack(
        self, records: list[SinkRecord[T]], kept: dict[str, int], now_ms: int, flow: str
    ) -> list[bytes]:
        """As `FileSink.pack()`. A row that no column holds is told now, with its record: once it is in a part, the file could not be finished."""
        self._check([record.value for record in records])
        return super().pack(records, kept, now_ms, flow)

    def _check(self, values: list[T]) -> None:
        with suppress(Exception):  # which of them it is, is asked below
            self._table(list(map(self._row, values)))
            return
        for value in values:
            try:
                self._table([self._row(value)])
            except Exception as exc:
                raise UnserializableValueError(
                    f"{self.name}: {value!r:.80} cannot be a row: {describe(exc)}."
                ) from exc

    def _table(self, rows: list[dict[str, Any]]) -> Any:
        import pyarrow

        return pyarrow.Table.from_pylist(rows, schema=self._schema)

    def _finish(self, part: Path, final: Path) -> None:
        rows: list[dict[str, Any]] = []
        data = part.read_bytes()
        at = 0
        while at < len(data):
            (length,) = _LENGTH.unpack_from(data, at)
            at += _LENGTH.size + length
            rows.append(decode_state(data[at - length : at]))
        tables = self._tables(rows)
        # The one of the file's own name comes last: what has that is not written again.
        for number in reversed(range(len(tables))):
            name = final.name if not number else f"{final.stem}-{number}{final.suffix}"
            made = final.with_name(f"{name}.made")
            self._write_table(tables[number], made)
            with made.open("rb") as written:
                os.fsync(written.fileno())
            made.rename(final.with_name(name))
        part.unlink()

    def _write_table(self, table: Any, path: Path) -> None:
        import pyarrow.parquet

        try:
            pyarrow.parquet.write_table(table, path)
        except pyarrow.ArrowNotImplementedError:  # a mapping that is empty in all rows
            rows = [_without_empty(row) for row in table.to_pylist()]
            pyarrow.parquet.write_table(self._table(rows), path)

    def _tables(self, rows: list[dict[str, Any]]) -> list[Any]:
        """One; or several, where a column cannot hold what all of the rows have: text and numbers."""
        try:
            return [self._table(rows)]
        except Exception:
            if len(rows) == 1:
                raise
        by_kind: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        mixed = _mixed_columns(rows)
        for row in rows:
            by_kind.setdefault(tuple(_kind_of(row.get(name)) for name in mixed), []).append(row)
        groups = list(by_kind.values())
        if len(groups) == 1:  # it is further inside
            groups = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
        return [table for group in groups for table in self._tables(group)]


def _mixed_columns(rows: list[dict[str, Any]]) -> list[str]:
    """Those in which values of several kinds are."""
    kinds: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.items():
            kinds.setdefault(name, set()).add(_kind_of(value))
    return [name for name, found in kinds.items() if len(found - {""}) > 1]


def _without_empty(value: Any) -> Any:
    """With None for mappings that are empty, which Parquet has no form for."""
    if isinstance(value, dict):
        return {name: _without_empty(one) for name, one in value.items()} or None
    return [_without_empty(one) for one in value] if isinstance(value, list) else value


def _kind_of(value: Any) -> str:
    """As a column has it: whole numbers and others are in one. Nothing is of any."""
    if value is None:
        return ""
    return "float" if type(value) is int else type(value).__name__


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def json_lines(
    directory: str | Path,
    *,
    every: Duration | None = "5m",
    max_bytes: int = 64 * MIB,
    max_records: int | None = None,
    by: str | Callable[[Any], object] | None = None,
) -> FileSink[Any]:
    """Files of JSON lines, a record a line: `stream.to(json_lines("out/hourly"))`.

    Each record is in the finished files once, whatever was killed in between.

    Args:
        directory: made if it is not there. All instances of the flow need the same.
        every: a file is finished when its first record is so old, "5m" by default, at the commit after it; None: when it is full.
        max_bytes: a file is finished with the record that takes it there; 64 MiB by default.
        max_records: … or at so many records.
        by: a folder for each value of this: a field, or a function of a record. A tuple is folders in folders: `by=lambda one: (one.day, one.hour)`.
            A hundred are open at a time for each partition of the flow; with one more, the file that was begun first is finished.
    """
    return FileSink(directory, every, max_bytes, max_records, by)


def parquet_files(
    directory: str | Path,
    *,
    schema: Any = None,
    every: Duration | None = "5m",
    max_bytes: int = 64 * MIB,
    max_records: int | None = None,
    by: str | Callable[[Any], object] | None = None,
) -> FileSink[Any]:
    """Parquet files, a column for each field of a record. Needs the extra `parquet`.

    As `json_lines()`. Rows are gathered beside it until a file is full, and are no Parquet file before.

    Args:
        schema: a `pyarrow.Schema`; by default each file has what its rows look like, so that a column without any value has no type. Rows that do not go
            into one (text and numbers in a column) are several files then, `…-NUMBER-1.parquet` beside the first.
    """
    return _ParquetSink(directory, every, max_bytes, max_records, by, schema=schema)
