"""A flow that has changed goes on from the state of before, where it says how; and where it does not, refuses and says the ways out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.flow.entries import entry_of

from mycelia import Log
from mycelia.errors import ConfigError, FlowFunctionError, StateIncompatible
from mycelia.flow import FlowOutput, FlowPlan, KeyContext, KeyedStream, count, source, tumbling
from mycelia.flow.partition_run import PartitionRun, StageDescription
from mycelia.flow.state_codec import _class_of
from mycelia.flow.state_file import StateFile
from mycelia.logs import LogPosition
from mycelia.testing import FlowDriver
from mycelia.wire import SerializerRegistry

OUT: Log[Any] = Log("out", partitions=1)
IN: Log[Any] = Log("in", partitions=1)


@dataclass
class First:
    seen: int = 0


@dataclass
class Third:
    flights: int
    name: str
    since: int = -1


def by_first(context: KeyContext[str, First], row: Any) -> Iterator[Any]:
    context.state.seen += 1
    context.set_timer(row[1] + 1_000)
    yield [context.key, context.state.seen]


def by_third(context: KeyContext[str, Third], row: Any) -> Iterator[Any]:
    context.state.flights += 1
    yield [context.key, context.state.flights, context.state.name, context.state.since]


def on_timer(context: KeyContext[str, Any], name: str) -> Iterator[Any]:
    yield ["timer", context.key]


def to_second(kept: dict[str, Any]) -> dict[str, Any]:
    return {"flights": kept["seen"]}


def to_third(kept: dict[str, Any]) -> Third:
    return Third(kept["flights"] * 10, "of before")


MIGRATE = {1: to_second, 2: to_third}


def keyed() -> KeyedStream[str, Any]:
    return source("in", tuple).event_time(lambda row: row[1], unit="ms").key_by(lambda row: row[0])


def first(name: str = "counted", **options: Any) -> FlowOutput:
    stream = keyed().process(by_first, state=First, on_timer=on_timer)
    return stream.named(name, **options).to(OUT)


def third(name: str = "counted", **options: Any) -> FlowOutput:
    told = {"version": 3, "migrate": MIGRATE, **options}
    return keyed().process(by_third, state=lambda: Third(0, "new")).named(name, **told).to(OUT)


def run(path: Path, output: FlowOutput, dropped: tuple[str, ...] = ()) -> PartitionRun:
    serializer = SerializerRegistry().by_name(None)
    plan = FlowPlan({output.name: output.port})
    of = StageDescription("g", plan, {"in": IN}, [output], "ex", serializer, dropped=dropped)
    return PartitionRun(of, 0, StateFile(path, "flow"), 1)


def feed(path: Path, output: FlowOutput, rows: list[Any], dropped: tuple[str, ...] = ()) -> Any:
    """What is given for these rows, which are committed."""
    one = run(path, output, dropped)
    try:
        offset = one.offset or 0
        one.feed({"in": [entry_of(offset, rows)]}, 0)
        given = [value for part in one._given for value in part.values]
        one.commit({"in": LogPosition(offset=offset + 1)}, 0)
    finally:
        one.close()
    return given


ROWS = [(f"k{n % 3}", n) for n in range(10)]


def test_state_of_an_earlier_version_is_made_into_the_later_one_once(tmp_path: Path) -> None:
    feed(tmp_path / "a", first(), ROWS)
    assert feed(tmp_path / "a", third(), [("k0", 20), ("k9", 21)]) == [
        ["k0", 41, "of before", -1],
        ["k9", 1, "new", -1],
    ]
    assert feed(tmp_path / "a", third(), [("k1", 30)]) == [["k1", 31, "of before", -1]]


def test_class_of_the_state_before_may_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(tmp_path / "a", first(), ROWS)
    monkeypatch.delattr(sys.modules[__name__], "First")
    _class_of.cache_clear()

    assert feed(tmp_path / "a", third(), [("k0", 20)]) == [["k0", 41, "of before", -1]]


def test_what_cannot_be_migrated_is_refused_and_nothing_has_changed(tmp_path: Path) -> None:
    feed(tmp_path / "a", first(), ROWS)
    with pytest.raises(StateIncompatible, match=r"migrate= has nothing for 2\. Say how: .named"):
        run(tmp_path / "a", third(migrate={1: to_second}))
    with pytest.raises(StateIncompatible, match=r"step \"counted\", key 'k.', cannot be made ver"):
        run(tmp_path / "a", third(migrate={1: to_second, 2: lambda kept: kept["none"]}))
    assert feed(tmp_path / "a", first(), [("k0", 20)])[-1] == ["k0", 5]
    feed(tmp_path / "a", third(), [("k0", 30)])
    with pytest.raises(StateIncompatible, match="is of version 3, and the step's is 1"):
        run(tmp_path / "a", first())


def test_renamed_step_takes_its_state_and_timers_along(tmp_path: Path) -> None:
    feed(tmp_path / "a", first("old"), ROWS)
    with pytest.raises(StateIncompatible) as told:
        run(tmp_path / "a", first("new"))
    for way in ('.named("old")', '.named(…, was="old")', 'dropped=["old"]', "reset the flow"):
        assert way in str(told.value)

    given = feed(tmp_path / "a", first("new", was="old"), [("k0", 20), ("k0", 5_000)])
    assert given == [
        ["k0", 5],
        ["k0", 6],
        *(["timer", f"k{n % 3}"] for n in range(10)),
        ["timer", "k0"],
    ]
    assert feed(tmp_path / "a", first("new", was="old"), [("k1", 5_001)]) == [["k1", 4]]
    assert feed(tmp_path / "a", first("new"), [("k1", 5_002)]) == [["k1", 5]]


def test_renamed_and_of_a_later_version_at_once(tmp_path: Path) -> None:
    feed(tmp_path / "a", first("old"), ROWS)
    given = feed(tmp_path / "a", third("new", was="old"), [("k0", 20)])
    assert given == [["k0", 41, "of before", -1]]


def test_state_of_a_dropped_step_is_deleted(tmp_path: Path) -> None:
    feed(tmp_path / "a", first("old"), ROWS)
    windows = keyed().window(tumbling(1)).aggregate(count()).named("hourly")
    hourly = windows.map(lambda one: one.value).to(OUT)
    with pytest.raises(StateIncompatible, match='has a step "old"'):
        run(tmp_path / "a", hourly)
    feed(tmp_path / "a", hourly, [("k0", 20)], dropped=("old", "never-was"))

    state = StateFile(tmp_path / "a", "flow")
    for part in ("", "~timers", "~wall"):
        assert state.scan("old" + part) == []
    state.close()
    feed(tmp_path / "a", hourly, [("k0", 30)])
    with pytest.raises(
        StateIncompatible, match=r'"hourly" is of window .*, and the step is now pro'
    ):
        run(tmp_path / "a", first("hourly"))


class Grown(msgspec.Struct):
    seen: int = 0


def test_record_may_have_new_fields_with_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted(context: KeyContext[str, Any], row: Any) -> Iterator[Any]:
        context.state.seen += 1
        yield [context.state.seen, getattr(context.state, "note", None)]

    def output() -> FlowOutput:
        state = getattr(sys.modules[__name__], "Grown")  # noqa: B009  as it is now
        return keyed().process(counted, state=state).named("counted").to(OUT)

    feed(tmp_path / "a", output(), ROWS)

    def become(fields: list[Any]) -> None:
        later = msgspec.defstruct("Grown", fields, module=__name__)
        monkeypatch.setattr(sys.modules[__name__], "Grown", later)
        _class_of.cache_clear()

    become([("seen", int, 0), ("note", str, "none yet")])
    assert feed(tmp_path / "a", output(), [("k0", 20)]) == [[5, "none yet"]]
    become([("note", str, "")])
    with pytest.raises(StateIncompatible, match="Give new fields a default, migrate") as told:
        run(tmp_path / "a", output())  # found before there is a record
    assert 'the state of step "counted", key \'k' in str(told.value)
    become([("seen", int, 0), ("note", str, "again")])
    assert feed(tmp_path / "a", output(), [("k0", 30)]) == [[6, "none yet"]]
    _class_of.cache_clear()


def test_class_that_is_gone_is_told_at_the_start_also_of_a_step_with_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_row(context: KeyContext[str, Any], row: Any) -> Iterator[Any]:
        context.state = context.state or 1
        yield row

    output = keyed().process(as_row, state=int)
    feed(tmp_path / "a", first("old"), ROWS)
    monkeypatch.delattr(sys.modules[__name__], "First")
    _class_of.cache_clear()

    for one in (output.named("old").to(OUT), output.named("new", was="old").to(OUT)):
        with pytest.raises(StateIncompatible, match=r"state holds a First of .*Nothing has been"):
            run(tmp_path / "a", one)
    _class_of.cache_clear()


DIES = """
import os, signal, sys
sys.path[:0] = sys.argv[2].split(os.pathsep)
from pathlib import Path

