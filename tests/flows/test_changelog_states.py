"""A partition's state with a changelog, on machines that have nothing but the broker in common."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from tests.flows.machines import Machines

from mycelia.amqp import Link, Message, Properties
from mycelia.broker import PrivateNode
from mycelia.errors import BrokerUnavailable, LeaseLost, StateUnavailable
from mycelia.flow import changelog_format, changelog_stream, logged_state
from mycelia.flow.changelog_format import ChangeHead
from mycelia.flow.changelog_replay import ChangelogReplay
from mycelia.flow.changelog_stream import LoggedEntry
from mycelia.flow.logged_state import LoggedState
from mycelia.flow.partition_state import StatePlace
from mycelia.flow.state_directory import StateDirectory
from mycelia.flow.state_file import StateCommit
from mycelia.logs import LogPosition

PLACE = StatePlace("in", "group", "stage", 0)


@pytest.fixture
def machines(rabbit_uri: str, tmp_path: Path) -> Iterator[Machines]:
    with Machines(rabbit_uri, tmp_path) as made:
        made.prepare("svc.flow", "group", ["in"])
        yield made


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots every few commits, and messages of a hundred bytes."""
    monkeypatch.setattr(logged_state, "SNAPSHOT_AFTER", 2_000)
    monkeypatch.setattr(changelog_format, "PIECE_BYTES", 100)
    monkeypatch.setattr("mycelia.flow.logged_file.PIECE_BYTES", 100)
    monkeypatch.setattr(logged_state, "PIECE_BYTES", 100)


def at(offset: int) -> dict[str, LogPosition]:
    return {"in": LogPosition(offset=offset)}


def message(number: int) -> Message:
    return Message("to", "key", bytes([number % 256]), Properties(message_id=f"m{number}"))


def on(machines: Machines, name: str, place: StatePlace = PLACE) -> LoggedState:
    return machines.home(name).open(place)


def claimed(machines: Machines, name: str, place: StatePlace = PLACE, *, epoch: int) -> LoggedState:
    state = on(machines, name, place)
    state.claim(epoch)
    return state


def found_by(machines: Machines, name: str, *, epoch: int) -> dict[bytes, bytes]:
    """The state that this machine finds when it is the next owner."""
    state = claimed(machines, name, epoch=epoch)
    found = dict(state.scan("s"))
    state.close()
    return found


def put(state: LoggedState, key: bytes, value: bytes, offset: int, *messages: Message) -> None:
    state.commit(StateCommit({"s": {key: value}}, at(offset), messages=messages))


def entries_of(machines: Machines) -> list[LoggedEntry]:
    """All that is in the log."""
    stream = machines.stream(PLACE)

    async def read() -> list[LoggedEntry]:
        end = (await stream.look()).offset
        found: list[LoggedEntry] = []
        async with stream.reading("first") as reader:
            while not found or found[-1].offset < end:
                found += await reader.take()
        return [one for one in found if one.head is None or one.head.kind != "look"]

    return machines.run(read())


def kinds_of(machines: Machines) -> list[str]:
    return [one.head.kind for one in entries_of(machines) if one.head is not None]


# --- what is read ------------------------------------------------------------------------------------


