"""Access lines: one for each call of every kind, and what stands in it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from typing import Any

import pytest
from tests.runtime.conftest import Invoke, Serve

from mycelia import Client, EventDispatcher, RpcProxy, event_handler, rpc, timer
from mycelia.amqp import Link, Message, Properties
from mycelia.call import Call, CallKind, Direction, Outcome, Target
from mycelia.errors import ConfigError, IncorrectSignature, MethodNotFound, RemoteError, RpcTimeout
from mycelia.log_event import LogEvent
from mycelia.runtime import Settings
from mycelia.runtime.access_log import AccessLog
from mycelia.runtime.settings import AccessLogSection
from mycelia.testing import eventually

ON = {"mycelia": {"access_log": True}}


def with_arguments(**more: Any) -> dict[str, Any]:
    return {"mycelia": {"access_log": {"arguments": True, **more}}}


class Lines:
    """The access lines so far."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def all(self) -> list[tuple[str, dict[str, Any]]]:
        return [
            (record.levelname, dict(record.msg.fields))
            for record in self._caplog.records
            if record.name == "mycelia.access_log" and isinstance(record.msg, LogEvent)
        ]

    def of(self, call: str) -> list[tuple[str, dict[str, Any]]]:
        return [line for line in self.all() if line[1].get("call") == call]

    async def one(self, call: str) -> tuple[str, dict[str, Any]]:
        await eventually(lambda: bool(self.of(call)))
        (line,) = self.of(call)
        return line


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    caplog.set_level("INFO")
    return Lines(caplog)


class Shop:
    name = "shop"
    me = RpcProxy("shop")
    emit = EventDispatcher()

    @rpc
    async def price(self, item: str, n: int = 1) -> int:
        return 42 * n

    @rpc
    def stock(self, item: str) -> int:
        return 7

    @rpc(expected_exceptions=KeyError)
    async def missing(self) -> None:
        raise KeyError("x")

    @rpc
    def broken(self) -> None:
        raise ValueError("no")

    @rpc
    async def asks(self) -> Any:
        return await self.me.price("tea")

    @rpc
    async def tells(self) -> None:
        await self.emit("told", {"n": 1})

    @event_handler("shop", "told")
    def on_told(self, payload: Any) -> None: ...

    @rpc(timeout=0.05)
    async def slow(self) -> None:
        await asyncio.sleep(20)

    @rpc(timeout=0.05)
    def slow_in_thread(self) -> None:
        time.sleep(0.5)

    @rpc(sensitive_arguments=("card", "user.pin"))
    def pay(self, user: dict[str, Any], card: str, note: str = "") -> None: ...


async def test_a_line_says_what_came_of_the_call_and_where_it_came_from(
    serve: Serve, invoke: Invoke, lines: Lines
) -> None:
    await serve(Shop, config=ON)
    await invoke("shop", "asks")

    level, line = await lines.one("shop.price")
    _, outer = await lines.one("shop.asks")
    assert level == "INFO"
    assert (line["kind"], line["outcome"], line["attempt"]) == ("rpc", "ok", 1)
    assert line["caller"] == outer["call_id"]
    assert outer["caller"].startswith("tester.call.")
    assert line["call_id"].startswith("shop.price.")
    assert 0 <= line["duration_ms"] <= outer["duration_ms"]
    assert 0 <= line["waited_ms"] < 5000
    assert line["in_bytes"] == len(json.dumps({"args": ["tea"], "kwargs": {}}).replace(" ", ""))
    assert line["out_bytes"] == len('{"result":42,"error":null}')
    assert not {"error", "arguments", "queued_s"} & line.keys()


@pytest.mark.parametrize(
    ("method", "args", "level", "outcome", "error"),
    [
        ("price", ["tea"], "INFO", "ok", None),
        ("stock", ["tea"], "INFO", "ok", None),
        ("missing", [], "WARNING", "raised", "KeyError"),
        ("broken", [], "ERROR", "failed", "ValueError"),
        ("price", [], "WARNING", "refused", "IncorrectSignature"),
        ("nothing", [], "WARNING", "refused", "MethodNotFound"),
        ("slow", [], "ERROR", "timed_out", "HandlerTimeout"),
        ("slow_in_thread", [], "ERROR", "timed_out", "HandlerTimeout"),
    ],
)
async def test_each_outcome_has_its_level(
    serve: Serve,
    invoke: Invoke,
    lines: Lines,
    method: str,
    args: list[Any],
    level: str,
    outcome: str,
    error: str | None,
) -> None:
    await serve(Shop, config=ON)
    try:
        await invoke("shop", method, *args)
    except (RemoteError, IncorrectSignature, MethodNotFound):
        assert outcome != "ok"

    found_level, line = await lines.one(f"shop.{method}")
    assert (found_level, line["outcome"], line.get("error")) == (level, outcome, error)


