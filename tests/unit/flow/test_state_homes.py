"""Where the states of flows are kept: the same is asked of files of SQLite, with a changelog and without, and of a PostgreSQL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.flows.machines import Machines

from mycelia.amqp import Message, Properties
from mycelia.errors import ConfigError, LeaseLost, StateIncompatible, StateUnavailable
from mycelia.flow.partition_state import StatePlace
from mycelia.flow.state_file import FlowCheckpoint, StateCommit
from mycelia.flow.state_home import StateHome, state_home
from mycelia.logs import LogPosition

PLACE = StatePlace("in", "group", "stage", 3)
OTHER = StatePlace("in", "group", "stage", 4)
FOREIGN = StatePlace("in", "other", "stage", 3)


@pytest.fixture(params=["sqlite", "changelog", "elsewhere", "postgresql"])
def setting(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What `mycelia.flows.state` says. With a changelog each owner has the same directory, or one of its own."""
    if request.param == "postgresql":
        uri: str = request.getfixturevalue("postgres_uri")
        return uri
    return str(tmp_path)


@pytest.fixture
def home(request: pytest.FixtureRequest, setting: str) -> Iterator[StateHome]:
    kind = request.node.callspec.params["setting"]
    made: StateHome
    with ExitStack() as stack:
        if kind in ("sqlite", "postgresql"):
            made = state_home(setting)
        else:
            uri = request.getfixturevalue("rabbit_uri")
            machines = stack.enter_context(Machines(uri, Path(setting)))
            made = machines if kind == "elsewhere" else machines.home("one")
        yield from prepared(made)


def prepared(made: StateHome) -> Iterator[StateHome]:
    made.prepare("svc.flow", "group", ["in"])
    made.prepare("svc.flow", "other", ["in"])
    yield made
    made.close()


def at(offset: int) -> dict[str, LogPosition]:
    return {"in": LogPosition(offset=offset, seen={"p": [offset, []]})}


def message(number: int) -> Message:
    properties = Properties(headers={"n": number}, delivery_mode=2, message_id=f"m{number}")
    return Message("to", "key", bytes([number, 0, 255]), properties, mandatory=True)


# --- claim, commit, outbox ------------------------------------------------------------------------


def test_what_is_committed_is_there_for_the_next_owner(home: StateHome) -> None:
    state = home.open(PLACE)
    assert state.claim(7) == []
    assert state.epoch == 7
    generation = state.checkpoint.generation
    assert state.checkpoint == FlowCheckpoint(generation=generation)
    changes = {"one": {b"a\0\xff": b"1", b"b": b"\0"}, "two": {b"a\0\xff": b"2"}}
    numbered = state.commit(StateCommit(changes, at(5), {"log/0": 9}, [message(1), message(2)]))
    state.close()

    after = home.open(PLACE)
    assert after.claim(1) == numbered == [(1, message(1)), (2, message(2))]
    assert after.epoch == 8
    assert after.checkpoint == FlowCheckpoint(
        generation=generation, positions=at(5), sequences={"log/0": 9}
    )
    assert after.read("one", [b"b", b"none", b"a\0\xff"]) == [b"\0", None, b"1"]
    assert sorted(after.scan("two")) == [(b"a\0\xff", b"2")]
    assert list(after.scan("three")) == []
    after.close()


def test_checkpoint_is_read_beside_the_owner_as_of_its_last_commit(home: StateHome) -> None:
    assert home.checkpoint(PLACE) is None
    state = home.open(PLACE)
    state.claim(1)
    state.commit(StateCommit({}, at(5)))
    first = home.checkpoint(PLACE)
    state.commit(StateCommit({}, at(9)))
    then = home.checkpoint(PLACE)
    state.close()

    assert first is not None
    assert first.positions == at(5)
    assert then is not None
    assert then.positions == at(9)


def test_changes_replace_and_remove(home: StateHome) -> None:
    state = home.open(PLACE)
    state.claim(1)
    some = {n.to_bytes(4, "big"): bytes(n % 7) for n in range(12_000)}
    state.commit(StateCommit({"s": some}, at(1)))
    changed = {key: (None if n % 3 else b"new") for n, key in enumerate(some)}
    state.commit(StateCommit({"s": changed}, at(2)))

    assert dict(state.scan("s")) == {key: one for key, one in changed.items() if one is not None}
    assert state.read("s", list(some)) == list(changed.values())
    state.close()


