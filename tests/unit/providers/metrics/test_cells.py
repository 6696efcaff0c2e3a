"""Cells: counted in by one process, read by another, kept when it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.providers.metrics import cells as cells_module
from mycelia.providers.metrics.cells import Cells, CellsFull, Reading, Series, read_cells
from mycelia.providers.metrics.exposition import exposition, merge


def values(readings: list[Reading]) -> dict[str, tuple[float, ...]]:
    return {reading.series.name: reading.values for reading in readings}


def test_series_is_made_once_and_has_cells_of_its_own() -> None:
    cells = Cells()
    calls = cells.series("calls", {"a": "1", "b": "2"}, "counter")
    times = cells.series("times", {}, "histogram", (1.0, 2.0))

    assert cells.series("calls", {"b": "2", "a": "1"}, "counter") is calls
    assert (calls.at, calls.size, times.at, times.size) == (0, 1, 1, 4)
    cells.values[times.at + 2] += 1
    assert values(cells.read()) == {"calls": (0.0,), "times": (0.0, 0.0, 1.0, 0.0)}


def test_full_cells_take_no_more_series_and_count_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells_module, "CAPACITY", 2)
    cells = Cells()
    cells.series("one", {}, "counter")
    with pytest.raises(CellsFull):
        cells.series("two", {}, "histogram", (1.0,))

    cells.values[cells.series("one", {}, "counter").at] += 1
    assert values(cells.read()) == {"one": (1.0,)}


def test_killed_process_s_counts_are_read_and_counted_on(tmp_path: Path) -> None:
    path = tmp_path / "1"
    program = (
        "import os, sys; from pathlib import Path; from mycelia.providers.metrics.cells import Cells\n"
        "cells = Cells(Path(sys.argv[1])); at = cells.series('calls', {}, 'counter').at\n"
        "gauge = cells.series('level', {}, 'sum').at; cells.values[gauge] = 5\n"
        "for _ in range(1000): cells.values[at] += 1\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    with path.with_suffix(".series").open("ab") as lines:
        lines.write(b'{"name": "half a li')  # killed while it wrote

    assert values(read_cells(path)) == {"calls": (1000.0,), "level": (5.0,)}
    again = Cells(path)
    again.forget_gauges()
    again.values[again.series("calls", {}, "counter").at] += 1
    assert again.series("other", {}, "counter").at == 2
    assert values(read_cells(path)) == {"calls": (1001.0,), "level": (0.0,), "other": (0.0,)}
    assert path.with_suffix(".cells").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("suffix", [".series", ".cells"])
def test_half_of_the_files_is_no_reading(tmp_path: Path, suffix: str) -> None:
    cells = Cells(tmp_path / "1")
    cells.series("calls", {}, "counter")
    (tmp_path / "1").with_suffix(suffix).unlink()

    assert read_cells(tmp_path / "1") == []


def test_no_space_is_an_error_before_anything_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)

    with pytest.raises(OSError, match="No space"):
        Cells(tmp_path / "1")


def reading(name: str, kind: str, numbers: list[float], **labels: str) -> Reading:
    bounds = (1.0,) if kind == "histogram" else ()
    return Reading(Series(name, labels, kind, 0, len(numbers), bounds), tuple(numbers))


@given(
    st.lists(
        st.tuples(st.booleans(), st.lists(st.integers(0, 9), min_size=6, max_size=6)), max_size=6
    )
)
def test_processes_add_up(processes: list[tuple[bool, list[int]]]) -> None:
    merged = {
        series.name: series.values
        for series in merge(
            (
                is_alive,
                [
                    reading("calls", "counter", [n[0]]),
                    reading("times", "histogram", [n[1], n[2], n[3]]),
                    reading("level", "sum", [n[4]]),
                    reading("queue", "max", [n[5]]),
                ],
            )
            for is_alive, n in processes
        )
    }
    alive = [n for is_alive, n in processes if is_alive]

    if processes:
        assert merged["calls"] == [sum(n[0] for _, n in processes)]
        assert merged["times"] == [sum(n[i] for _, n in processes) for i in (1, 2, 3)]
    assert merged.get("level", [0]) == [sum(n[4] for n in alive)]
    assert merged.get("queue", [0]) == [max((n[5] for n in alive), default=0)]


def test_other_buckets_of_a_configuration_before_are_left_out() -> None:
    new = Reading(Series("times", {}, "histogram", 0, 4, (1.0, 2.0)), (1.0, 0.0, 0.0, 0.5))
    old = Reading(Series("times", {}, "histogram", 0, 3, (1.0,)), (1.0, 0.0, 0.5))

    (merged,) = merge([(True, [new]), (True, [old])])

    assert merged.values == [1.0, 0.0, 0.0, 0.5]


def test_labels_with_whatever_in_them_are_written_so_that_they_can_be_read() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    nasty = 'a"b\\c\nd{é}'
    _, text = exposition(merge([(True, [reading("calls", "counter", [3.0], method=nasty)])]), "")
    samples = [s for f in text_string_to_metric_families(text.decode()) for s in f.samples]

    assert next(s.labels for s in samples if s.name == "calls_total") == {"method": nasty}