from tests.unit.flow import test_state_migrations as of
from mycelia.flow.state_file import StateFile

commit = StateFile.commit


def dies(self, *args):
    def told(statement):
        if statement.startswith("UPDATE checkpoint"):  # all of the state has been written by then
            os.kill(os.getpid(), signal.SIGKILL)

    self._db.set_trace_callback(told)
    return commit(self, *args)


StateFile.commit = dies
of.run(Path(sys.argv[1]), of.third("new", was="counted"))
"""


def test_process_killed_in_the_middle_of_a_migration_has_changed_nothing(tmp_path: Path) -> None:
    feed(tmp_path / "a", first(), ROWS)
    path = os.pathsep.join(sys.path)
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", DIES, str(tmp_path / "a"), os.pathsep.join([root, path])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr

    state = StateFile(tmp_path / "a", "flow")
    assert state.scan("new") == []
    state.close()
    assert feed(tmp_path / "a", first(), [("k0", 20)])[-1] == ["k0", 5]
    given = feed(tmp_path / "a", third("new", was="counted"), [("k0", 30)])
    assert given == [["k0", 51, "of before", -1]]


@pytest.mark.parametrize(
    "options",
    [
        {"version": 0},
        {"version": "2"},
        {"version": 2, "migrate": {2: to_second}},
        {"migrate": {1: to_second}},
        {"version": 2, "migrate": {1: "f"}},
    ],
)
def test_versions_that_cannot_be_are_refused_where_they_are_written(options: Any) -> None:
    with pytest.raises(ConfigError, match=r"named\(\"counted\""):
        first(**options)


def test_versions_are_of_states_of_process() -> None:
    with pytest.raises(ConfigError, match="only that of process"):
        keyed().window(tumbling(1)).aggregate(count()).named("hourly", version=2)


@dataclass
class Was:
    count: int = 0


@dataclass
class Is:
    number: int = 0


def counting_was(context: KeyContext[str, Was], value: int) -> list[int]:
    context.state.count += 1
    return [context.state.count]


def counting_is(context: KeyContext[str, Is], value: int) -> list[int]:
    context.state.number += 1
    return [context.state.number]


def test_function_that_fails_over_state_of_another_class_is_told_of_both() -> None:
    def keyed() -> Any:
        return source("in", int).key_by(lambda value: "k")

    before = FlowDriver(keyed().process(counting_was, state=Was).named("step").emit("out"))
    before.append("in", [1])
    before.run()
    after = FlowDriver(
        keyed().process(counting_is, state=Is).named("step").emit("out"), after=before
    )
    after.append("in", [2])

    with pytest.raises(
        FlowFunctionError, match=r"the state of the key is a Was, and state= makes a Is; .*migrate="
    ):
        after.run()