async def test_a_request_that_came_too_late_has_its_line(
    serve: Serve, invoke: Invoke, link: Link, lines: Lines
) -> None:
    await serve(Shop, config=ON)
    headers = {"nameko.deadline_ms": 1}
    properties = Properties("application/json", "utf-8", headers, reply_to="x", correlation_id="1")
    body = b'{"args": ["tea"], "kwargs": {}}'
    await link.publish(Message("nameko-rpc", "shop.price", body, properties), timeout=5)

    level, line = await lines.one("shop.price")
    assert (level, line["outcome"], line["duration_ms"]) == ("WARNING", "expired", 0.0)


async def test_events_and_ticks_have_lines_and_retries_their_attempt(
    serve: Serve, invoke: Invoke, lines: Lines
) -> None:
    class Flaky:
        name = "flaky"
        tries = 0

        @event_handler("shop", "told", requeue_on_error=True)
        async def told(self, payload: Any) -> None:
            Flaky.tries += 1
            if Flaky.tries < 3:
                raise ValueError(Flaky.tries)

        @timer(0.01)
        def tick(self) -> None: ...

    await serve(Shop, Flaky, config=ON)
    await invoke("shop", "tells")
    await eventually(lambda: len(lines.of("flaky.told")) == 3 and bool(lines.of("flaky.tick")))

    told = lines.of("flaky.told")
    assert [(level, line["outcome"], line["attempt"]) for level, line in told] == [
        ("ERROR", "failed", 1),
        ("ERROR", "failed", 2),
        ("INFO", "ok", 3),
    ]
    assert {line["kind"] for _, line in told} == {"event"}
    assert 0 <= told[0][1]["queued_s"] < 60
    _, tick = lines.of("flaky.tick")[0]
    assert tick["kind"] == "timer"
    assert not {"caller", "in_bytes", "queued_s"} & tick.keys()


async def test_a_worker_that_a_stop_cancels_has_its_line(
    serve: Serve, client: Client, lines: Lines
) -> None:
    class Lasting:
        name = "lasting"

        @rpc
        async def wait(self) -> None:
            await asyncio.Event().wait()

    runner = await serve(Lasting, config=ON)
    call = asyncio.ensure_future(client.call("lasting", "wait", timeout=2))
    await eventually(
        lambda: runner.statistics().services["lasting"].lanes["lasting.wait"].active == 1
    )
    await runner.stop(grace=0)
    with pytest.raises(RpcTimeout):
        await call

    level, line = await lines.one("lasting.wait")
    assert (level, line["outcome"]) == ("WARNING", "cancelled")


async def test_a_thousand_calls_at_once_have_a_line_each(
    serve: Serve, invoke: Invoke, lines: Lines
) -> None:
    await serve(Shop, config=ON)
    calls = (invoke("shop", "stock" if n % 2 else "price", "tea") for n in range(1000))
    await asyncio.gather(*calls)

    await eventually(lambda: len(lines.all()) == 1000)
    assert Counter(line["call"] for _, line in lines.all()) == {
        "shop.stock": 500,
        "shop.price": 500,
    }
    assert len({line["call_id"] for _, line in lines.all()}) == 1000


async def test_off_it_is_not_there(serve: Serve, invoke: Invoke, lines: Lines) -> None:
    for config in ({}, {"mycelia": {"access_log": False}}, {"mycelia": {"access_log": None}}):
        runner = await serve(Shop, config=config)
        target = Target(Direction.INBOUND, CallKind.RPC, "shop", "price")
        (container,) = runner.containers
        assert container.middleware_for(target) == ()
        await runner.stop()
    assert lines.all() == []


