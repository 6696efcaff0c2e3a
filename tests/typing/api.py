"""What type checkers see of the public names. Checked, not run: `mypy tests/typing`."""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypedDict, Unpack, assert_type

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from mycelia import (
    BlockingClient,
    Client,
    Config,
    Entrypoint,
    EventDispatcher,
    Inbox,
    Log,
    Logger,
    Outbox,
    Publisher,
    Queue,
    Record,
    RpcProxy,
    Tick,
    consume,
    event_handler,
    http,
    log_handler,
    mount,
    rpc,
    timer,
)
from mycelia.clients import (
    BlockingDispatch,
    BlockingPublish,
    BlockingServiceProxy,
    Dispatch,
    Publish,
    ServiceProxy,
)
from mycelia.flow import (
    FlowOutput,
    KeyContext,
    KeyedStream,
    LateRecord,
    ProcessedStream,
    PulledSource,
    QueueSource,
    SinkRecord,
    Stream,
    WindowedResults,
    WindowedStream,
    count,
    events,
    every,
    flow,
    iterator,
    json_lines,
    max_of,
    mean,
    quantile,
    source,
    sql_table,
    ticks,
    top,
    tumbling,
)
from mycelia.logs import BlockingLogWriter, LogReader, LogWriter
from mycelia.runtime import EntrypointArguments
from mycelia.testing import FlowDriver, eventually, make_worker


class Once(Entrypoint):
    """An entrypoint of a user's own, without arguments."""


class Weekly(Entrypoint):
    """One with arguments."""

    def __init__(self, day: str, *, at: int, **options: Unpack[EntrypointArguments]) -> None:
        super().__init__(**options)


once = Once.decorator
weekly = Weekly.decorator


class Flight(TypedDict):
    origin: str


FLIGHTS = Log("flights", of=Flight, key="origin")
ANYTHING = Log("anything")