def test_file_that_is_nearly_new_reads_only_what_is_missing(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = claimed(machines, "one", epoch=1)
    for number in range(50):
        put(one, b"k", b"%d" % number, number)
    one.close()
    other = claimed(machines, "other", epoch=2)
    put(other, b"k", b"other", 50)
    other.close()

    followed: list[str] = []
    read = ChangelogReplay.read

    def counted(self: ChangelogReplay, entry: LoggedEntry) -> Any:
        change = read(self, entry)
        if change is not None:
            followed.append(change.head.kind)
        return change

    monkeypatch.setattr(ChangelogReplay, "read", counted)
    again = claimed(machines, "one", epoch=3)
    assert followed == ["claim", "commit", "claim"]
    assert again.read("s", [b"k"]) == [b"other"]
    again.close()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "seed", [1, pytest.param(2, marks=pytest.mark.long), pytest.param(3, marks=pytest.mark.long)]
)
def test_state_is_what_it_is_in_one_place_whoever_owns_it(machines: Machines, seed: int) -> None:
    """Machines take the partition in turn, with what they have of it, or after their directory is gone; some leave without a word."""
    chance = Random(seed)
    model: dict[bytes, bytes] = {}
    outbox: dict[int, Message] = {}
    offset = 0
    for turn in range(12):
        name = f"machine-{chance.randrange(3)}"
        if chance.random() < 0.3:
            shutil.rmtree(machines.path / name, ignore_errors=True)
        state = on(machines, name)
        assert dict(state.claim(turn)) == outbox
        assert dict(state.scan("s")) == model
        assert sum(one.offset for one in state.checkpoint.positions.values()) == offset
        for _ in range(chance.randrange(25)):
            offset += 1
            changes: dict[bytes, bytes | None] = {
                b"%d" % chance.randrange(40): chance.randbytes(chance.randrange(150))
                if chance.random() < 0.8
                else None
                for _ in range(chance.randrange(4))
            }
            numbered = state.commit(
                StateCommit({"s": changes}, at(offset), messages=[message(offset)])
            )
            for key, value in changes.items():
                if value is None:
                    model.pop(key, None)
                else:
                    model[key] = value
            outbox |= dict(numbered)
            if chance.random() < 0.7:
                state.sent(numbered[-1][0] - 1)
                told = numbered[-1][0] - 1
            else:
                told = 0
            if told:
                # gone with the next commit, or when it is said
                state.forget_sent()
                outbox = {n: one for n, one in outbox.items() if n > told}
        state.close()
    kinds = kinds_of(machines)
    assert kinds.count("end") > 2
    assert any(one.head is not None and one.head.pieces > 1 for one in entries_of(machines))


