"""A partition of a flow over its state file: crashes at any point give what there is without, and a former owner commits nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.unit.flow.entries import entry_of

from mycelia import Log
from mycelia.amqp import Message
from mycelia.errors import LeaseLost, StateIncompatible, StateUnavailable
from mycelia.flow import FlowOutput, FlowPlan, KeyedStream, count, source, state_file, tumbling
from mycelia.flow.partition_run import PartitionRun, RecordsFailed, StageDescription
from mycelia.flow.state import KeyedState
from mycelia.flow.state_file import StateFile
from mycelia.logs import LogEntry, LogPosition
from mycelia.logs.batch_format import decode_entry, producer_of
from mycelia.wire import SerializerRegistry

COUNTED: Log[Any] = Log("counted", partitions=3)
IN: Log[Any] = Log("in", partitions=1)


def started(
    path: Path, *, epoch: int = 1, of: StageDescription | None = None, **options: Any
) -> PartitionRun:
    state = StateFile(path, "flow")
    return PartitionRun(description() if of is None else of, 0, state, epoch, **options)


def at(offset: int) -> dict[str, LogPosition]:
    return {"in": LogPosition(offset=offset)}


def keyed() -> KeyedStream[str, Any]:
    return source("in", tuple).event_time(lambda row: row[1], unit="ms").key_by(lambda row: row[0])


def description(*outputs: FlowOutput) -> StageDescription:
    if not outputs:
        results = keyed().window(tumbling(0.05)).aggregate(count())
        outputs = (
            results.map(lambda one: [one.key, one.start_ms, one.value]).to(COUNTED),
            results.late.map(lambda one: one.value).emit("late"),
        )
    serializer = SerializerRegistry().by_name(None)
    plan = FlowPlan({one.name: one.port for one in outputs})
    return StageDescription("g", plan, {"in": IN}, outputs, "svc.events", serializer)


def entries(count: int = 40) -> list[LogEntry[Any]]:
    chance = Random(3)
    return [
        entry_of(n, [(f"k{chance.randrange(6)}", n * 10 + chance.randrange(30)) for _ in range(20)])
        for n in range(count)
    ]


class Dies(Exception):
    pass


def published(path: Path, seed: int, crash_rate: float) -> list[tuple[int, Message]]:
    """What is published on the way through all entries; what is taken together and committed together does not depend on crashes."""
    chance, of = Random(f"{seed} crashes"), entries()
    sent: list[tuple[int, Message]] = []
    crashes = 0

    def may_die() -> None:
        if chance.random() < crash_rate:
            raise Dies

    def publish(run: PartitionRun, numbered: list[tuple[int, Message]]) -> None:
        for one in numbered:
            may_die()
            sent.append(one)
        if numbered:
            run.state.sent(numbered[-1][0])

    def feed(run: PartitionRun, begin: int) -> int:
        some = of[begin : begin + 1 + Random(f"{seed} {begin}").randrange(3)]
        run.feed({"in": some}, 0)
        return begin + len(some)

    while True:
        run = started(path)
        try:
            publish(run, run.left_over)
            begin = feed(run, run.offset or 0)
            while run.uncommitted:
                may_die()
                commit = run.prepare(at(begin), 1000)
                begin = feed(run, begin)  # what comes while it is written
                may_die()
                numbered = run.write(commit)
                may_die()
                publish(run, numbered)
            run.state.forget_sent()
            assert run.state._db.execute("SELECT COUNT(*) FROM outbox").fetchone() == (0,)
            assert crash_rate == 0 or crashes > 5
            return sent
        except Dies:
            crashes += 1
        finally:
            run.close()


def plain(message: Message) -> Any:
    """A message, without what a file's generation makes of it."""
    told = message.properties
    if message.exchange != "counted":
        return message.routing_key, str(told.message_id).split("/", 2)[2], message.body
    decoded = decode_entry(told, message.body, COUNTED.shape.codec, None, None)
    ids = [(record.headers or {})["id"].split("/", 2)[2] for record in decoded.records]
    _, sequence = producer_of(told.headers) or ("", -1)
    return message.routing_key, sequence, ids, [record.value for record in decoded.records]


@pytest.mark.parametrize("seed", range(8))
def test_crashes_at_any_point_give_what_there_is_without(seed: int, tmp_path: Path) -> None:
    """The same messages, with the same ids and sequences, in the same order; those that come twice are the same to the byte."""
    straight = [plain(message) for _, message in published(tmp_path / "straight", seed, 0.0)]
    crashing = published(tmp_path / "crashing", seed, 0.15)

    first: dict[tuple[Any, ...], Message] = {}
    for _, message in crashing:
        told = message.properties
        one = (message.routing_key, told.message_id, producer_of(told.headers))
        assert first.setdefault(one, message) == message
    assert list(map(plain, first.values())) == straight
    assert len(crashing) > len(first)
    assert {one[0] for one in straight} == {"0", "1", "2", "late"}