class Application:
    """An ASGI application, of whatever kind."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


class Planes:
    name = "planes"
    other = RpcProxy("other", timeout=2)
    emit = EventDispatcher()
    publish = Publisher(routing_key="imports")
    other_blocking = RpcProxy("other", timeout=2).blocking
    emit_blocking = EventDispatcher(mandatory=True).blocking
    publish_blocking = Publisher("work", routing_key="imports").blocking
    speed = Config("feed.speed", float, default=1.0)
    log = Logger()
    flights = FLIGHTS
    flights_blocking = FLIGHTS.blocking
    outbox = Outbox("sqlite:///planes.db", poll="2s", priority=1)
    inbox = Inbox(keep="30d")
    inbox_blocking = Inbox().blocking

    @rpc
    async def land(self, session: AsyncSession, blocking: Session) -> None:
        assert_type(self.outbox(session).emit("landed", 1, key="N1", headers={"a": 1}), str)
        assert_type(self.outbox(blocking).publish(1, routing_key="q"), str)
        flight: Flight = {"origin": "JFK"}
        self.outbox(session).append(FLIGHTS, flight, time=datetime.now(UTC), headers={"a": 1})
        self.outbox(session).append(FLIGHTS, 5)  # type: ignore[misc]
        assert_type(await self.inbox.is_first(session, message_id="m"), bool)
        assert_type(self.inbox_blocking.is_first(blocking), bool)

    @rpc
    async def fly(self, origin: str) -> None:
        assert_type(self.flights, LogWriter[Flight])
        await self.flights.append({"origin": origin}, key="x", headers={"a": 1})
        await self.flights.append_many([{"origin": origin}])
        assert_type(self.flights_blocking, BlockingLogWriter[Flight])

    @rpc
    async def get(self, tail_number: str) -> dict[str, int]:
        assert_type(self.other, ServiceProxy)
        assert_type(await self.other.any_method(1), Any)
        assert_type(await self.other["any-method"](1), Any)
        assert_type(await self.other.any_method.options(timeout=1, priority=2)(1), Any)
        assert_type(await self.other.any_method.call_async(1).result(), Any)
        assert_type(self.emit, Dispatch)
        await self.emit("seen", {}, mandatory=True)
        assert_type(self.publish, Publish)
        await self.publish({}, routing_key="x", priority=1)
        assert_type(self.speed, float)
        assert_type(self.admin, Application)
        self.log.info("seen", tail_number=tail_number)
        return {"seats": 2}

    @rpc(concurrency=5, expected_exceptions=(KeyError,))
    def count(self) -> int:
        assert_type(self.other_blocking, BlockingServiceProxy)
        assert_type(self.other_blocking.any_method(1), Any)
        self.other_blocking.any_method(1)
        assert_type(self.other_blocking.any_method.call_async(1).result(), Any)
        assert_type(self.emit_blocking, BlockingDispatch)
        self.emit_blocking("seen", {})
        assert_type(self.publish_blocking, BlockingPublish)
        self.publish_blocking({}, routing_key="x")
        return 1

    @rpc(idempotent=True)
    async def again(self) -> str:
        return ""

    @timer(60, eager=True)
    async def tick(self) -> None: ...

    @timer(cron="0 6 * * *", timezone="Europe/Berlin", once_per_fleet=True, missed="once")
    async def at_six(self, tick: Tick) -> None:
        assert_type(tick.scheduled, datetime)

    @timer(interval=0.5)
    def tock(self) -> int:
        return 1

    @consume("imports", requeue_on_error=True)
    async def imported(self, record: dict[str, Any]) -> None: ...

    @consume(Queue("exports"), concurrency=3, timeout=5)
    def exported(self, record: str) -> str:
        return record

    admin = mount("/admin", Application(), max_body_bytes=1000)

    @http("GET", "/planes/{number}", stream_request=True)
    async def page(self, request: Any, number: str) -> bytes:
        return b""

    @once
    async def first(self) -> str:
        return "first"

    @weekly("monday", at=8)
    def report(self, name: str) -> str:
        return name

    @log_handler(FLIGHTS, group="audit", start="next", concurrency=2)
    async def flown(self, records: list[Record[Flight]]) -> int:
        return len(records)

    @event_handler("feed", "departed", concurrency=64)
    async def departed(self, flight: dict[str, Any]) -> None: ...


async def decorated_methods_keep_their_types(planes: Planes) -> None:
    assert_type(planes.tock(), int)
    assert_type(await planes.flown([]), int)
    assert_type(planes.exported("x"), str)
    assert_type(await planes.page(None, "1"), bytes)
    assert_type(await planes.first(), str)
    assert_type(planes.report("x"), str)
    assert_type(await planes.get("N1"), dict[str, int])
    assert_type(planes.count(), int)
    assert_type(await planes.again(), str)
    assert_type(make_worker(Planes), Planes)


async def clients() -> None:
    async with Client("memory://") as client:
        assert_type(client, Client)
        assert_type(await client.call("planes", "get", "N1", timeout=2), Any)
    with BlockingClient("memory://") as blocking:
        assert_type(blocking, BlockingClient)


async def logs(client: Client) -> None:
    assert_type(ANYTHING.reader(client.link, 0), LogReader[Any])
    async with FLIGHTS.reader(client.link, 0, "next") as reader:
        async for entry in reader:
            assert_type(entry.records, list[Record[Flight]])
            assert_type(entry.records[0].value, Flight)
    await client.append(FLIGHTS, {"origin": "JFK"})


async def conditions() -> None:
    async def counted() -> int:
        return 1

    assert_type(await eventually(lambda: "there"), str)
    assert_type(await eventually(counted), int)


@dataclass
class Departed:
    origin: str
    delay: int
    departed_at: datetime


def flows(departed: Stream[Departed], keyed: KeyedStream[str, Departed]) -> None:
    """What is known of a record after each step of a flow."""
    assert_type(source("flights.departed", Departed), Stream[Departed])
    assert_type(departed.map(lambda f: f.delay), Stream[int])
    assert_type(departed.flat_map(lambda f: [f.origin]), Stream[str])
    assert_type(departed.filter(lambda f: f.delay > 60), Stream[Departed])
    assert_type(departed.branch(lambda f: f.delay > 60), tuple[Stream[Departed], Stream[Departed]])
    assert_type(departed.merge(departed.map(lambda f: f.delay)), Stream[Departed | int])
    assert_type(departed.event_time(lambda f: f.departed_at, disorder="30m"), Stream[Departed])
    assert_type(departed.event_time(lambda f: f.delay, unit="ms", idle=5), Stream[Departed])
    assert_type(
        departed.key_by(lambda f: (f.origin, f.delay)), KeyedStream[tuple[str, int], Departed]
    )
    assert_type(keyed.map(lambda f: f.delay), KeyedStream[str, int])
    assert_type(keyed.filter(lambda f: f.delay), KeyedStream[str, Departed])
    hourly = keyed.window(tumbling("1h"), lateness="2h", emit=every("1m"), mode="retract")
    assert_type(hourly, WindowedStream[str, Departed])
    assert_type(hourly.aggregate(count()), WindowedResults[str, Departed, int])
    delays = hourly.aggregate(
        count(),
        mean("delay"),
        max_of(lambda f: f.delay),
        quantile(lambda f: f.delay, 0.99),
        top(3, by=lambda f: f.delay),
    )
    assert_type(
        delays, WindowedResults[str, Departed, tuple[int, float, int, float, list[Departed]]]
    )
    assert_type(
        delays.map(lambda w: (w.key, w.start, w.value[0])),
        KeyedStream[str, tuple[str, datetime, int]],
    )
    assert_type(delays.late, KeyedStream[str, LateRecord[str, Departed]])
    assert_type(delays.late.map(lambda one: one.value.origin), KeyedStream[str, str])


class OwnSink:
    async def write(self, records: Sequence[SinkRecord[Departed]]) -> None:
        assert_type(records[0].value, Departed)


async def enrich(departed: Departed) -> int:
    return departed.delay


async def spread(departed: Departed) -> list[str]:
    return [departed.origin]


async def given(position: int | None) -> AsyncIterator[tuple[int, Departed]]:
    yield 0, Departed("JFK", 1, datetime.now(UTC))


class Pipeline:
    """Streams and records are of what their sources are of."""

    name = "pipeline"
    departed = Log("flights.departed", of=Departed, key="origin")
    corrected = Log("flights.corrected", of=Departed, key="origin")
    anything = Log("anything")

    @flow(departed)
    def own_log(self, flights: Stream[Departed]) -> FlowOutput:
        return flights.to(self.corrected)

    @flow(departed, ticks("1m"), anything, events("tower", "left", of=Flight), group="many")
    def many(
        self,
        flights: Stream[Departed],
        minutes: Stream[datetime],
        anything: Stream[str],
        left: Stream[Flight],
    ) -> tuple[FlowOutput, FlowOutput]:
        return minutes.emit("minute"), anything.emit("said")

    @log_handler(departed, retry=None, concurrency=2)
    def counted(self, records: Sequence[Record[Departed]]) -> int:
        return sum(one.value.delay for one in records)

    @log_handler(anything)
    def told(self, records: list[Record[str]]) -> None: ...


def what_pipelines_are(pipeline: Pipeline) -> None:
    assert_type(pipeline.counted([]), int)
    assert_type(pipeline.corrected, LogWriter[Departed])
    assert_type(Pipeline.corrected, Log[Departed])


def driven(departed: Stream[Departed]) -> None:
    """Sources keep the types of their records, and drivers ask for them."""
    heard = events("tower", "departed", of=Departed)
    assert_type(heard, QueueSource[Departed])
    assert_type(iterator(given), PulledSource[Departed])
    assert_type(ticks("1s"), PulledSource[datetime])
    driver = FlowDriver.of(Planes, "flown", seed=1, crash_rate=0.1)
    assert_type(driver, FlowDriver)
    driver.append(heard, [Departed("JFK", 1, datetime.now(UTC))])
    of_log: list[Flight] = [{"origin": "JFK"}]
    driver.append(FLIGHTS, of_log)
    driver.append("anything", [1])
    driver.append(heard, [1])  # type: ignore[misc]
    driver.append(heard, of_log)  # type: ignore[misc]
    assert_type(driver.delivered("departed"), list[SinkRecord[Any]])
    FlowDriver(departed.emit("departed"), after=driver)


def ends(departed: Stream[Departed], keyed: KeyedStream[str, Departed]) -> None:
    """Steps that await, and where streams go."""
    assert_type(departed.map_async(enrich), Stream[int])
    assert_type(keyed.map_async(enrich, concurrency=4), KeyedStream[str, int])
    assert_type(departed.flat_map_async(spread), Stream[str])
    assert_type(keyed.flat_map_async(spread), KeyedStream[str, str])
    table = sql_table("sqlite:///x", "departed", of=Departed)
    assert_type(departed.to(table), FlowOutput)
    assert_type(departed.to(OwnSink()), FlowOutput)
    assert_type(departed.to(json_lines("out")), FlowOutput)
    assert_type(departed.call("pager.page"), FlowOutput)
    departed.map(lambda f: f.delay).to(table)  # type: ignore[arg-type]
    departed.map(lambda f: f.delay).to(OwnSink())  # type: ignore[arg-type]


class Total:
    amount: int = 0


def add(context: KeyContext[str, Total], flight: Departed) -> Iterator[float]:
    context.state.amount += flight.delay
    yield context.state.amount / 2


def ring(context: KeyContext[str, Total], name: str) -> list[float]:
    return []


def stateful(keyed: KeyedStream[str, Departed], planes: KeyedStream[str, int]) -> None:
    """Functions with state, and joins."""
    assert_type(keyed.process(add, state=Total, on_timer=ring), ProcessedStream[str, float])
    assert_type(keyed.process(add, state=Total).named("total").as_state("total"), FlowOutput)
    hours = keyed.window(tumbling("1h")).aggregate(mean("delay"))
    assert_type(hours.named("hours").as_state("hour"), FlowOutput)
    assert_type(keyed.dedup("origin", within="1h"), KeyedStream[str, Departed])
    assert_type(keyed.join_table(planes), KeyedStream[str, tuple[Departed, int]])
    assert_type(keyed.join_table(planes, how="left"), KeyedStream[str, tuple[Departed, int | None]])
    assert_type(
        keyed.join_as_of(planes, tolerance="1h", how="left").map(lambda pair: pair[1]),
        KeyedStream[str, int | None],
    )
    assert_type(
        keyed.join_interval(planes, after="1h").map(lambda pair: pair[1]), KeyedStream[str, int]
    )
    unjoined = keyed.join_interval(planes, how="left").late
    assert_type(unjoined, KeyedStream[str, LateRecord[str, Departed | int]])
    assert_type(keyed.join_as_of(planes).late, KeyedStream[str, LateRecord[str, Departed]])
    assert_type(
        keyed.join_window(planes, tumbling("1h")).map(lambda w: (w.start, w.value)),
        KeyedStream[str, tuple[datetime, tuple[Departed, int]]],
    )
    late = keyed.pattern(lambda f: f.delay > 60, lambda f: f.delay > 60, within="3h")
    assert_type(late.map(len), KeyedStream[str, int])
    assert_type(late.unfinished, KeyedStream[str, list[Departed]])
    assert_type(keyed.merge(planes), KeyedStream[str, Departed | int])
