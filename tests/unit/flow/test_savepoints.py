"""Savepoints: copies of what partitions have come to, from a directory or a PostgreSQL, into either."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mycelia.amqp import Message, Properties
from mycelia.errors import ConfigError, LeaseLost, RuntimeStateError, StateUnavailable
from mycelia.flow.partition_state import StatePlace
from mycelia.flow.savepoints import list_savepoints, read_savepoint, take_savepoint
from mycelia.flow.state_directory import StateDirectory
from mycelia.flow.state_file import FlowCheckpoint, SavedState, StateCommit
from mycelia.flow.state_home import StateHome, state_home
from mycelia.logs import LogPosition

GROUP = "delays.hourly"
SOURCE = "flights/departed--x"  # a name that is escaped


def place(partition: int) -> StatePlace:
    return StatePlace(SOURCE, GROUP, GROUP, partition)


def at(offset: int) -> dict[str, LogPosition]:
    return {SOURCE: LogPosition(offset=offset)}


@pytest.fixture(params=["sqlite", "postgresql"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateHome]:
    is_file = request.param == "sqlite"
    made = state_home(str(tmp_path / "a") if is_file else request.getfixturevalue("postgres_uri"))
    made.prepare("svc.flow", GROUP, [SOURCE])
    yield made
    made.close()


@pytest.fixture
def other(home: StateHome, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateHome]:
    """Of the other kind."""
    made = state_home(
        str(tmp_path / "b") if home.is_shared else request.getfixturevalue("postgres_uri")
    )
    made.prepare("svc.flow", GROUP, [SOURCE])
    yield made
    made.close()


def test_copies_are_of_one_commit_each_while_the_flow_runs(home: StateHome, tmp_path: Path) -> None:
    stop = threading.Event()
    offsets = [0, 0]

    def work(partition: int) -> None:
        """Each commit writes its offset into many keys."""
        state = home.open(place(partition))
        state.claim(1)
        while not stop.is_set():
            offset = offsets[partition] + 1
            value = str(offset).encode()
            keys = {f"k{n}".encode(): value for n in range(300)}
            state.commit(
                StateCommit(
                    {"s": keys},
                    at(offset),
                    messages=[Message("x", value.decode(), value, Properties())],
                )
            )
            state.sent(10**9)
            offsets[partition] = offset
        state.close()

    threads = [threading.Thread(target=work, args=[number]) for number in range(2)]
    for one in threads:
        one.start()
    try:
        while min(offsets) < 3:
            stop.wait(0.01)
        taken = [take_savepoint(home, GROUP, tmp_path / "saved" / str(n)) for n in range(4)]
    finally:
        stop.set()
        for one in threads:
            one.join()

    assert [one.partition for one in taken[0].partitions] == [0, 1]
    for n, savepoint in enumerate(taken):
        for one in savepoint.partitions:
            state = SavedState(tmp_path / "saved" / str(n) / one.file)
            offset = state.checkpoint.positions[SOURCE].offset
            assert one.offsets == {SOURCE: offset}
            assert {value for _, _, value in state.state()} == {str(offset).encode()}
            assert len(list(state.state())) == 300
            assert len(list(state.outbox())) == 1
            state.close()


def test_savepoint_goes_into_a_home_of_the_other_kind(
    home: StateHome, other: StateHome, tmp_path: Path
) -> None:
    state = home.open(place(2))
    state.claim(5)
    some = {n.to_bytes(4, "big"): bytes([n % 256, 0, 9]) for n in range(11_000)}
    numbered = state.commit(
        StateCommit(
            {"s": some, "t": {b"": b""}}, at(7), {"l/0": 3}, [Message("x", "y", b"z", Properties())]
        )
    )
    state.close()
    savepoint = take_savepoint(home, GROUP, tmp_path / "saved")
    former = other.open(place(2))
    former.claim(1)
    former.commit(StateCommit({"old": {b"k": b"v"}}, at(99)))

    target = other.open(place(2))
    saved = SavedState(tmp_path / "saved" / savepoint.partitions[0].file)
    anew = FlowCheckpoint(generation="anew", positions=saved.checkpoint.positions)
    target.begin_anew(anew, saved.state(), saved.outbox())
    saved.close()
    target.close()

    with pytest.raises(LeaseLost):
        former.commit(StateCommit({}, at(100)))
    former.close()
    after = other.open(place(2))
    assert after.claim(1) == numbered
    assert after.checkpoint == anew
    assert after.checkpoint.positions == at(7)
    assert dict(after.scan("s")) == some
    assert list(after.scan("t")) == [(b"", b"")]
    assert list(after.scan("old")) == []
    after.close()


def test_savepoints_are_listed_and_what_is_none_is_told(home: StateHome, tmp_path: Path) -> None:
    with pytest.raises(RuntimeStateError, match=r'flow "delays\.hourly" has no state in '):
        take_savepoint(home, GROUP, tmp_path / "saved" / "early")
    state = home.open(place(0))
    state.claim(1)
    state.commit(StateCommit({}, at(4)))
    state.close()
    taken = take_savepoint(home, GROUP, tmp_path / "saved" / "one")
    with pytest.raises(RuntimeStateError, match=r'another\. Did you mean "delays\.hourly"\?'):
        take_savepoint(home, "delays.hourely", tmp_path / "saved" / "misspelt")
    with pytest.raises(RuntimeStateError, match=r"There is that of: delays\.hourly\."):
        take_savepoint(home, "xyz", tmp_path / "saved" / "other")
    with pytest.raises(ConfigError, match="cannot be made: File exists"):
        take_savepoint(home, GROUP, tmp_path / "saved" / "one")
    take_savepoint(home, GROUP, tmp_path / "saved" / "two")
    (tmp_path / "saved" / "two" / taken.partitions[0].file).unlink()

    assert list(list_savepoints(tmp_path / "saved")) == [(tmp_path / "saved" / "one", taken)]
    assert taken.partitions[0].offsets == {SOURCE: 4}
    with pytest.raises(ConfigError, match="two is not whole"):
        read_savepoint(tmp_path / "saved" / "two")
    with pytest.raises(ConfigError, match="is no savepoint"):
        read_savepoint(tmp_path)


def test_savepoint_that_cannot_be_taken_leaves_nothing(tmp_path: Path) -> None:
    home = StateDirectory(tmp_path / "a")
    home.prepare("svc.flow", GROUP, [SOURCE])
    state = home.open(place(0))
    state.claim(1)
    state.close()
    home.path_of(place(1)).write_text("no database" * 1000)
    with pytest.raises(StateUnavailable, match="not a database"):
        take_savepoint(home, GROUP, tmp_path / "saved" / "one")
    assert list((tmp_path / "saved").iterdir()) == []
