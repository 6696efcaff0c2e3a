"""Flows that end in sinks or begin at sources, and states of two versions, driven without a broker."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from mycelia import Log
from mycelia.errors import ConfigError, ContractError, MyceliaError, StateIncompatible
from mycelia.flow import (
    FlowOutput,
    KeyContext,
    KeyedStream,
    SinkRecord,
    Stream,
    count,
    events,
    flow,
    iterator,
    json_lines,
    source,
    sql_changes,
    sql_table,
    ticks,
    tumbling,
)
from mycelia.testing import FlowDriver


@dataclass
class Flight:
    plane: str
    number: int
    at_ms: int


FLOWN: Log[Flight] = Log("flown", of=Flight, key="plane", time="at_ms", partitions=3)
FLIGHTS = [Flight(f"N{n % 7}", n, n * 10) for n in range(600)]


@dataclass
class Counted:
    plane: str
    start_ms: int
    flights: int


class Own:
    async def write(self, records: Sequence[SinkRecord[Flight]]) -> None:
        raise AssertionError("nothing is brought to a sink in a test")


class Storing:
    name = "storing"

    @flow(FLOWN)
    def on(self, flights: Stream[Flight]) -> tuple[FlowOutput, ...]:
        keyed = flights.key_by(lambda one: one.plane)
        counted = (
            keyed.window(tumbling("1s"))
            .aggregate(count())
            .map(lambda one: Counted(one.key, one.start_ms, one.value))
        )
        return (
            counted.to(sql_table("sqlite:///nowhere.db", "counted", key=("plane", "start_ms"))),
            keyed.to(Own(), name="own"),
            keyed.to(json_lines("nowhere")),
            keyed.call("pager.page"),
            keyed.emit("passed"),
        )


def storing(seed: int, crash_rate: float) -> FlowDriver:
    driver = FlowDriver.of(Storing, seed=seed, crash_rate=crash_rate)
    for begin in range(0, len(FLIGHTS), 200):
        driver.append(FLOWN, FLIGHTS[begin : begin + 200], batch=10)
        driver.run()
    driver.end()
    return driver


# --- sinks ------------------------------------------------------------------------------------------


def test_what_goes_to_sinks_is_a_list() -> None:
    driver = storing(1, 0.0)
    own = driver.delivered("own")

    assert sorted(one.value.number for one in own) == list(range(600))
    assert {one.key for one in own} == {f"N{n}" for n in range(7)}
    assert all(type(one) is SinkRecord and one.time_ms == one.value.at_ms for one in own)
    wanted = Counter((one.plane, one.at_ms // 1000 * 1000) for one in FLIGHTS)
    found = [one.value for one in driver.delivered("counted")]
    assert {(one.plane, one.start_ms): one.flights for one in found} == wanted
    assert len(driver.given("passed")) == 600


@pytest.mark.parametrize("seed", range(5))
def test_after_crashes_records_come_to_a_sink_again_unless_it_leaves_them_out(seed: int) -> None:
    plain, crashed = storing(seed, 0.0), storing(seed, 0.3)
    assert crashed.crashes > 10

    for exact in ("counted", "nowhere"):
        assert crashed.delivered(exact) == plain.delivered(exact)
    for again in ("own", "pager.page"):
        came = crashed.delivered(again)
        once = {one.id: one for one in came}
        assert len(came) > len(once)
        assert all(once[one.id] == one for one in came)
        assert list(once.values()) == plain.delivered(again)


def test_output_that_is_no_sink_s_is_told() -> None:
    driver = FlowDriver.of(Storing)
    for name in ("passed", "nothing"):
        with pytest.raises(ConfigError, match=f'"{name}" is no output of this flow that goes to'):
            driver.delivered(name)


def test_outputs_may_be_given_as_a_method_gives_them() -> None:
    numbers = source("in", int)
    out = numbers.to(Own(), name="out")
    for outputs in (out, (out, numbers.emit("seen")), {"out": out}, {"other": out}):
        driver = FlowDriver(outputs)  # type: ignore[arg-type]
        driver.append("in", [1, 2])
        driver.run()
        (name, *_) = [one for one in ("out", "other") if one in driver._outputs]
        assert [one.value for one in driver.delivered(name)] == [1, 2]


def test_log_of_the_service_is_what_a_method_calls_it() -> None:
    class Passing:
        name = "passing"
        flown = FLOWN
        passed = Log("passed", of=Flight, key="plane")

        @flow(flown)
        def on(self, flights: Stream[Flight]) -> FlowOutput:
            return flights.to(self.passed)

    driver = FlowDriver.of(Passing)
    driver.append(FLOWN, FLIGHTS[:3])
    driver.run()

    assert driver.given("passed") == FLIGHTS[:3]


def test_record_that_no_sink_or_log_can_have_is_told_as_in_a_service() -> None:
    to_log: Log[int] = Log("numbers", of=int)
    numbers: Stream[Any] = source("in", int)
    for output in (numbers.to(sql_table("sqlite:///nowhere.db", "t")), numbers.to(to_log)):
        driver = FlowDriver(output)
        driver.append("in", ["no number"])
        with pytest.raises(
            MyceliaError, match=r"no fields with names|expected `int`|Expected `int`"
        ):
            driver.run()


# --- sources ----------------------------------------------------------------------------------------


async def readings(position: int | None) -> AsyncIterator[tuple[int, Flight]]:
    raise AssertionError("nothing is asked in a test")
    yield 0, FLIGHTS[0]


DEPARTED = events("tower", "departed", of=Flight, key="plane", time="at_ms")
ITERATED = iterator(readings, of=Flight, key="plane")
CHANGES = sql_changes("sqlite:///nowhere.db", "changes", of=Flight, key="plane")
SECONDS = ticks("1s")


class Reading:
    name = "reading"

    @flow(DEPARTED, ITERATED, CHANGES, SECONDS)
    def on(
        self,
        departed: Stream[Flight],
        iterated: Stream[Flight],
        changes: Stream[Flight],
        seconds: Stream[datetime],
    ) -> tuple[FlowOutput, ...]:
        return (
            departed.merge(iterated).merge(changes).to(Own(), name="flights"),
            seconds.emit("seconds"),
        )


@pytest.mark.parametrize("crash_rate", [0.0, 0.3])
def test_sources_are_what_a_test_appends(crash_rate: float) -> None:
    driver = FlowDriver.of(Reading, seed=4, crash_rate=crash_rate)
    driver.append(DEPARTED, FLIGHTS[:50], batch=5)
    driver.append(ITERATED, FLIGHTS[50:100], batch=5)
    driver.append("changes", FLIGHTS[100:150], batch=5)
    driver.run()
    driver.advance("3.5s")
    driver.advance("600ms")

    found = driver.records("flights")
    assert sorted(one.value.number for one in found) == list(range(150))
    times = {one.value.number: one.time_ms for one in found}
    assert times[7] == 70, "as its source says"
    assert times[77] == 0, "when it came"
    assert driver.given("seconds") == [
        datetime(1970, 1, 1, 0, 0, second, tzinfo=UTC) for second in (1, 2, 3, 4)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_message_that_comes_again_is_left_out_through_crashes(seed: int) -> None:
    driver = FlowDriver.of(Reading, seed=seed, crash_rate=0.3)
    ids = [f"m{n}" for n in range(50)]
    driver.append(DEPARTED, FLIGHTS[:50], ids=ids, batch=5)
    driver.append(DEPARTED, FLIGHTS[40:50], ids=ids[40:], batch=5)
    driver.run()
    driver.append(DEPARTED, FLIGHTS[:10], ids=ids[:10], batch=5)
    driver.run()

    assert sorted(one.value.number for one in driver.records("flights")) == list(range(50))
    assert driver.repeated >= 20
    with pytest.raises(ConfigError, match="ids= are of messages"):
        driver.append(ITERATED, FLIGHTS[:1], ids=["m"])


def test_records_of_a_log_are_where_their_keys_are() -> None:
    driver = FlowDriver.of(Storing)
    driver.append("flown", FLIGHTS, batch=1)
    planes = [
        {entry.values[0].plane for entry in driver._logs.entries["flown", partition]}
        for partition in range(3)
    ]
    assert sum(map(len, planes)) == 7
    assert all(planes)
    with pytest.raises(ContractError):
        driver.append(FLOWN, [{"plane": "N1"}])  # type: ignore[misc]
    with pytest.raises(ConfigError, match='no partition 3 of "flown" in this driver'):
        driver.append(FLOWN, FLIGHTS, partition=3)


def test_method_that_cannot_be_found_is_told() -> None:
    with pytest.raises(ConfigError, match="0 methods under @flow called nothing"):
        FlowDriver.of(Storing, "nothing")


# --- states of two versions ---------------------------------------------------------------------------


@dataclass
class Heard:
    times: int


@dataclass
class HeardOf:
    times: int
    last: int


def hear(context: KeyContext[str, Heard], flight: Flight) -> list[tuple[str, int]]:
    context.state.times += 1
    return [(flight.plane, context.state.times)]


def hear_of(context: KeyContext[str, HeardOf], flight: Flight) -> list[tuple[str, int, int]]:
    state = context.state
    found = (flight.plane, state.times + 1, state.last)
    state.times, state.last = state.times + 1, flight.number
    return [found]


def keyed() -> KeyedStream[str, Flight]:
    return source("flown", Flight).key_by(lambda one: one.plane)


def first(crash_rate: float) -> FlowDriver:
    heard = keyed().process(hear, state=lambda: Heard(0)).emit("heard")
    return FlowDriver(heard, seed=2, crash_rate=crash_rate)


def second(after: FlowDriver, crash_rate: float, **named: Any) -> FlowDriver:
    step = keyed().process(hear_of, state=lambda: HeardOf(0, -1))
    return FlowDriver(
        step.named("heard", was="process-1", **named).emit("heard"),
        seed=3,
        crash_rate=crash_rate,
        after=after,
    )


@pytest.mark.parametrize("crash_rate", [0.0, 0.3])
def test_state_of_version_1_is_handed_to_version_2(crash_rate: float) -> None:
    before = first(crash_rate)
    before.append("flown", FLIGHTS[:70], batch=7)
    before.run()
    before.append("flown", FLIGHTS[70:77], batch=7)  # and is read by the next
    migrate = {1: lambda plain: HeardOf(plain["times"], -1)}
    after = second(before, crash_rate, version=2, migrate=migrate)
    after.run()
    after.append("flown", FLIGHTS[77:84])
    after.run()

    assert before.given("heard")[-1] == ("N6", 10)
    assert after.given("heard") == [
        *((f"N{n}", 11, -1) for n in range(7)),
        *((f"N{n}", 12, 70 + n) for n in range(7)),
    ]
    assert len({one.id for one in before.records("heard") + after.records("heard")}) == 84


def test_version_1_may_go_on_after_it_was_handed_over() -> None:
    before = first(0.0)
    before.append("flown", FLIGHTS[:7])
    before.run()
    migrate = {1: lambda plain: HeardOf(plain["times"], -1)}
    second(before, 0.0, version=2, migrate=migrate)
    before.append("flown", FLIGHTS[7:8])
    before.run()

    assert before.given("heard")[-1] == ("N0", 2)


def test_state_that_nothing_says_how_to_migrate_is_refused() -> None:
    before = first(0.0)
    before.append("flown", FLIGHTS[:7])
    before.run()
    with pytest.raises(StateIncompatible, match="migrate= has nothing for 1"):
        second(before, 0.0, version=2)
    with pytest.raises(ConfigError, match='partition 0 of "flown" is none of the flow'):
        FlowDriver(source("other", int).emit("out"), after=before)


def test_source_that_the_flow_does_not_name_is_refused_with_its_name() -> None:
    class Reads:
        name = "reads"

        @flow(Log("flown", of=Flight, key="plane"))
        def all(self, flights: Stream[Flight]) -> FlowOutput:
            return flights.merge(source("others", Flight)).emit("all")

    with pytest.raises(ConfigError, match=r'reads\.all: it reads "others", which @flow does not'):
        FlowDriver.of(Reads)


PLANES: Log[Flight] = Log("planes", of=Flight, key="plane", time="at_ms", partitions=3)


def described(method: Any, *sources: Any) -> Any:
    return FlowDriver.of(type("Looping", (), {"name": "looping", "on": flow(*sources)(method)}))


@pytest.mark.parametrize(
    ("source", "method", "said"),
    [
        (
            FLOWN,
            lambda self, s: s.filter(bool).to(FLOWN),
            r'reads "flown" and gives to "flown".*to\(…, feeds_back=True\)',
        ),
        (
            events("looping", "again", of=Flight),
            lambda self, s: s.emit("again"),
            r'gives to "looping.again".*emit\("again", feeds_back=True\)',
        ),
    ],
)
def test_flow_that_reads_what_it_gives_is_refused_unless_it_says_so(
    source: Any, method: Any, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        described(method, source)


@pytest.mark.parametrize(
    ("sources", "method"),
    [
        ([FLOWN], lambda self, s: s.filter(bool).to(FLOWN, feeds_back=True)),
        (
            [events("looping", "again", of=Flight)],
            lambda self, s: s.emit("again", feeds_back=True),
        ),
        ([events("tower", "again", of=Flight)], lambda self, s: s.emit("again")),
        # The table says nothing by itself; and the other log is read, and goes elsewhere.
        (
            [FLOWN, PLANES],
            lambda self, flown, planes: (
                flown.key_by("plane")
                .join_table(planes.key_by("plane"))
                .map(lambda pair: pair[0])
                .to(PLANES)
            ),
        ),
        (
            [FLOWN, PLANES],
            lambda self, flown, planes: (flown.to(PLANES), planes.emit("landed")),
        ),
    ],
    ids=["meant", "events that are meant", "events of others", "a table", "another log"],
)
def test_flow_that_does_not_come_round_again_is_none_of_those(sources: Any, method: Any) -> None:
    assert described(method, *sources).plan.outputs


def test_what_is_no_sequence_of_records_is_no_append_of_a_driver() -> None:
    driver = FlowDriver.of(Storing)
    for values in ({"plane": "N1"}, "N1", iter([FLIGHTS[0]])):
        with pytest.raises(TypeError, match="expected a list"):
            driver.append(FLOWN, values)  # type: ignore[call-overload]
