"""What leaves a flow comes to its sinks: once where the sink can tell, again with the same id where it cannot; and slow ones slow the flow."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from starlette.requests import Request
from tests.flows.counting import config, statistics
from tests.http.serving import serve

from mycelia import Client, Log, ServerSentEvents, get_current_call, http, rpc
from mycelia.errors import ConfigError, FlowError
from mycelia.flow import (
    Broadcast,
    FlowOutput,
    SinkRecord,
    Stream,
    flow,
    json_lines,
    sql_table,
)
from mycelia.flow import delivery as delivery_module
from mycelia.flow.sinks.http_posts import PostSink
from mycelia.policies.retry import exponential
from mycelia.testing import eventually, run_services, take_dead_letters


@dataclass
class Passed:
    plane: str
    number: int


PASSED: Log[Passed] = Log("passed", of=Passed, key="plane", partitions=2)

FLIGHTS = [Passed(f"N{n % 5}", n) for n in range(1000)]


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "_PAUSES", exponential("10ms", max="50ms", jitter=False))


def service(output: Any, **options: Any) -> type:
    """A service that lets all flights through, to where `output` has them go."""

    class Passing:
        name = "passing"

        @flow(PASSED, **{"commit_every": "20ms", **options})
        def on(self, flights: Stream[Passed]) -> FlowOutput:
            given: FlowOutput = output(flights.key_by(lambda one: one.plane))
            return given

    return Passing


async def append(client: Client, flights: Sequence[Passed] = FLIGHTS) -> None:
    await asyncio.gather(*(client.append(PASSED, one) for one in flights))


def in_order(taken: Sequence[Passed]) -> bool:
    """Whether each plane's flights are in the order in which they were appended."""
    last: dict[str, int] = {}
    for one in taken:
        if one.number < last.get(one.plane, -1):
            return False
        last[one.plane] = one.number
    return True


# --- of a user's own ------------------------------------------------------------------------------


class Store:
    """Fails each third time."""

    def __init__(self) -> None:
        self.taken: dict[str, Passed] = {}
        self.calls = 0

    async def write(self, records: Sequence[SinkRecord[Passed]]) -> None:
        self.calls += 1
        if self.calls % 3 == 0:
            raise ConnectionError("away")
        self.taken.update({one.id: one.value for one in records})


async def test_writer_of_a_users_own_gets_all_records_in_order_of_each_key(
    broker: str, tmp_path: Path
) -> None:
    store = Store()
    passing = service(lambda flights: flights.to(store))
    async with run_services(passing, broker=broker, config=config(tmp_path)) as bed:
        for begin in range(0, 1000, 100):
            await append(bed.client, FLIGHTS[begin : begin + 100])
        await eventually(lambda: len(store.taken) == 1000, 20)
        await eventually(lambda: not statistics(bed, passing).standing_still, 30)
        told = statistics(bed, passing)

    assert in_order(list(store.taken.values()))
    assert sorted(one.number for one in store.taken.values()) == list(range(1000))
    assert told.waiting_bytes == 0
    assert told.delivered > 0