@pytest.mark.parametrize("keep", [0, 1_000_000])
def test_what_is_computed_while_a_commit_is_written_is_what_it_is_after_it(
    keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the keys have left memory, and are read while they are about to be written."""
    monkeypatch.setattr(KeyedState.__init__, "__defaults__", (keep,))

    def given(path: Path, is_beside: bool) -> list[Any]:
        run, found = started(path), list[Any]()
        for begin in range(0, 40, 4):
            if not is_beside:
                run.feed({"in": entries()[begin : begin + 4]}, 0)
            commit = run.prepare(at(begin + 4 if not is_beside else begin), 0)
            if is_beside:
                run.feed({"in": entries()[begin : begin + 4]}, 0)
            found += run.write(commit)
        found += run.commit(at(40), 0)
        run.close()
        return [plain(message) for _, message in found]

    assert given(tmp_path / "beside", True) == given(tmp_path / "after", False)


def test_former_owner_commits_nothing(tmp_path: Path) -> None:
    former = started(tmp_path / "a", epoch=3)
    former.feed({"in": entries()[:10]}, 0)
    owner = started(tmp_path / "a", epoch=2)  # whatever the broker says
    assert owner.state.epoch == 4

    with pytest.raises(LeaseLost, match="another owner has the state file"):
        former.commit(at(10), 0)
    owner.feed({"in": entries()[:5]}, 0)
    owner.commit(at(5), 0)
    former.close()
    owner.close()

    after = started(tmp_path / "a")
    assert after.positions == at(5)
    after.close()


def test_former_owner_deletes_nothing_of_the_outbox(tmp_path: Path) -> None:
    former = started(tmp_path / "a")
    former.feed({"in": entries()}, 0)
    numbered = former.commit(at(40), 0)
    former.state.sent(numbered[-1][0])
    owner = started(tmp_path / "a", epoch=2)
    former.state.forget_sent()
    former.close()
    owner.close()

    last = started(tmp_path / "a", epoch=3)
    assert last.left_over == numbered
    last.close()


def test_flow_that_begins_anew_gives_other_ids(tmp_path: Path) -> None:
    """Whoever drops repetitions must not take its results for those of before."""

    def ids(path: Path) -> set[Any]:
        run = started(path)
        run.feed({"in": entries()}, 0)
        found = {
            producer_of(one.properties.headers) or one.properties.message_id
            for _, one in run.commit({}, 0)
        }
        run.close()
        return found

    assert not ids(tmp_path / "a") & ids(tmp_path / "b")


def test_record_that_fails_is_named_by_its_place_in_the_log(tmp_path: Path) -> None:
    def picky(row: Any) -> Any:
        if row[1] == 77:
            raise ZeroDivisionError("no such time")
        return row

    outputs = keyed().filter(lambda row: row[0] != "skip").map(picky).to(COUNTED)
    some = [entry_of(5, [("a", 1), ("skip", 2)]), entry_of(9, [("skip", 3), ("b", 77), ("c", 4)])]
    run = started(tmp_path / "a", of=description(outputs), skipped={("in", 5, 0)})
    with pytest.raises(RecordsFailed) as told:
        run.feed({"in": some}, 0)
    (failed,) = told.value.failed

    assert failed.place == ("in", 9, 1)
    assert 'stage "g", log "in", partition 0, offset 9, record 1, operator' in str(failed)
    assert "key 'b': ZeroDivisionError: no such time" in str(failed)
    run.skipped.add(failed.place)
    run.again()
    assert run.uncommitted == 3
    assert [one.values for one in run._given] == [[("c", 4)]]
    run.close()


def test_locked_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_file, "LOCK_TIMEOUT", 0.1)
    run = started(tmp_path / "a")
    other = sqlite3.connect(tmp_path / "a", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    run.feed({"in": entries()[:2]}, 0)
    with pytest.raises(StateUnavailable, match=r"a cannot be used: database is locked\. Another"):
        run.commit(at(2), 0)
    with pytest.raises(StateUnavailable, match="Another process holds its lock"):
        started(tmp_path / "a")
    other.execute("ROLLBACK")
    other.close()
    run.commit(at(2), 0)
    run.close()


def test_file_of_something_else_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("once upon a time, there was no database" * 50)
    with pytest.raises(StateUnavailable, match=r"not a database\. It is damaged, or something"):
        StateFile(tmp_path / "a", "flow")
    (tmp_path / "b").mkdir()
    with pytest.raises(StateUnavailable, match=r"unable to open .*mycelia\.flows\.state"):
        StateFile(tmp_path / "b", "flow")


def test_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    StateFile(tmp_path / "a", "flow").close()
    db = sqlite3.connect(tmp_path / "a")
    db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(StateIncompatible, match="has format 9"):
        StateFile(tmp_path / "a", "flow")