# --- arguments -------------------------------------------------------------------------------------


async def test_arguments_are_there_only_when_asked_for_and_without_what_is_sensitive(
    serve: Serve, invoke: Invoke, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    await serve(Shop, config=with_arguments())
    await invoke(
        "shop",
        "pay",
        {"name": "ada", "pin": 4711, "auth_token": "t0p"},
        card="0815",
        note="n" * 9999,
    )

    _, line = await lines.one("shop.pay")
    assert line["arguments"] == {
        "user": {"name": "ada", "pin": "***", "auth_token": "***"},
        "card": "***",
        "note": "n" * 200 + "…",
    }
    assert not [secret for secret in ("4711", "0815", "t0p") if secret in caplog.text]


async def test_no_value_makes_a_second_line_or_hides_in_one(
    serve: Serve, invoke: Invoke, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    await serve(Shop, config=with_arguments())
    await invoke("shop", "stock", "x\nERROR forged \x1b[2J\u2028 done")

    await lines.one("shop.stock")
    (text,) = [r.getMessage() for r in caplog.records if r.name == "mycelia.access_log"]
    assert text.splitlines() == [text]
    assert "\x1b" not in text
    assert "\\n" in text


async def test_a_caller_s_id_of_any_form_is_shown_cut_or_not_at_all(
    serve: Serve, link: Link, lines: Lines
) -> None:
    await serve(Shop, config=ON)
    stacks: list[Any] = ["text", [], [5], ["a.b.1", "x" * 50_000], {"a": 1}]
    for stack in stacks:
        properties = Properties("application/json", "utf-8", {"nameko.call_id_stack": stack})
        await link.publish(Message("shop.events", "told", b"1", properties), timeout=5)
    await eventually(lambda: len(lines.of("shop.on_told")) == len(stacks))

    callers = {line.get("caller") for _, line in lines.of("shop.on_told")}
    assert callers == {None, "x" * 300}


# --- which ones ------------------------------------------------------------------------------------


def write(
    section: AccessLogSection, chances: list[float], *outcomes: Outcome, took: float = 0.0
) -> int:
    """How many lines come of these outcomes."""
    access_log = AccessLog(section, chance=lambda: chances.pop(0))
    target = Target(Direction.INBOUND, CallKind.RPC, "s", "m")
    around = access_log.middleware(Direction.INBOUND, target)
    assert around is not None
    written: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = written.append  # type: ignore[method-assign]
    logger = logging.getLogger("mycelia.access_log")
    logger.addHandler(handler)
    logger.setLevel("INFO")
    try:
        for outcome in outcomes:

            async def endpoint(call: Call, outcome: Outcome = outcome) -> Outcome:
                return outcome

            call = Call(target, ((), {}), started_at=time.monotonic() - took)
            with pytest.raises(StopIteration):
                around(call, endpoint).send(None)  # type: ignore[attr-defined]
    finally:
        logger.removeHandler(handler)
        logger.setLevel("NOTSET")
    return len(written)


def test_successes_are_sampled_and_failures_never() -> None:
    sampled = AccessLogSection(sample=0.25)
    ok, failed, refused = (
        Outcome(1),
        Outcome(error=ValueError()),
        Outcome(error=ValueError(), is_refused=True),
    )

    assert write(sampled, [0.1, 0.25, 0.9, 0.24], ok, ok, ok, ok) == 2
    assert write(sampled, [], failed, refused) == 2
    assert write(AccessLogSection(sample=0.0), [0.0] * 3, ok, ok, ok, failed) == 1
    assert write(AccessLogSection(), [], ok, ok) == 2


def test_slow_successes_are_always_written() -> None:
    section = AccessLogSection(sample=0.0, slower_than=1.0)

    assert write(section, [0.5], Outcome(1), took=0.5) == 0
    assert write(section, [], Outcome(1), took=1.5) == 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"sample": 1.5}, "sample must be between 0 and 1"),
        ({"slower_than": -1}, "slower_than must be 0 or more"),
        ({"samples": 0.5}, '"mycelia.access_log.samples" is unknown. Did you mean "sample"'),
        ("yes", "mycelia.access_log"),
    ],
)
def test_a_setting_that_cannot_be_is_named(value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Settings.from_config({"mycelia": {"access_log": value}})