async def test_what_a_sink_has_not_had_at_a_stop_it_gets_from_the_next_owner(
    broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closed(Store):
        is_closed = True

        async def write(self, records: Sequence[SinkRecord[Passed]]) -> None:
            if self.is_closed:
                raise ConnectionError("away")
            self.taken.update({one.id: one.value for one in records})

    store = Closed()
    passing = service(lambda flights: flights.to(store))
    async with run_services(passing, broker=broker, config=config(tmp_path)) as bed:
        await append(bed.client)
        await eventually(lambda: statistics(bed, passing).records == 1000, 20)
        await eventually(lambda: len(statistics(bed, passing).standing_still) == 2, 20)
    store.is_closed = False
    async with run_services(passing, broker=broker, config=config(tmp_path)):
        await eventually(lambda: len(store.taken) == 1000, 20)

    assert in_order(list(store.taken.values()))


async def test_slow_sink_slows_its_source_and_memory_stays_bounded(
    broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing is taken, the flow takes no more of its log than fits; then it goes on to the end."""
    bound = 20_000
    monkeypatch.setattr(delivery_module, "MAX_WAITING_BYTES", bound)
    opened = asyncio.Event()
    store = Store()

    class Slow(Store):
        async def write(self, records: Sequence[SinkRecord[Passed]]) -> None:
            await opened.wait()
            store.taken.update({one.id: one.value for one in records})

    passing = service(lambda flights: flights.to(Slow()), commit_records=50)
    flights = [Passed(f"N{n % 5}", n) for n in range(10_000)]
    async with run_services(passing, broker=broker, config=config(tmp_path)) as bed:
        for begin in range(0, 10_000, 100):
            await append(bed.client, flights[begin : begin + 100])
        await eventually(lambda: statistics(bed, passing).waiting_bytes > bound, 20)
        before = statistics(bed, passing)
        taken: list[int] = []
        for _ in range(5):  # a commit comes every 20 ms
            await asyncio.sleep(0.1)
            taken.append(statistics(bed, passing).records)
        opened.set()
        await eventually(lambda: len(store.taken) == 10_000, 30)

    assert taken[-1] == taken[0], "it stands"
    assert taken[-1] < 5_000
    assert before.waiting_bytes < 2 * (bound + 2_000 * 100), "two partitions, and a batch of each"
    assert in_order(list(store.taken.values()))


# --- a table, and files ---------------------------------------------------------------------------


async def test_rows_of_a_table_are_those_of_the_flow(broker: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/results.db"
    passing = service(
        lambda flights: flights.to(sql_table(url, "last", key="plane", of=Passed, create=True))
    )
    async with run_services(passing, broker=broker, config=config(tmp_path)) as bed:
        await append(bed.client)
        await eventually(lambda: statistics(bed, passing).records == 1000, 20)
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT plane, number FROM last ORDER BY plane")).all()
    engine.dispose()

    assert [tuple(row) for row in rows] == [(f"N{n}", 995 + n) for n in range(5)]


async def test_rows_are_there_once_beside_the_state_in_one_postgresql(postgres_uri: str) -> None:
    passing = service(
        lambda flights: flights.to(sql_table(postgres_uri, "passed", of=Passed, create=True))
    )
    settings = {"mycelia": {"flows": {"state": postgres_uri}}}
    broker = "memory://rows-beside-the-state"
    async with Client(broker):
        for begin in (0, 500):
            async with run_services(passing, broker=broker, config=settings) as bed:
                await append(bed.client, FLIGHTS[begin : begin + 500])
                await eventually(lambda bed=bed: statistics(bed, passing).records == 500, 20)  # type: ignore[misc]
    engine = sa.create_engine(postgres_uri.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT number FROM passed ORDER BY number")).all()
    engine.dispose()

    assert [number for (number,) in rows] == list(range(1000))


async def test_table_that_is_missing_stops_the_start(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/results.db"
    passing = service(lambda flights: flights.to(sql_table(url, "last", key="plane")))
    with pytest.raises(ConfigError, match=r'table "last" of .*: there is none'):
        async with run_services(passing, config=config(tmp_path)):
            pass


async def test_lines_of_files_are_the_records_once(broker: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    passing = service(lambda flights: flights.to(json_lines(out, every="100ms", max_records=300)))
    for begin in (0, 500):
        async with run_services(passing, broker=broker, config=config(tmp_path)) as bed:
            await append(bed.client, FLIGHTS[begin : begin + 500])
            await eventually(lambda bed=bed: statistics(bed, passing).records == 500, 20)  # type: ignore[misc]
            await eventually(lambda: not list(out.glob("*.part")), 20)
    lines = [
        Passed(**json.loads(line))
        for file in sorted(out.iterdir())
        for line in file.read_text().splitlines()
    ]

    assert sorted(one.number for one in lines) == list(range(1000))
    assert in_order(lines)


# --- calls ----------------------------------------------------------------------------------------


class Pager:
    """Fails with what it is told to fail with, for as many calls."""

    name = "pager"
    failures = 0
    refused: frozenset[int] = frozenset()
    calls: ClassVar[list[tuple[str, Any]]] = []

    @rpc
    async def page(self, flight: Any) -> str:
        cls = type(self)
        call = get_current_call()
        assert call is not None
        cls.calls.append((str(call.context["idempotency_key"]), flight))
        if isinstance(flight, dict) and flight["number"] in cls.refused:
            raise ValueError("never")
        if cls.failures:
            cls.failures -= 1
            raise ZeroDivisionError("not well")
        return "paged"


def pager(**attributes: Any) -> type[Pager]:
    return type("Pager", (Pager,), {"calls": [], **attributes})


async def test_service_is_called_once_for_each_record_in_order_of_each_key(
    broker: str, tmp_path: Path
) -> None:
    called = pager()
    passing = service(lambda flights: flights.call("pager.page"))
    async with run_services(passing, broker=broker, config=config(tmp_path)) as bed:
        await append(bed.client)
        await eventually(lambda: "UnknownService" in str(statistics(bed, passing)), 20)
        async with run_services(called, broker=broker):
            await eventually(lambda: len(called.calls) == 1000, 20)
            await eventually(lambda: not statistics(bed, passing).waiting_bytes, 20)

    assert len({key for key, _ in called.calls}) == 1000
    assert in_order([Passed(**flight) for _, flight in called.calls])


async def test_call_that_failed_is_made_again_with_the_same_key(
    broker: str, tmp_path: Path
) -> None:
    called = pager(failures=200)
    passing = service(lambda flights: flights.call("pager.page", attempts=500))
    async with (
        run_services(called, broker=broker),
        run_services(passing, broker=broker, config=config(tmp_path)) as bed,
    ):
        await append(bed.client, FLIGHTS[:200])
        await eventually(lambda: statistics(bed, passing).records == 200, 20)
        await eventually(lambda: not statistics(bed, passing).waiting_bytes, 30)

    keys = Counter(key for key, _ in called.calls)
    assert len(called.calls) == 400
    assert len(keys) == 200
    firsts = list(dict.fromkeys(json.dumps(flight) for _, flight in called.calls))
    assert in_order([Passed(**json.loads(one)) for one in firsts])


async def test_batches_are_called_one_after_the_other(broker: str, tmp_path: Path) -> None:
    called = pager()
    passing = service(lambda flights: flights.call("pager.page", batch=64))
    async with (
        run_services(called, broker=broker),
        run_services(passing, broker=broker, config=config(tmp_path)) as bed,
    ):
        await append(bed.client)
        await eventually(lambda: sum(len(some) for _, some in called.calls) == 1000, 20)

    assert all(len(some) <= 64 for _, some in called.calls)
    assert in_order([Passed(**one) for _, some in called.calls for one in some])


async def test_record_that_a_service_refuses_may_become_a_dead_letter(
    broker: str, tmp_path: Path
) -> None:
    called = pager(refused=frozenset({3, 500}))
    passing = service(
        lambda flights: flights.call("pager.page", attempts=3), on_error="dead-letter"
    )
    async with (
        run_services(called, broker=broker),
        run_services(passing, broker=broker, config=config(tmp_path)) as bed,
    ):
        await append(bed.client)
        await eventually(lambda: statistics(bed, passing).dead == 2, 20)
        await eventually(lambda: not statistics(bed, passing).waiting_bytes, 20)
        letters = await take_dead_letters(bed.client.link, "log-passed--passing.on", 2)

    assert {flight["number"] for _, flight in called.calls} == set(range(1000))
    assert sorted(one.payload["number"] for one in letters) == [3, 500]
    assert {one.headers["x-flow-output"] for one in letters} == {"pager.page"}


# --- POST -----------------------------------------------------------------------------------------


class Receiver(ThreadingHTTPServer):
    """Answers each request with the next of `answers`, then 204."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.requests: list[tuple[str, Any]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?token=secret"


class Answering(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        receiver = self.server
        assert isinstance(receiver, Receiver)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with receiver.lock:
            receiver.requests.append((self.headers["Idempotency-Key"], body))
            status, headers = receiver.answers.pop(0) if receiver.answers else (204, {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.shutdown()
        thread.join()
        receiver.server_close()


async def test_records_are_posted_until_they_are_taken(tmp_path: Path) -> None:
    with receiving() as receiver:
        receiver.answers = [(503, {}), (429, {"Retry-After": "0"}), (500, {})] * 3
        passing = service(lambda flights: flights.post(receiver.url, headers={"X-Own": "1"}))
        async with run_services(passing, config=config(tmp_path)) as bed:
            await append(bed.client, FLIGHTS[:100])
            await eventually(lambda: len(receiver.requests) >= 109, 20)
            await eventually(lambda: not statistics(bed, passing).waiting_bytes, 20)
            told = repr(bed.container(passing).entrypoints)

    assert len(receiver.requests) == 109
    assert len({key for key, _ in receiver.requests}) == 100
    firsts = list(dict.fromkeys(json.dumps(one) for _, one in receiver.requests))
    assert in_order([Passed(**json.loads(one)) for one in firsts])
    assert "secret" not in told


@pytest.mark.parametrize("status", [200, 503])
async def test_answer_that_does_not_come_to_its_end_is_not_waited_for(status: int) -> None:
    was_asked = threading.Event()

    class Dripping(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"one")
            was_asked.wait(60)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Dripping)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    sink: PostSink[Any] = PostSink(
        url, batch=None, concurrency=1, timeout="50s", attempts=None, headers=None
    )
    try:
        async with asyncio.timeout(15):
            if status == 200:
                await sink._ask({}, "id")
            else:
                with pytest.raises(FlowError, match="status 503, 'one'"):
                    await sink._ask({}, "id")
    finally:
        was_asked.set()
        await sink.aclose()
        server.shutdown()
        server.server_close()


async def test_answer_whose_head_comes_in_drops_is_waited_for_as_long_as_the_timeout_says() -> None:
    is_over = threading.Event()

    class Dripping(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drops: ")
            while not is_over.wait(0.02):
                try:
                    self.wfile.write(b"x")
                except OSError:
                    is_over.set()  # it has gone

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Dripping)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    sink: PostSink[Any] = PostSink(
        f"http://127.0.0.1:{server.server_port}/",
        batch=None,
        concurrency=1,
        timeout="200ms",
        attempts=None,
        headers=None,
    )
    try:
        async with asyncio.timeout(10):
            with pytest.raises(TimeoutError, match=r"not answered in time|timed out"):
                await sink._ask({}, "id")
        assert await asyncio.to_thread(is_over.wait, 10)  # and the connection is closed
    finally:
        is_over.set()
        await sink.aclose()
        server.shutdown()
        server.server_close()


async def test_refused_post_stops_its_output_or_becomes_a_dead_letter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with receiving() as receiver:
        receiver.answers = [(422, {})] * 3
        passing = service(lambda flights: flights.post(receiver.url, batch=10))
        async with run_services(passing, config=config(tmp_path / "a")) as bed:
            await append(bed.client, FLIGHTS[:10])
            await eventually(lambda: not receiver.answers, 20)
            await eventually(lambda: sum(len(b) for _, b in receiver.requests[3:]) >= 5, 20)
        assert "status 422" in caplog.text
        assert "secret" not in caplog.text

        receiver.answers = [(301, {"Location": receiver.url})]
        burying = service(
            lambda flights: flights.post(receiver.url, batch=10), on_error="dead-letter"
        )
        async with run_services(burying, config=config(tmp_path / "b")) as bed:
            await append(bed.client, [FLIGHTS[0]])
            await eventually(lambda: statistics(bed, burying).dead == 1, 20)


# --- who looks on ---------------------------------------------------------------------------------


class Showing:
    name = "showing"
    live: Broadcast[Passed] = Broadcast(buffer=100, keep=2)

    @flow(PASSED, commit_every="20ms")
    def on(self, flights: Stream[Passed]) -> FlowOutput:
        return flights.to(self.live)

    @http("GET", "/live")
    async def show(self, request: Request) -> ServerSentEvents:
        return ServerSentEvents(self.live.follow())


async def test_browsers_see_what_leaves_and_slow_ones_hold_nobody_up(tmp_path: Path) -> None:
    async with (
        serve(Showing, flows={"state": str(tmp_path)}) as served,
        Client("memory://http") as client,
    ):
        slow = Showing.live.follow()
        reading = asyncio.ensure_future(anext(slow))
        async with served.client.stream("GET", "/live") as response:
            lines = response.aiter_lines()
            await eventually(lambda: Showing.live.viewers == 2, 30)
            seen: list[Any] = []
            for begin in range(0, 1000, 50):  # what a page that keeps up has room for
                await append(client, FLIGHTS[begin : begin + 50])
                while len(seen) < begin + 50:
                    line = await anext(lines)
                    if line:
                        seen.append(json.loads(line.removeprefix("data: ")))
        first = await reading
        rest = [await anext(slow) for _ in range(100)]
        late = Showing.live.follow()
        begins_with = [await anext(late), await anext(late)]
        await late.aclose()
        await slow.aclose()

    assert sorted(one["number"] for one in seen) == list(range(1000))
    assert first == Passed(**seen[0])
    assert rest == [Passed(**one) for one in seen[-100:]], "the newest"
    assert begins_with == rest[-2:]
    assert Showing.live.missed == 1000 - 1 - 100, "and only the slow one has missed any"
    assert Showing.live.viewers == 0