def test_partitions_and_flows_know_nothing_of_each_other(home: StateHome) -> None:
    states = [home.open(one) for one in (PLACE, OTHER, FOREIGN)]
    for number, state in enumerate(states):
        state.claim(number + 1)
        state.commit(
            StateCommit({"s": {b"k": bytes([number])}}, at(number), messages=[message(number)])
        )
    assert [state.read("s", [b"k"]) for state in states] == [[b"\0"], [b"\1"], [b"\2"]]
    assert len({state.checkpoint.generation for state in states}) == 3
    for state in states:
        state.close()
    (left,) = (again := home.open(OTHER)).claim(1)
    assert left == (1, message(1))
    again.close()
    assert home.flows() == ["group", "other"]


def test_outbox_goes_with_what_is_sent(home: StateHome) -> None:
    state = home.open(PLACE)
    state.claim(1)
    state.commit(StateCommit({}, at(1), messages=[message(1), message(2)]))
    state.sent(1)
    state.commit(StateCommit({}, at(2), messages=[message(3)]))
    state.close()
    state = home.open(PLACE)
    assert [number for number, _ in state.claim(1)] == [2, 3]
    state.sent(3)
    state.forget_sent()
    state.close()
    state = home.open(PLACE)
    assert state.claim(1) == []
    state.close()


def test_former_owner_writes_and_deletes_nothing(home: StateHome) -> None:
    former = home.open(PLACE)
    former.claim(3)
    former.commit(StateCommit({"s": {b"k": b"1"}}, at(1), messages=[message(1)]))
    former.sent(1)
    owner = home.open(PLACE)
    owner.claim(2)  # whatever the broker says
    assert owner.epoch == 4

    with pytest.raises(LeaseLost, match="another owner has"):
        former.commit(StateCommit({"s": {b"k": b"former"}}, at(9), messages=[message(9)]))
    former.forget_sent()
    assert owner.read("s", [b"k"]) == [b"1"]
    owner.commit(StateCommit({"s": {b"k": b"2"}}, at(2)))
    former.close()
    owner.close()

    after = home.open(PLACE)
    assert after.claim(1) == [(1, message(1))]
    assert after.checkpoint.positions == at(2)
    after.close()


def test_commit_that_fails_leaves_nothing(home: StateHome) -> None:
    state = home.open(PLACE)
    state.claim(1)
    state.commit(StateCommit({"s": {b"k": b"1"}}, at(1), messages=[message(1)]))
    wrong: Any = {"s": {b"k": b"2"}, "t": {b"k": object()}}
    with pytest.raises(Exception):  # noqa: B017, PT011  of its driver, whatever it is
        state.commit(StateCommit(wrong, at(2), messages=[message(2)]))
    assert state.checkpoint.positions == at(1)
    assert state.read("s", [b"k"]) == [b"1"]
    state.commit(StateCommit({"s": {b"k": b"3"}}, at(3), messages=[message(3)]))
    state.close()

    after = home.open(PLACE)
    assert [one for _, one in after.claim(1)] == [message(1), message(3)]
    assert after.read("s", [b"k"]) == [b"3"]
    after.close()


def test_readers_beside_the_owner_see_whole_commits(home: StateHome) -> None:
    with home.reading(PLACE) as reader:
        assert reader.read("s", [b"a"]) == [None]
        assert list(reader.scan("s")) == []
    state = home.open(PLACE)
    state.claim(1)
    state.commit(StateCommit({"s": {b"a": b"1", b"b": b"1"}}, at(1)))
    with home.reading(PLACE) as reader:
        assert reader.read("s", [b"a"]) == [b"1"]
        state.commit(StateCommit({"s": {b"a": b"2", b"b": b"2"}}, at(2)))
        assert sorted(reader.scan("s")) == [(b"a", b"1"), (b"b", b"1")]
    with home.reading(PLACE) as reader:
        assert reader.read("s", [b"b"]) == [b"2"]
    state.close()


