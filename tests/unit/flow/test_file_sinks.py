"""Files hold each record once, whatever was killed in between: the same bytes come to the same place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mycelia.errors import ConfigError, FlowError, UnserializableValueError
from mycelia.flow.sinks.files import FileSink, json_lines, parquet_files
from mycelia.flow.sinks.sink import SinkPlace, SinkRecord

FLOW = "delays.hourly/abc/3"
PLACE = SinkPlace(FLOW, "out", 0)


def records(*values: Any) -> list[SinkRecord[Any]]:
    return [SinkRecord(f"id{value}", None, 0, value) for value in values]


def written(directory: Path) -> list[Any]:
    return [
        json.loads(line)
        for file in sorted(directory.glob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]


def deliver(sink: FileSink[Any], body: bytes) -> None:
    from mycelia.flow.sinks.files import _decode_chunk

    sink._write(_decode_chunk(body), PLACE)


@given(
    commits=st.lists(st.integers(0, 12), min_size=1, max_size=12),
    max_records=st.sampled_from([None, 1, 5]),
    max_bytes=st.sampled_from([1, 40, 10_000]),
    seed=st.integers(0, 1000),
)
def test_kills_anywhere_leave_each_record_once(
    tmp_path_factory: pytest.TempPathFactory,
    commits: list[int],
    max_records: int | None,
    max_bytes: int,
    seed: int,
) -> None:
    """After a kill the bodies come again from one that had been written, and the last may have been written by half."""
    directory = tmp_path_factory.mktemp("out")
    sink: FileSink[Any] = json_lines(
        directory, every=None, max_records=max_records, max_bytes=max_bytes
    )
    kept: dict[str, int] = {}
    bodies: list[bytes] = []
    total = 0
    for count in commits:
        bodies += sink.pack(records(*range(total, total + count)), kept, 0, FLOW)
        total += count
    chance = Random(seed)
    at = 0
    while at < len(bodies):
        deliver(sink, bodies[at])
        at += 1
        if chance.random() < 0.3:
            for part in directory.glob("*.part"):  # what a kill leaves of the next
                with part.open("ab") as file:
                    file.write(b'{"half')
            at = max(0, at - chance.randrange(4))
    if kept["records"]:  # the last file is made full by time
        timed: FileSink[Any] = json_lines(directory, every="1s")
        for body in timed.pack([], kept, 10_000, FLOW):
            deliver(sink, body)

    assert written(directory) == list(range(total))
    assert not list(directory.glob("*.part"))


def test_file_is_finished_when_its_first_record_is_old(tmp_path: Path) -> None:
    sink: FileSink[Any] = json_lines(tmp_path, every="10s")
    kept: dict[str, int] = {}
    for body in sink.pack(records(1), kept, 1000, FLOW):
        deliver(sink, body)
    assert not sink.is_due(kept, 10_999)
    assert written(tmp_path) == []
    assert sink.is_due(kept, 11_000)
    for body in sink.pack([], kept, 11_000, FLOW):
        deliver(sink, body)

    assert written(tmp_path) == [1]
    assert not sink.is_due(kept, 99_000), "a file that has no record is none"
    (file,) = tmp_path.iterdir()
    assert file.name == "delays.hourly-abc-3-000000.jsonl"


def test_finished_file_never_changes_and_no_part_of_it_comes_back(tmp_path: Path) -> None:
    """A former owner wakes up, and delivers what it still has in its hands."""
    sink: FileSink[Any] = json_lines(tmp_path, max_records=2)
    kept: dict[str, int] = {}
    bodies = sink.pack(records(1), kept, 0, FLOW) + sink.pack(records(2, 3), kept, 0, FLOW)
    for body in bodies:
        deliver(sink, body)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    deliver(sink, bodies[0])

    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_part_that_is_not_here_or_was_cut_is_missed(tmp_path: Path) -> None:
    sink: FileSink[Any] = json_lines(tmp_path)
    kept: dict[str, int] = {}
    first = sink.pack(records(1), kept, 0, FLOW)
    second = sink.pack(records(2), kept, 0, FLOW)
    with pytest.raises(FlowError, match="is not here, and 2 bytes of it have been written"):
        deliver(sink, second[0])
    deliver(sink, first[0])
    (part,) = tmp_path.iterdir()
    part.write_bytes(b"")

    with pytest.raises(FlowError, match="somebody has cut it"):
        deliver(sink, second[0])


@settings(max_examples=40)
@given(
    commits=st.lists(st.lists(st.integers(0, 5), max_size=8), min_size=1, max_size=12),
    max_records=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 1000),
)
def test_records_are_once_in_the_folder_of_their_value_through_kills(
    tmp_path_factory: pytest.TempPathFactory,
    commits: list[list[int]],
    max_records: int | None,
    seed: int,
) -> None:
    directory = tmp_path_factory.mktemp("out")
    sink: FileSink[Any] = json_lines(
        directory, every="1s", max_records=max_records, by=lambda one: (f"n={one % 3}", one)
    )
    kept: dict[str, int] = {}
    bodies: list[bytes] = []
    for number, values in enumerate(commits):
        bodies += sink.pack(records(*values), kept, number * 400, FLOW)
    bodies += sink.pack([], kept, 100_000, FLOW)
    chance = Random(seed)
    at = 0
    while at < len(bodies):
        deliver(sink, bodies[at])
        at += 1
        if chance.random() < 0.3:
            for part in directory.rglob("*.part"):
                with part.open("ab") as file:
                    file.write(b'{"half')
            at = max(0, at - chance.randrange(4))

    for value in range(6):
        folder = directory / f"n={value % 3}" / str(value)
        assert written(folder) == [value] * sum(values.count(value) for values in commits)
    assert not list(directory.rglob("*.part"))
    assert not sink.is_due(kept, 10**9)
    assert len(kept) == 4, "folders that have no open file are forgotten"


def test_of_too_many_folders_the_file_begun_first_is_finished(tmp_path: Path) -> None:
    sink: FileSink[Any] = json_lines(tmp_path, every=None, by=str)
    kept: dict[str, int] = {}
    for begin in range(0, 300, 50):
        for body in sink.pack(records(*range(begin, begin + 50)), kept, 0, FLOW):
            deliver(sink, body)

    assert len(list(tmp_path.rglob("*.jsonl"))) == 200
    assert sorted(int(file.parent.name) for file in tmp_path.rglob("*.part")) == list(
        range(200, 300)
    )


@pytest.mark.parametrize(
    ("said", "folder"),
    [
        ("../../etc/passwd", "..%2F..%2Fetc%2Fpasswd"),
        ("/etc", "%2Fetc"),
        ("a\x00b\n", "a%00b%0A"),
        (datetime(2013, 1, 1, 12, 5, tzinfo=UTC), "2013-01-01 12:05:00+00:00"),
        (None, "None"),
    ],
)
def test_what_a_record_says_leads_nowhere_else(tmp_path: Path, said: Any, folder: str) -> None:
    sink: FileSink[Any] = json_lines(tmp_path / "out", max_records=1, by=lambda _: said)
    for body in sink.pack(records(1), {}, 0, FLOW):
        deliver(sink, body)

    (file,) = tmp_path.rglob("*.jsonl")
    assert file.parent == tmp_path / "out" / folder


@pytest.mark.parametrize("said", ["", ".", "..", (), ("a", ""), "x" * 201, ("x" * 190,) * 6])
def test_what_is_no_name_of_a_folder_is_told_with_its_record(tmp_path: Path, said: Any) -> None:
    sink: FileSink[Any] = json_lines(tmp_path, by=lambda _: said)
    with pytest.raises(
        UnserializableValueError, match=r"by= gives .* for 17, .* no name of a folder"
    ):
        sink.pack(records(17), {}, 0, FLOW)
    raising: FileSink[Any] = json_lines(tmp_path, by=lambda _: "\ud800")
    with pytest.raises(UnserializableValueError, match="by= raised over 17: UnicodeEncodeError"):
        raising.pack(records(17), {}, 0, FLOW)


def test_files_are_finished_where_folders_are_begun_or_given_up(tmp_path: Path) -> None:
    """The state is that of the code of before."""
    plain: FileSink[Any] = json_lines(tmp_path)
    sorted_: FileSink[Any] = json_lines(tmp_path, by=lambda one: f"n={one}")
    kept: dict[str, int] = {}
    for number, sink in enumerate([plain, plain, sorted_, sorted_, plain]):
        for body in sink.pack(records(number), kept, 0, FLOW):
            deliver(sink, body)

    assert {
        str(file.relative_to(tmp_path)): file.read_text().split()
        for file in tmp_path.rglob("*.jsonl")
    } == {
        "delays.hourly-abc-3-000000.jsonl": ["0", "1"],
        "n=2/delays.hourly-abc-3-000001.jsonl": ["2"],
        "n=3/delays.hourly-abc-3-000002.jsonl": ["3"],
    }
    (part,) = tmp_path.rglob("*.part")
    assert part.name == "delays.hourly-abc-3-000003.jsonl.part"


def test_record_that_is_no_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnserializableValueError, match="cannot be written"):
        json_lines(tmp_path).pack(records(object()), {}, 0, FLOW)


def test_impossible_limits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_records=0"):
        json_lines(tmp_path, max_records=0)
    with pytest.raises(ConfigError, match="above 0"):
        json_lines(tmp_path, every=0)


async def test_directory_that_cannot_be_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    nobody: Any = None
    with pytest.raises(ConfigError, match="files cannot be written to"):
        await json_lines(tmp_path / "file" / "out").open(nobody)


@dataclass
class Hour:
    origin: str
    hour: datetime
    mean: float | None


def test_parquet_files_have_a_column_for_each_field(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    sink: FileSink[Any] = parquet_files(tmp_path, max_records=3)
    kept: dict[str, int] = {}
    hours = [Hour("JFK", datetime(2013, 1, 1, n, tzinfo=UTC), n / 2 or None) for n in range(6)]
    bodies = [
        body
        for n in range(0, 6, 2)
        for body in sink.pack(records(*hours[n : n + 2]), kept, 0, FLOW)
    ]
    for body in [*bodies[:2], *bodies]:  # with a kill
        deliver(sink, body)

    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".parquet", ".parquet"]
    rows = [
        row for file in sorted(tmp_path.iterdir()) for row in parquet.read_table(file).to_pylist()
    ]
    assert [Hour(**row) for row in rows] == hours


@dataclass
class Said:
    what: Any
    n: int | None = None


def rows_of(directory: Path) -> list[list[Any]]:
    parquet = pytest.importorskip("pyarrow.parquet")
    return [
        parquet.read_table(file).to_pylist()
        for file in sorted(directory.iterdir())
        if file.suffix == ".parquet"
    ]


@pytest.mark.parametrize(
    "said",
    [
        [1, "x", 2, "y", None, 2.5],
        [[1], ["x"], [2], [], None, [3]],
        [{"a": 1}, {"a": "x"}, {"b": 2}, {}, {"a": None}, {"a": 3}],
        [True, 1, b"x", 2.5, "x", datetime(2013, 1, 1, tzinfo=UTC)],
    ],
)
def test_rows_that_do_not_go_into_one_parquet_file_are_several_and_nothing_is_missing(
    tmp_path: Path, said: list[Any]
) -> None:
    pytest.importorskip("pyarrow")
    sink: FileSink[Any] = parquet_files(tmp_path, max_records=len(said))
    values = [Said(one, number) for number, one in enumerate(said)]
    bodies = sink.pack(records(*values), {}, 0, FLOW)
    for body in [*bodies, *bodies]:  # with a kill
        deliver(sink, body)

    files = rows_of(tmp_path)
    assert len(files) > 1
    assert {file.suffix for file in tmp_path.iterdir()} == {".parquet"}
    found = sorted((row for file in files for row in file), key=lambda row: row["n"])
    assert [row["n"] for row in found] == list(range(len(said)))
    for row, one in zip(found, said, strict=True):
        assert row["what"] == one or isinstance(one, dict)


@pytest.mark.parametrize("what", [10**30, [1, "x"], {"a": [1, "x"]}])
def test_row_that_no_column_holds_is_named_before_it_is_in_a_part(
    tmp_path: Path, what: Any
) -> None:
    pytest.importorskip("pyarrow")
    sink: FileSink[Any] = parquet_files(tmp_path)
    with pytest.raises(UnserializableValueError, match=r"n=1.* cannot be a row"):
        sink.pack(records(Said(1, 0), Said(what, 1)), {}, 0, FLOW)


def test_row_that_does_not_fit_the_schema_is_named_before_it_is_in_a_part(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    schema = pyarrow.schema([("what", pyarrow.int64()), ("n", pyarrow.int64())])
    sink: FileSink[Any] = parquet_files(tmp_path, schema=schema)
    with pytest.raises(UnserializableValueError, match=r"'x'.* cannot be a row"):
        sink.pack(records(Said(1, 0), Said("x", 1)), {}, 0, FLOW)


@pytest.mark.parametrize("what", [{}, [{}], {"a": {}}])
def test_mapping_that_is_empty_in_all_rows_is_nothing_in_a_parquet_file(
    tmp_path: Path, what: Any
) -> None:
    pytest.importorskip("pyarrow")
    sink: FileSink[Any] = parquet_files(tmp_path, max_records=2)
    for body in sink.pack(records(Said(what, 1), Said(what, 2)), {}, 0, FLOW):
        deliver(sink, body)

    assert [[row["n"] for row in file] for file in rows_of(tmp_path)] == [[1, 2]]