@pytest.mark.usefixtures("small")
def test_snapshot_bounds_what_a_new_machine_reads(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where somebody has looked at the log before, and the broker had not counted what is in it."""

    async def not_counted_yet(queue: str, timeout: float = 5.0) -> int:
        return 0

    monkeypatch.setattr(machines.link, "message_count", not_counted_yet)
    one = claimed(machines, "one", epoch=1)
    for number in range(300):
        put(one, b"%d" % (number % 10), b"x" * 90, number)
    every = len(entries_of(machines))

    seen: set[int] = set()
    read = changelog_stream.ChangelogReader.take

    async def counted(self: Any, *timeout: float) -> list[LoggedEntry]:
        entries = await read(self, *timeout)
        seen.update(entry.offset for entry in entries)
        return entries

    monkeypatch.setattr(changelog_stream.ChangelogReader, "take", counted)
    other = claimed(machines, "other", epoch=2)
    assert len(dict(other.scan("s"))) == 10
    assert len(seen) < every / 4
    for state in (one, other):
        state.close()


@pytest.mark.usefixtures("small")
def test_commits_beside_a_snapshot_are_not_in_it_and_not_lost(machines: Machines) -> None:
    """Keys change and go while the snapshot of before is on its way."""
    one = claimed(machines, "one", epoch=1)
    one.commit(StateCommit({"s": {b"%d" % n: b"old" * 20 for n in range(60)}}, at(1)))
    number = 1
    while one._snapshot is None:
        number += 1
        put(one, b"0", b"%d" % number, number)
    begun = number
    while one._snapshot is not None:
        number += 1
        one.commit(
            StateCommit({"s": {b"%d" % (number % 60): None, b"new": b"%d" % number}}, at(number))
        )
    put(one, b"last", b"1", number + 1)
    assert number > begun + 3
    other = claimed(machines, "other", epoch=2)
    assert dict(other.scan("s")) == dict(one.scan("s"))
    for state in (one, other):
        state.close()


@pytest.mark.usefixtures("small")
def test_snapshot_that_was_cut_is_passed_over(machines: Machines) -> None:
    one = claimed(machines, "one", epoch=1)
    one.commit(StateCommit({"s": {b"%d" % n: b"v" * 90 for n in range(60)}}, at(1)))
    while one._snapshot is None:
        put(one, b"k", b"1", 2)
    kinds = kinds_of(machines)
    assert "state" in kinds
    assert "end" not in kinds
    one._reader = None  # it is killed
    for number in range(3, 6):
        other = claimed(machines, f"after-{number}", epoch=number)
        assert len(dict(other.scan("s"))) == 61
        put(other, b"k", b"2", number)
        other.close()


# --- the fence ---------------------------------------------------------------------------------------


def test_former_owner_that_wakes_up_is_followed_by_nobody(machines: Machines) -> None:
    former = claimed(machines, "one", epoch=1)
    put(former, b"k", b"1", 1)
    owner = claimed(machines, "other", epoch=2)
    with pytest.raises(LeaseLost, match="another owner has come before"):
        put(former, b"k", b"late", 2, message(2))
    with pytest.raises(LeaseLost, match="not known what became"):
        put(former, b"k", b"later", 3)
    put(owner, b"k", b"2", 2)
    former.close()
    owner.close()

    for name in ("one", "third"):
        after = on(machines, name)
        assert after.claim(1) == []
        assert after.read("s", [b"k"]) == [b"2"]
        after.close()


def test_commit_that_was_written_but_not_seen_is_the_next_owners(machines: Machines) -> None:
    """Killed between the log and its file: results of the commit had not left, and the next owner sends them."""
    one = claimed(machines, "one", epoch=1)
    put(one, b"k", b"1", 1)
    one._file.close()
    with suppress(Exception):
        put(one, b"k", b"2", 2, message(2))
    one.close()

    other = on(machines, "other")
    assert other.claim(2) == [(1, message(2))]
    assert other.read("s", [b"k"]) == [b"2"]
    assert other.checkpoint.positions == at(2)
    other.close()


def test_commit_that_lands_before_the_claim_counts(machines: Machines) -> None:
    """The next owner has read to the end when it comes."""
    one, other = on(machines, "one"), on(machines, "other")
    one.claim(1)
    put(one, b"k", b"1", 1)
    claim_log = other._claim_log

    def late(epoch: int) -> Any:
        put(one, b"k", b"2", 2)
        return claim_log(epoch)

    other._claim_log = late  # type: ignore[method-assign]
    other.claim(2)
    assert other.read("s", [b"k"]) == [b"2"]
    with pytest.raises(LeaseLost):
        put(one, b"k", b"3", 3)
    for state in (one, other):
        state.close()


def test_of_two_claims_of_one_epoch_the_first_counts(machines: Machines) -> None:
    one, other = on(machines, "one"), on(machines, "other")
    claim_log = other._claim_log

    def after_the_other(epoch: int) -> Any:
        one.claim(5)
        return claim_log(epoch)

    other._claim_log = after_the_other  # type: ignore[method-assign]
    with pytest.raises(LeaseLost):
        other.claim(5)
    put(one, b"k", b"1", 1)
    for state in (one, other):
        state.close()


def test_owner_that_slept_before_its_file_writes_nothing_to_it(machines: Machines) -> None:
    """Two processes of one machine; the commit is in the log, and the next owner has written it."""
    former = claimed(machines, "one", epoch=1)
    owner = on(machines, "one")
    follow = former._file.follow

    def slept(*what: Any) -> None:
        owner.claim(2)
        put(owner, b"k", b"2", 2)
        follow(*what)

    former._file.follow = slept  # type: ignore[method-assign]
    with pytest.raises(LeaseLost, match="has the state file"):
        put(former, b"k", b"1", 1, message(1))
    assert owner.read("s", [b"k"]) == [b"2"]
    for state in (former, owner):
        state.close()
    assert found_by(machines, "one", epoch=3) == {b"k": b"2"}


def test_file_does_not_become_the_log_where_another_has_just_begun_it(machines: Machines) -> None:
    plain = StateDirectory(machines.path / "one")
    plain.prepare("svc.flow", "group", ["in"])
    state = plain.open(PLACE)
    state.claim(1)
    state.commit(StateCommit({"s": {b"k": b"file"}}, at(1)))
    state.close()
    one, other = on(machines, "one"), on(machines, "other")
    claim_log = one._claim_log

    def late(epoch: int) -> Any:
        other.claim(1)
        put(other, b"k", b"log", 2)
        return claim_log(epoch)

    one._claim_log = late  # type: ignore[method-assign]
    with pytest.raises(LeaseLost):
        one.claim(2)
    for each in (one, other):
        each.close()
    assert found_by(machines, "third", epoch=3) == {b"k": b"log"}


class Repeating:
    """A link that has lost its confirms: what it publishes it publishes again, now and with the next."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._before: Message | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    async def publish(self, message: Message, *, timeout: float = 30.0) -> None:
        for one in (self._before, message, message):
            if one is not None:
                await self._link.publish(one, timeout=timeout)
        self._before = message


@pytest.mark.usefixtures("small")
def test_entries_that_come_again_count_once(machines: Machines) -> None:
    link: Any = Repeating(machines.link)
    one = machines.home("one", link).open(PLACE)
    one.claim(1)
    for number in range(40):
        put(one, b"%d" % (number % 20), b"%d" % number * 60, number, message(number))
        one.sent(number + 1)
    wanted = dict(one.scan("s"))
    one.close()
    other = on(machines, "other")
    assert [one for _, one in other.claim(2)] == [message(39)]
    assert dict(other.scan("s")) == wanted
    assert "end" in kinds_of(machines)
    other.close()


def test_late_repetition_of_a_former_owners_entry_changes_nothing(machines: Machines) -> None:
    one = claimed(machines, "one", epoch=1)
    put(one, b"k", b"1", 1)
    every = entries_of(machines)
    one.close()
    other = claimed(machines, "other", epoch=2)
    put(other, b"k", b"2", 2)
    stream = machines.stream(PLACE)
    for entry in every:
        assert entry.head is not None
        machines.run(stream.append(entry.head, entry.body))
    put(other, b"j", b"3", 3)
    third = claimed(machines, "third", epoch=3)
    assert dict(third.scan("s")) == {b"k": b"2", b"j": b"3"}
    for state in (other, third):
        state.close()


# --- what is damaged, and the ways out ---------------------------------------------------------------


def test_message_of_somebody_else_is_passed_over(
    machines: Machines, caplog: pytest.LogCaptureFixture
) -> None:
    one = claimed(machines, "one", epoch=1)
    stream = machines.stream(PLACE)
    for headers in (None, {"kind": "commit"}, {"kind": 3, "claim": "x"}):
        strange = Message("", stream.name, b"?", Properties(headers=headers))
        machines.run(machines.link.publish(strange))
    put(one, b"k", b"1", 1)
    one.close()
    other = claimed(machines, "other", epoch=2)
    assert other.read("s", [b"k"]) == [b"1"]
    assert caplog.text.count("flow_changelog_entry_unreadable") >= 3
    other.close()


def damage(machines: Machines, state: LoggedState) -> None:
    """A commit of its owner's that never was."""
    put(state, b"k", b"1", 1)
    head = ChangeHead(kind="commit", claim=state._claim, epoch=state.epoch, number=9)
    machines.run(machines.stream(PLACE).append(head, b""))
    state.close()


def test_missing_commit_is_told_with_the_ways_out_and_a_reset_is_one(machines: Machines) -> None:
    one = claimed(machines, "one", epoch=1)
    damage(machines, one)
    for name in ("one", "other"):
        state = on(machines, name)
        with pytest.raises(StateUnavailable, match=r"commit 9 comes behind commit 1.*reset"):
            state.claim(2)
        state.close()

    state = on(machines, "third")
    anew = msgspec.structs.replace(one.checkpoint, generation="anew", positions=at(0))
    state.begin_anew(anew, [("s", b"k", b"anew")], [])
    state.close()
    for name in ("one", "other", "fourth"):
        state = claimed(machines, name, epoch=1)
        assert dict(state.scan("s")) == {b"k": b"anew"}
        assert state.checkpoint == anew
        put(state, b"k", b"anew", 0)
        state.close()


def test_stream_that_was_deleted_is_made_anew_from_the_file(machines: Machines) -> None:
    one = claimed(machines, "one", epoch=1)
    put(one, b"k", b"1", 1, message(1))
    one.close()
    machines.run(machines.link.delete_queue(machines.stream(PLACE).name))

    late = on(
        machines, "late", PLACE._replace(told=1)
    )  # has no state, and the group has come further
    late.claim(2)
    late.close()
    one = on(machines, "one", PLACE._replace(told=1))
    assert one.claim(3) == [(1, message(1))]
    put(one, b"j", b"2", 2)
    one.close()
    assert found_by(machines, "other", epoch=4) == {b"k": b"1", b"j": b"2"}


@pytest.mark.parametrize("commits", [3, 40])
@pytest.mark.usefixtures("small")
def test_stream_that_is_deleted_under_its_owner_is_made_anew(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, commits: int
) -> None:
    """The link declares it again; what the owner writes then names a snapshot of the former one."""
    monkeypatch.setattr(changelog_stream, "PATIENCE", 2.0)
    monkeypatch.setattr(LoggedState, "_is_due", lambda self: self._mark.since_bytes > 1_000)
    one = claimed(machines, "one", epoch=1)
    for number in range(commits):
        put(one, b"%d" % number, b"x" * 90, number)
    stream = machines.stream(PLACE)
    machines.run(machines.link.delete_queue(stream.name))
    machines.run(stream.declare())
    with pytest.raises(BrokerUnavailable):
        put(one, b"late", b"1", commits)
    one.close()
    for name in ("one", "other"):
        state = claimed(machines, name, epoch=2)
        assert len(dict(state.scan("s"))) == commits
        put(state, b"0", b"1", commits)
        state.close()


def test_old_file_does_not_become_the_log(machines: Machines) -> None:
    """The log is gone, and a machine comes first that had been away for long."""
    one = claimed(machines, "one", epoch=1)
    put(one, b"k", b"1", 1)
    one.close()
    machines.run(machines.link.delete_queue(machines.stream(PLACE).name))
    late = on(machines, "one", PLACE._replace(told=7))
    with pytest.raises(StateUnavailable, match="the group has come to offset 7, this file to 1"):
        late.claim(2)
    late.close()
    assert kinds_of(machines) == []


def test_log_that_has_lost_its_last_entries_is_brought_on_by_the_file(
    machines: Machines, caplog: pytest.LogCaptureFixture
) -> None:
    """As where the broker's machine lost its power."""
    one = claimed(machines, "one", epoch=1)
    for number in range(5):
        put(one, b"k", b"%d" % number, number)
    one.close()
    stream = machines.stream(PLACE)
    every = entries_of(machines)
    machines.run(machines.link.delete_queue(stream.name))
    machines.run(stream.declare())
    for entry in every[:-2]:
        assert entry.head is not None
        machines.run(stream.append(entry.head, entry.body))

    one = claimed(machines, "one", epoch=2)
    assert one.read("s", [b"k"]) == [b"4"]
    assert "flow_changelog_behind" in caplog.text
    put(one, b"j", b"5", 5)
    one.close()
    assert found_by(machines, "other", epoch=3) == {b"k": b"4", b"j": b"5"}


def test_flow_that_had_no_log_before_begins_one_with_what_it_has(machines: Machines) -> None:
    machines.home("one")
    plain = StateDirectory(machines.path / "one").open(PLACE)
    plain.claim(4)
    plain.commit(StateCommit({"s": {b"k": b"1"}}, at(1), {"log/0": 3}, [message(1)]))
    plain.close()
    one = on(machines, "one")
    assert one.claim(5) == [(1, message(1))]
    one.close()
    other = on(machines, "other")
    assert other.claim(6) == [(1, message(1))]
    assert other.checkpoint == one.checkpoint
    assert other.read("s", [b"k"]) == [b"1"]
    other.close()


def test_file_that_went_on_without_its_log_is_refused_until_somebody_says_which_counts(
    machines: Machines,
) -> None:
    one = claimed(machines, "one", epoch=1)
    put(one, b"k", b"logged", 1)
    one.close()
    plain = StateDirectory(machines.path / "one").open(PLACE)
    plain.claim(2)
    plain.commit(StateCommit({"s": {b"k": b"plain"}}, at(2)))
    plain.close()

    one = on(machines, "one")
    with pytest.raises(StateUnavailable, match=r"written without its changelog.*delete the stream"):
        one.claim(3)
    one.close()
    machines.run(machines.link.delete_queue(machines.stream(PLACE).name))
    assert found_by(machines, "one", epoch=4) == {b"k": b"plain"}


def test_log_that_has_lost_its_beginning_says_so_and_the_newest_file_mends_it(
    rabbit_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker has thrown away what no snapshot stands for."""
    with Machines(rabbit_uri, tmp_path, retain_bytes=60_000) as machines:
        machines.prepare("svc.flow", "group", ["in"])
        monkeypatch.setattr(LoggedState, "_is_due", lambda self: False)
        one = claimed(machines, "one", epoch=1)
        number = 0
        while not number or machines.run(machines.stream(PLACE).first()) == 0:
            number += 1
            assert number < 500
            put(one, b"%d" % (number % 2), b"x" * 5_000, number)
        one.close()
        monkeypatch.undo()

        other = on(machines, "other")
        with pytest.raises(StateUnavailable, match=r"it begins at offset .* without a snapshot"):
            other.claim(2)
        other.close()
        monkeypatch.setattr(LoggedState, "_is_due", lambda self: self._wants_snapshot)
        one = claimed(machines, "one", epoch=3)
        wanted = dict(one.scan("s"))
        put(one, b"1", b"1", number + 1)
        put(one, b"1", wanted[b"1"], number + 2)
        one.close()
        assert found_by(machines, "after", epoch=4) == wanted


def test_state_that_is_too_large_for_its_log_is_warned_of_and_told(
    rabbit_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Machines(rabbit_uri, tmp_path, retain_bytes=40_000) as machines:
        machines.prepare("svc.flow", "group", ["in"])
        one = claimed(machines, "one", epoch=1)
        for number in range(40):
            put(one, b"%d" % number, b"x" * 5_000, number)
        one.close()
        assert "flow_changelog_small" in caplog.text
        other = on(machines, "other")
        with pytest.raises(StateUnavailable, match=r"changelog_bytes\) is too little"):
            other.claim(2)
        other.close()
        assert len(found_by(machines, "one", epoch=3)) == 40


# --- large states ------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
def test_commit_above_what_the_broker_takes_in_a_message_is_cut(machines: Machines) -> None:
    """RabbitMQ 4 takes 16 MiB."""
    one = claimed(machines, "one", epoch=1)
    large = {b"large": Random(1).randbytes(24 * 1024 * 1024), b"small": b"1"}
    one.commit(StateCommit({"s": dict(large)}, at(1)))
    one.close()
    assert found_by(machines, "other", epoch=2) == large


@pytest.mark.long
@pytest.mark.timeout(60)
def test_broker_that_takes_no_message_so_large_is_told_what_to_take(tmp_path: Path) -> None:
    node = PrivateNode(tmp_path / "broker", config=["max_message_size = 300000"])
    node.start(leash=True)
    try:
        with Machines(node.uri("/"), tmp_path) as machines:
            machines.prepare("svc.flow", "group", ["in"])
            one = claimed(machines, "one", epoch=1)
            put(one, b"k", b"1", 1)
            with pytest.raises(StateUnavailable, match="max_message_size"):
                put(one, b"k", b"x" * 500_000, 2)
            one.close()
            assert found_by(machines, "one", epoch=2) == {b"k": b"1"}
    finally:
        node.remove()


# --- savepoints, resets ------------------------------------------------------------------------------


def test_copy_is_of_the_last_commit_on_any_machine(machines: Machines, tmp_path: Path) -> None:
    one = claimed(machines, "one", epoch=1)
    put(one, b"k", b"1", 1, message(1))
    home = machines.home("other")
    assert home.kept("group") == [("in", 0)]
    home.copy(PLACE, tmp_path / "copy.sqlite3")
    put(one, b"k", b"2", 2)
    one.close()

    with suppress(FileNotFoundError):
        shutil.rmtree(tmp_path / "plain")
    plain = StateDirectory(tmp_path / "plain")
    plain.prepare("svc.flow", "group", ["in"])
    (tmp_path / "copy.sqlite3").rename(plain.path_of(PLACE))
    state = plain.open(PLACE)
    assert state.claim(1) == [(1, message(1))]
    assert state.read("s", [b"k"]) == [b"1"]
    assert state.checkpoint.positions == at(1)
    state.close()


def test_owner_goes_on_while_the_broker_takes_nothing(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What became of the commit is not known; the next claim finds out."""
    one = claimed(machines, "one", epoch=1)
    put(one, b"k", b"1", 1)
    append = changelog_stream.ChangelogStream.append

    async def unanswered(self: Any, head: ChangeHead, body: bytes = b"") -> int:
        await append(self, head, body)
        raise BrokerUnavailable("no confirm")

    monkeypatch.setattr(changelog_stream.ChangelogStream, "append", unanswered)
    with pytest.raises(BrokerUnavailable):
        put(one, b"k", b"2", 2)
    one.sent(7)
    one.forget_sent()
    one.close()
    monkeypatch.undo()
    assert found_by(machines, "one", epoch=1) == {b"k": b"2"}