def test_state_of_a_stage_that_is_gone_is_refused(home: StateHome) -> None:
    state = home.open(PLACE)
    state.claim(1)
    state.close()
    home.prepare("svc.flow", "group", ["in", "more"])
    with pytest.raises(ConfigError, match=r"svc\.flow: in .* is state of this flow in .*in"):
        home.prepare("svc.flow", "group", ["more"])


# --- killed and stopped in the middle ---------------------------------------------------------------

OWNER = """
import os, signal, sys

from mycelia.flow.partition_state import StatePlace
from mycelia.flow.state_file import StateCommit
from mycelia.flow.state_home import state_home
from mycelia.logs import LogPosition

setting, how = sys.argv[1], int(sys.argv[2])
if setting.startswith("postgresql"):
    from mycelia.flow import state_database

    state_database.IDLE_TIMEOUT = 1.0
state = state_home(setting).open(StatePlace("in", "group", "stage", 3))
state.claim(1)
state.commit(StateCommit({"s": {b"k": b"1"}}, {"in": LogPosition(offset=1)}))


def stops():
    print("open", flush=True)
    os.kill(os.getpid(), how)


class Between(dict):
    def items(self):
        yield "s", {b"k": b"2"}
        if not setting.startswith("postgresql"):
            stops()
        yield "t", {b"k": b"2"}


if setting.startswith("postgresql"):
    import psycopg

    sync = psycopg.Pipeline.sync

    def synced(self):  # all is written then, and the row is locked
        sync(self)
        stops()

    psycopg.Pipeline.sync = synced

try:
    state.commit(StateCommit(Between(), {"in": LogPosition(offset=2)}))
    print("committed", flush=True)
except Exception as exc:
    print(type(exc).__name__, exc, flush=True)
"""
"""Its second commit is in the middle of its transaction when a signal comes."""


def owner(setting: str, how: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, setting, str(int(how))],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.parametrize("setting", ["sqlite", "postgresql"], indirect=True)
def test_owner_killed_in_the_middle_of_a_commit_has_committed_nothing(
    home: StateHome, setting: str
) -> None:
    with owner(setting, signal.SIGKILL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        process.wait(20)

    state = home.open(PLACE)
    state.claim(1)
    assert state.checkpoint.positions == {"in": LogPosition(offset=1)}
    assert state.read("s", [b"k"]) == [b"1"]
    assert state.read("t", [b"k"]) == [None]
    state.close()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("setting", ["postgresql"], indirect=True)
def test_stopped_owner_does_not_hold_up_the_next_one_for_ever(
    home: StateHome, setting: str
) -> None:
    """The server ends its transaction; when it wakes up it has committed nothing, and is told."""
    with owner(setting, signal.SIGSTOP) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        state = home.open(PLACE)
        state.claim(1)
        assert state.epoch == 2
        state.commit(StateCommit({"s": {b"k": b"3"}}, at(3)))
        process.send_signal(signal.SIGCONT)
        told = process.stdout.readline()

    assert told.startswith("StateUnavailable")
    assert state.read("s", [b"k"]) == [b"3"]
    assert state.read("t", [b"k"]) == [None]
    state.close()


# --- a PostgreSQL that is away, or refuses -----------------------------------------------------------


@pytest.mark.timeout(60)
def test_database_that_was_away_goes_on_with_what_was_committed(own_postgres: Any) -> None:
    from tests.postgres import fresh_database

    with fresh_database(own_postgres) as uri:
        home = state_home(uri)
        state = home.open(PLACE)
        state.claim(1)
        state.commit(StateCommit({"s": {b"k": b"1"}}, at(1), messages=[message(1)]))
        own_postgres.kill()
        with pytest.raises(StateUnavailable, match=r"See that PostgreSQL runs at 127\.0\.0\.1"):
            state.commit(StateCommit({"s": {b"k": b"2"}}, at(2), messages=[message(2)]))
        with pytest.raises(StateUnavailable, match="can be reached from here; it is tried again"):
            home.open(PLACE).claim(1)
        with pytest.raises(StateUnavailable):
            home.prepare("svc.flow", "group", ["in"])

        own_postgres.start()
        state = home.open(PLACE)
        assert state.claim(1) == [(1, message(1))]
        assert state.checkpoint.positions == at(1)
        state.commit(StateCommit({"s": {b"k": b"2"}}, at(2), messages=[message(2)]))
        home.close()


def test_connections_are_bounded_whatever_runs_at_once(postgres_uri: str) -> None:
    import psycopg

    home = state_home(postgres_uri)
    home.prepare("svc.flow", "group", ["in"])
    errors: list[Exception] = []

    def work(partition: int) -> None:
        try:
            state = home.open(StatePlace("in", "group", "stage", partition))
            state.claim(1)
            for offset in range(10):
                state.commit(StateCommit({"s": {b"k": b"1"}}, at(offset)))
        except Exception as exc:  # noqa: BLE001  shown below
            errors.append(exc)

    threads = [threading.Thread(target=work, args=[number]) for number in range(16)]
    most = 0
    with psycopg.connect(postgres_uri, autocommit=True) as db:
        for one in threads:
            one.start()
        while any(one.is_alive() for one in threads):
            row = db.execute(
                "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database()"
            ).fetchone()
            assert row is not None
            most = max(most, row[0] - 1)
    home.close()

    assert not errors
    assert 1 <= most <= 4


def test_database_that_is_not_there_stops_the_start_and_is_named(postgres_uri: str) -> None:
    wrong = postgres_uri.rpartition("/")[0] + "/none"
    with pytest.raises(ConfigError, match=r"/none cannot be used: .*does not exist.*Create it, or"):
        state_home(wrong).prepare("svc.flow", "group", ["in"])


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hunter2@[half/db",
        "postgresql://user:hunter2@host:port/db",
        "postgresql://user:hunter2@host/db?nonsense=1",
    ],
)
def test_url_that_cannot_be_read_is_told_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as told:
        state_home(url).prepare("svc.flow", "group", ["in"])
    assert "hunter2" not in str(told.value)
    assert "mycelia.flows.state" in str(told.value)
    assert told.value.__cause__ is None or "hunter2" not in str(told.value.__cause__)


