"""What may happen to a state file while a flow runs: told, nothing committed by halves, and gone on from when it is over."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from mycelia.errors import StateUnavailable
from mycelia.flow import Engine, FlowPlan, KeyContext, count, source, tumbling
from mycelia.flow.committed_state import committed_checkpoint, committed_state
from mycelia.flow.state_file import StateCommit, StateFile
from mycelia.logs import LogPosition

LARGE = {f"k{n}".encode(): os.urandom(1000) for n in range(2_000)}


def at(offset: int) -> dict[str, LogPosition]:
    return {"in": LogPosition(offset=offset)}


def claimed(path: Path) -> StateFile:
    state = StateFile(path, "flow")
    state.claim(1)
    return state


@contextmanager
def full_disk(bytes_left: int) -> Iterator[None]:
    """No file of this process may become larger than that. As on a full disk, a write fails in the middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_is_told_and_gone_on_from_when_there_is_room(tmp_path: Path) -> None:
    state = claimed(tmp_path / "a")
    state.commit(StateCommit({"s": {b"k": b"1"}}, at(1)))
    with full_disk(200_000), pytest.raises(StateUnavailable, match="that the disk has room"):
        state.commit(StateCommit({"s": {b"k": b"2", **LARGE}}, at(2)))
    assert state.checkpoint.positions == at(1)
    state.close()

    state = claimed(tmp_path / "a")
    assert state.checkpoint.positions == at(1)
    assert dict(state.scan("s")) == {b"k": b"1"}
    state.commit(StateCommit({"s": LARGE}, at(2)))
    assert len(state.scan("s")) == 2_001
    state.close()


def test_file_that_may_not_be_written_is_told() -> None:
    """Root may write everything: it becomes somebody else meanwhile."""
    folder = Path(tempfile.mkdtemp())  # below pytest's nobody else may look
    path = folder / "a"
    claimed(path).close()
    path.chmod(0o444)
    folder.chmod(0o555)
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.seteuid(65534)
        with pytest.raises(
            StateUnavailable, match=r"See that this process may write it and its dir"
        ):
            claimed(path)
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_damaged_file_is_told_where_it_is_read(tmp_path: Path) -> None:
    state = claimed(tmp_path / "a")
    state.commit(StateCommit({"s": LARGE}, at(1)))
    state.close()
    content = bytearray((tmp_path / "a").read_bytes())
    content[16_384:-16_384] = os.urandom(len(content) - 32_768)
    (tmp_path / "a").write_bytes(content)

    damaged = StateFile(tmp_path / "a", "flow")
    with pytest.raises(StateUnavailable, match=r"malformed\. It is damaged, or something else: mo"):
        _ = damaged.claim(1), damaged.scan("s")  # whichever reads it first
    damaged.close()


def test_file_that_its_owner_is_just_making_has_nothing_yet(tmp_path: Path) -> None:
    path = tmp_path / "0.sqlite3"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")  # what comes first; the tables are not there yet

        with committed_state(path, "flow") as state:
            assert state.read("space", [b"key"]) == [None]
            assert state.scan("space") == []
        assert committed_checkpoint(path, "flow") is None


@pytest.mark.parametrize("is_replaced", [False, True])
def test_file_that_is_removed_while_it_is_used_takes_no_further_commit(
    is_replaced: bool, tmp_path: Path
) -> None:
    """It could be written on, and would be gone with the process."""
    state = claimed(tmp_path / "a")
    state.commit(StateCommit({}, at(1)))
    (tmp_path / "a").rename(tmp_path / "b")
    if is_replaced:
        claimed(tmp_path / "a").close()
    with pytest.raises(StateUnavailable, match="it was removed, or replaced by another"):
        state.commit(StateCommit({}, at(2)))
    if not is_replaced:
        (tmp_path / "b").rename(tmp_path / "a")
        state.commit(StateCommit({}, at(2)))
    state.close()


def test_clock_that_is_set_back_changes_no_window_and_fires_no_timer_twice() -> None:
    fired: list[int] = []

    def on_record(context: KeyContext[str, list[int]], row: tuple[str, int]) -> Iterator[str]:
        context.set_wall_timer(context.now_ms + 1_000)
        yield from ()

    def on_timer(context: KeyContext[str, list[int]], name: str) -> Iterator[str]:
        fired.append(context.now_ms)
        yield from ()

    def results(clock: list[int]) -> list[object]:
        keyed = (
            source("in", tuple)
            .event_time(lambda row: row[1], unit="ms")
            .key_by(lambda row: str(row[0]))
        )
        windows = keyed.window(tumbling(0.01)).aggregate(count())
        timed = keyed.process(on_record, state=list, on_timer=on_timer)
        engine = Engine(FlowPlan({"out": windows.port, "timed": timed.port}), {"in": [0]})
        given: list[object] = []
        for number, now_ms in enumerate(clock):
            for one in engine.feed("in", 0, [("k", number * 5)], [0], now_ms=now_ms):
                given += one.values
        engine.tick(clock[-1] + 10_000)
        return given

    straight = results([10_000 + n for n in range(40)])
    assert len(fired) == 40
    fired.clear()
    back = results([10_000 + n - (9_000 if n > 20 else 0) for n in range(40)])

    assert back == straight
    assert len(fired) == 40