def test_password_is_in_no_error(postgres_uri: str) -> None:
    host = postgres_uri.partition("@")[2].rpartition("/")[0]
    home = state_home(f"postgresql://nobody:hunter2@{host}/none")
    assert "hunter2" not in home.where + repr(home)
    with pytest.raises(ConfigError) as told:
        home.prepare("svc.flow", "group", ["in"])
    assert host in str(told.value)
    assert "hunter2" not in str(told.value) + str(told.value.__cause__)


def test_tables_of_a_later_version_are_refused(postgres_uri: str) -> None:
    import psycopg

    home = state_home(postgres_uri)
    home.prepare("svc.flow", "group", ["in"])
    with psycopg.connect(postgres_uri) as db:
        db.execute("UPDATE mycelia_flows.format SET version = 9")
    with pytest.raises(StateIncompatible, match="have format 9"):
        home.open(PLACE).claim(1)
    home.close()


def test_processes_that_come_at_once_make_the_tables_once(postgres_uri: str) -> None:
    errors: list[Exception] = []

    def prepare() -> None:
        home = state_home(postgres_uri)
        try:
            home.prepare("svc.flow", "group", ["in"])
        except Exception as exc:  # noqa: BLE001  shown below
            errors.append(exc)
        finally:
            home.close()

    threads = [threading.Thread(target=prepare) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()

    assert not errors


@pytest.mark.parametrize(
    ("group", "other"), [("b", "a--b"), ("b", "-b"), ("a--b", "b"), ("b-", "b"), ("x-b", "b")]
)
def test_groups_whose_names_end_alike_are_told_apart(
    group: str, other: str, tmp_path: Path
) -> None:
    home = state_home(str(tmp_path))
    for one, source in ((group, "in"), (other, "elsewhere-")):
        home.prepare("svc.flow", one, [source])
        home.open(StatePlace(source, one, "stage", 1)).close()

    home.prepare("svc.flow", group, ["in"])

    assert home.kept(group) == [("in", 1)]
    assert home.flows() == sorted({group, other})
    assert home.kept(other) == [("elsewhere-", 1)]
