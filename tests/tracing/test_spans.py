"""Spans of services: who is whose parent, what they are named, what they say of errors."""

from __future__ import annotations

import asyncio
import re
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from tests.runtime.conftest import Invoke, Serve
from tests.runtime.dead_letter_box import read_dead_letters

from mycelia import (
    Batch,
    Call,
    CallKind,
    Client,
    EventDispatcher,
    Next,
    Outcome,
    Publisher,
    Queue,
    Retry,
    RpcProxy,
    Tracer,
    consume,
    context,
    event_handler,
    fixed,
    get_current_call,
    links_of,
    rpc,
    timer,
    trace_calls,
)
from mycelia.amqp import Message, Properties
from mycelia.call import Direction, Target, compose
from mycelia.errors import RemoteError
from mycelia.providers.tracing.layer import span_layer
from mycelia.testing import ReceivedSpan, SpanReceiver

Spans = dict[str, ReceivedSpan]


class Back:
    name = "back"

    @rpc
    async def get(self) -> str:
        return "got"

    @rpc(expected_exceptions=LookupError)
    async def fail(self, how: str) -> None:
        if how == "expected":
            raise LookupError("no such thing")
        raise ZeroDivisionError("ours")

    @rpc
    async def baggage_of(self) -> list[Any]:
        return [baggage.get_baggage("tenant"), context.baggage.get("tenant")]


class Front:
    name = "front"
    back = RpcProxy("back")
    emit = EventDispatcher()
    tracer = Tracer()

    @rpc
    async def ask(self) -> str:
        with self.tracer.start_as_current_span("own", attributes={"why": "shown"}):
            found: str = await self.back.get()
        await self.emit("asked", {"n": 1})
        return found

    @rpc
    def ask_in_thread(self) -> Any:
        with trace.get_tracer("a.library").start_as_current_span("library"):
            return self.back.get()

    @rpc
    async def ask_both(self) -> Any:
        return await asyncio.gather(self.back.get(), self.back.get())

    @rpc
    async def fail(self, how: str) -> None:
        await self.back.fail(how)

    @rpc
    async def with_baggage(self) -> Any:
        context.baggage["tenant"] = "acme"
        return await self.back.baggage_of()

    @event_handler("front", "asked")
    async def heard(self, event: dict[str, Any]) -> None:
        await self.back.get()


def traced(receiver: SpanReceiver, **more: Any) -> dict[str, Any]:
    return {"mycelia": {"tracing": {"endpoint": receiver.endpoint, **more}}}


def named(spans: list[ReceivedSpan]) -> Spans:
    return {f"{span.kind} {span.service}: {span.name}": span for span in spans}


def has(*names: str) -> Any:
    return lambda spans: set(names) <= set(named(spans))


async def wait_for(receiver: SpanReceiver, is_enough: Any) -> Spans:
    return named(await asyncio.to_thread(receiver.wait_for, is_enough))


async def test_one_trace_goes_through_calls_events_and_spans_of_the_user_s_own(
    receiver: SpanReceiver, serve: Serve, invoke: Invoke
) -> None:
    await serve(Front, Back, config=traced(receiver))

    assert await invoke("front", "ask") == "got"

    handled = "CONSUMER front: process front.heard"
    spans = await wait_for(receiver, has(handled, "SERVER front: front/ask"))
    ask, own = spans["SERVER front: front/ask"], spans["INTERNAL front: own"]
    published = spans["PRODUCER front: publish front.asked"]
    assert ask.parent_id is None
    assert own.parent_id == ask.span_id
    assert published.parent_id == ask.span_id
    assert spans[handled].parent_id == published.span_id
    assert {span.trace_id for span in spans.values()} == {ask.trace_id}
    both = [span for span in receiver.spans if span.name == "back/get" and span.kind == "CLIENT"]
    assert {span.parent_id for span in both} == {own.span_id, spans[handled].span_id}
    served = [span for span in receiver.spans if span.kind == "SERVER" and span.service == "back"]
    assert {span.parent_id for span in served} == {span.span_id for span in both}
    assert own.attributes == {"why": "shown"}


async def test_spans_say_what_the_conventions_ask_for(
    receiver: SpanReceiver, serve: Serve, invoke: Invoke
) -> None:
    await serve(Front, Back, config=traced(receiver))
    await invoke("front", "ask")

    spans = await wait_for(receiver, has("CONSUMER front: process front.heard"))
    served = spans["SERVER back: back/get"].attributes
    assert served["rpc.system"] == "mycelia"
    assert (served["rpc.service"], served["rpc.method"]) == ("back", "get")
    assert served["messaging.message.conversation_id"]
    published = spans["PRODUCER front: publish front.asked"].attributes
    assert published["messaging.system"] == "rabbitmq"
    assert published["messaging.operation.type"] == "send"
    assert published["messaging.destination.name"] == "front.events:asked"
    handled = spans["CONSUMER front: process front.heard"].attributes
    assert handled["messaging.operation.type"] == "process"
    assert handled["messaging.destination.name"] == "front.events:asked"
    assert re.fullmatch(r"[0-9a-f-]{36}|[0-9a-f]{32}", handled["messaging.message.id"])
    assert handled["mycelia.call_id"].startswith("front.heard.")


async def test_threads_keep_their_place_in_the_trace(
    receiver: SpanReceiver, serve: Serve, invoke: Invoke
) -> None:
    await serve(Front, Back, config=traced(receiver))

    assert await invoke("front", "ask_in_thread") == "got"

    spans = await wait_for(receiver, has("SERVER front: front/ask_in_thread"))
    library = spans["INTERNAL front: library"]
    assert library.parent_id == spans["SERVER front: front/ask_in_thread"].span_id
    assert spans["CLIENT front: back/get"].parent_id == library.span_id


async def test_calls_side_by_side_are_siblings(
    receiver: SpanReceiver, serve: Serve, invoke: Invoke
) -> None:
    await serve(Front, Back, config=traced(receiver))

    await invoke("front", "ask_both")

    spans = await wait_for(receiver, has("SERVER front: front/ask_both"))
    above = spans["SERVER front: front/ask_both"].span_id
    calls = [span for span in receiver.spans if span.kind == "CLIENT"]
    assert [span.parent_id for span in calls] == [above, above]


async def test_error_of_the_service_is_told_with_its_traceback(
    receiver: SpanReceiver, serve: Serve, invoke: Invoke
) -> None:
    await serve(Front, Back, config=traced(receiver))

    with pytest.raises(RemoteError):
        await invoke("front", "fail", "unexpected")

    spans = await wait_for(receiver, has("SERVER front: front/fail"))
    server, caller = spans["SERVER back: back/fail"], spans["CLIENT front: back/fail"]
    assert server.error == "ZeroDivisionError: ours"
    assert server.attributes["error.type"] == "ZeroDivisionError"
    [(name, said)] = server.events
    assert name == "exception"
    assert said["exception.type"] == "ZeroDivisionError"
    assert "raise ZeroDivisionError" in said["exception.stacktrace"]
    assert caller.error == "ZeroDivisionError: ZeroDivisionError ours"


async def test_expected_error_is_the_caller_s(
    receiver: SpanReceiver, serve: Serve, invoke: Invoke
) -> None:
    await serve(Front, Back, config=traced(receiver))

    with pytest.raises(RemoteError):
        await invoke("front", "fail", "expected")

    spans = await wait_for(receiver, has("SERVER front: front/fail"))
    assert spans["SERVER back: back/fail"].error is None
    assert spans["SERVER back: back/fail"].attributes["error.type"] == "LookupError"
    assert spans["CLIENT front: back/fail"].error == "LookupError: LookupError no such thing"


async def test_what_is_refused_is_a_span_too(
    receiver: SpanReceiver, serve: Serve, invoke: Invoke
) -> None:
    await serve(Back, config=traced(receiver))

    with pytest.raises(Exception, match="takes"):
        await invoke("back", "get", "one too many")

    spans = await wait_for(receiver, has("SERVER back: back/get"))
    assert spans["SERVER back: back/get"].attributes["mycelia.refused"] is True


async def test_each_attempt_is_a_span_of_the_same_trace(
    receiver: SpanReceiver, serve: Serve, uri: str
) -> None:
    attempts: list[int] = []
    done = asyncio.Event()

    class Shaky:
        name = "shaky"

        @event_handler("feed", "came", requeue_on_error=True)
        async def take(self, event: Any) -> None:
            attempts.append(len(attempts) + 1)
            if len(attempts) < 3:
                raise ConnectionError("not yet")
            done.set()

    await serve(Shaky, config=traced(receiver))
    with trace.get_tracer("a program").start_as_current_span("program") as program:
        async with Client(uri, middleware=[trace_calls()]) as tracing:
            await tracing.publish("feed", "came", {"n": 1})
    await asyncio.wait_for(done.wait(), 30)

    await asyncio.to_thread(
        receiver.wait_for, lambda spans: sum(s.kind == "CONSUMER" for s in spans) == 3
    )
    handled = sorted(
        (span for span in receiver.spans if span.kind == "CONSUMER"), key=lambda span: span.start
    )
    [published] = [span for span in receiver.spans if span.kind == "PRODUCER"]
    assert {span.parent_id for span in handled} == {published.span_id}
    assert [span.attributes.get("mycelia.attempt") for span in handled] == [None, 2, 3]
    assert [span.error for span in handled] == ["ConnectionError: not yet"] * 2 + [None]
    assert int(published.trace_id, 16) == program.get_span_context().trace_id


async def test_what_is_published_for_later_is_handled_in_its_trace(
    receiver: SpanReceiver, serve: Serve, rabbit_uri: str
) -> None:
    """On a real broker: the headers go through its delay queues and the dead-lettering between them."""

    class Shop:
        name = "shop"
        emit = EventDispatcher()
        publish = Publisher(queue=Queue("orders"))
        bells = EventDispatcher().blocking

        @rpc
        async def remind(self) -> None:
            await self.emit.later("750ms", "reminder", {"n": 1})
            await self.publish.later("750ms", {"n": 2})

        @rpc
        def ring(self) -> None:
            self.bells.later("750ms", "rang", {"n": 3})

        @event_handler("shop", "reminder")
        async def reminded(self, event: Any) -> None: ...

        @event_handler("shop", "rang")
        async def rung(self, event: Any) -> None: ...

        @consume(Queue("orders"))
        async def ordered(self, event: Any) -> None: ...

    await serve(Shop, config={**traced(receiver), "AMQP_URI": rabbit_uri})
    async with Client(rabbit_uri, timeout=10, middleware=[trace_calls()]) as client:
        await client.call("shop", "remind")
        await client.call("shop", "ring")
        with trace.get_tracer("a program").start_as_current_span("program") as program:
            await client.publish("shop", "rang", {"n": 4}, after="750ms")
    await asyncio.to_thread(
        receiver.wait_for, lambda spans: sum(s.kind == "CONSUMER" for s in spans) == 4
    )

    by_id = {span.span_id: span for span in receiver.spans}
    handled = [span for span in receiver.spans if span.kind == "CONSUMER"]
    published = [by_id[span.parent_id or ""] for span in handled]
    assert [one.kind for one in published] == ["PRODUCER"] * 4
    assert [one.trace_id for one in published] == [one.trace_id for one in handled]
    methods = {by_id[one.parent_id].name for one in published if one.parent_id in by_id}
    assert {"shop/remind", "shop/ring"} <= methods
    assert f"{program.get_span_context().trace_id:032x}" in {one.trace_id for one in handled}
    assert len({span.span_id for span in published}) == 4
    pauses = [one.start - before.start for one, before in zip(handled, published, strict=True)]
    assert min(pauses) >= 0.7e9


@pytest.mark.parametrize(
    ("retry", "expiration", "said"),
    [
        (None, None, ["handler_error", 1]),
        (Retry(attempts=2, backoff=fixed(0.25)), None, ["too_many_attempts", 2]),
        (Retry(attempts=9, backoff=fixed("1h")), 60.0, ["expired", 1]),
    ],
    ids=["no retry", "last attempt", "would be too late"],
)
async def test_span_of_the_attempt_says_why_its_message_is_a_dead_letter(
    receiver: SpanReceiver,
    serve: Serve,
    uri: str,
    retry: Retry | None,
    expiration: float | None,
    said: list[Any],
) -> None:
    class Doomed:
        name = "doomed"

        @event_handler("feed", "came", retry=retry)
        async def take(self, event: Any) -> None:
            raise ConnectionError("never")

    await serve(Doomed, config=traced(receiver))
    async with Client(uri) as client:
        await client.publish("feed", "came", {"n": 1}, expiration=expiration)

    await wait_for(receiver, lambda spans: len(spans) == said[1])
    *before, last = sorted(receiver.spans, key=lambda span: span.start)
    assert [span.attributes["mycelia.settlement"] for span in before] == ["redeliver"] * len(before)
    assert [span for span in before if "mycelia.dead_letter.reason" in span.attributes] == []
    assert last.attributes["mycelia.settlement"] == "deadletter"
    assert last.attributes["error.type"] == "ConnectionError"
    told = [last.attributes[f"mycelia.dead_letter.{name}"] for name in ("reason", "attempts")]
    assert told == said


async def test_span_of_what_cannot_be_read_says_that_it_is_a_dead_letter(
    receiver: SpanReceiver, serve: Serve
) -> None:
    class Reader:
        name = "reader"

        @event_handler("feed", "came")
        async def take(self, event: Any) -> None: ...

    runner = await serve(Reader, config=traced(receiver))
    broken = Properties(content_type="application/json", content_encoding="utf-8")
    await runner.host.link.publish(Message("feed.events", "came", b"{", broken))

    await wait_for(receiver, lambda spans: len(spans) == 1)
    [span] = receiver.spans
    assert span.attributes["mycelia.refused"] is True
    assert span.attributes["mycelia.dead_letter.reason"] == "undecodable"


async def test_worker_that_is_given_up_has_a_span_that_ends(
    receiver: SpanReceiver, serve: Serve, uri: str
) -> None:
    """Settled before it ends: it will not be cancelled."""
    stuck = asyncio.Event()

    class Stuck:
        name = "stuck"

        @event_handler("feed", "came", retry=None, timeout=0.05)
        async def take(self, event: Any) -> None:
            while not stuck.is_set():
                try:
                    await stuck.wait()
                except asyncio.CancelledError:
                    continue

    runner = await serve(Stuck, config=traced(receiver))
    async with Client(uri) as client:
        await client.publish("feed", "came", 1)
    await read_dead_letters(runner.host.link, "evt-feed-came--stuck.take", 1)
    assert receiver.spans == []
    stuck.set()

    await wait_for(receiver, lambda spans: len(spans) == 1)
    [span] = receiver.spans
    assert span.attributes["mycelia.dead_letter.reason"] == "handler_error"


async def test_baggage_of_opentelemetry_and_ours_are_one(
    receiver: SpanReceiver, serve: Serve, invoke: Invoke
) -> None:
    await serve(Front, Back, config=traced(receiver))
    assert await invoke("front", "with_baggage") == ["acme", "acme"]


async def test_a_tick_begins_a_trace(receiver: SpanReceiver, serve: Serve) -> None:
    class Ticking:
        name = "ticking"
        emit = EventDispatcher()

        @timer(interval=3600, eager=True)
        async def tick(self) -> None:
            await self.emit("ticked", None)

    await serve(Ticking, config=traced(receiver))

    spans = await wait_for(receiver, has("INTERNAL ticking: ticking.tick"))
    tick = spans["INTERNAL ticking: ticking.tick"]
    assert tick.parent_id is None
    assert spans["PRODUCER ticking: publish ticking.ticked"].parent_id == tick.span_id


async def test_what_is_not_sampled_makes_no_span_and_stays_so(
    receiver: SpanReceiver, serve: Serve, invoke: Invoke
) -> None:
    flags: list[str] = []

    async def watch(call: Call, next: Next) -> Outcome:
        flags.append(call.context["traceparent"][-2:])
        return await next(call)

    runner = await serve(Front, Back, config=traced(receiver, sample=0.0), inbound=(watch,))
    await invoke("front", "ask")
    await runner.stop()  # all that there is has left then

    assert {int(flag, 16) & 1 for flag in flags} == {0}
    assert receiver.spans == []


async def test_a_program_s_trace_is_kept_where_the_program_keeps_it(
    receiver: SpanReceiver, serve: Serve, uri: str
) -> None:
    await serve(Back, config=traced(receiver, sample=0.0))
    parent = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"

    async with Client(uri, context={"traceparent": parent}) as client:
        await client.call("back", "get")

    spans = await wait_for(receiver, has("SERVER back: back/get"))
    assert spans["SERVER back: back/get"].trace_id == "a" * 32
    assert spans["SERVER back: back/get"].parent_id == "b" * 16


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "00-1-2-3",
        "x" * 10_000,
        7,
        b"00",
        "00-" + "0" * 32 + "-" + "0" * 16 + "-01",
        None,
        ["a"],
    ],
)
async def test_a_traceparent_that_is_none_begins_a_new_trace(
    receiver: SpanReceiver, serve: Serve, uri: str, traceparent: Any
) -> None:
    await serve(Back, config=traced(receiver))
    async with Client(uri, context={"traceparent": traceparent}) as client:
        assert await client.call("back", "get") == "got"
    spans = await wait_for(receiver, has("SERVER back: back/get"))
    assert spans["SERVER back: back/get"].parent_id is None


async def test_errors_that_no_protobuf_takes_are_told_all_the_same(
    receiver: SpanReceiver, serve: Serve, client: Client
) -> None:
    class Hostile:
        name = "hostile"

        @rpc
        async def half(self) -> None:
            raise ValueError("half a character: \ud800" + "x" * 1_000_000)

        @rpc
        async def mute(self) -> None:
            class Mute(Exception):
                def __str__(self) -> str:
                    raise RuntimeError("no text")

            raise Mute

    await serve(Hostile, config=traced(receiver))
    for method in ("half", "mute"):
        with pytest.raises(RemoteError):
            await client.call("hostile", method)
    spans = await wait_for(
        receiver, has("SERVER hostile: hostile/half", "SERVER hostile: hostile/mute")
    )
    half = spans["SERVER hostile: hostile/half"].error
    assert half is not None
    assert half.startswith("ValueError: half a character: \\ud800xx")
    assert len(half) < 5000


async def test_nothing_stands_around_calls_where_nothing_is_traced(serve: Serve) -> None:
    runner = await serve(Front, Back)
    for container in runner.containers:
        for entrypoint in container.entrypoints:
            assert container.middleware_for(entrypoint.target) == ()


def test_kinds_of_calls_all_have_a_kind_of_span() -> None:
    from mycelia.providers.tracing.layer import _KINDS

    assert {kind for _, kind in _KINDS} == set(CallKind) - {CallKind.TIMER, CallKind.OTHER}


async def test_program_that_does_not_sample_keeps_its_services_from_it(
    receiver: SpanReceiver, serve: Serve, uri: str
) -> None:
    await serve(Front, Back, config=traced(receiver))
    unsampled = TracerProvider(sampler=ALWAYS_OFF).get_tracer("a program")

    async with Client(uri, middleware=[trace_calls()]) as client:
        with unsampled.start_as_current_span("program"):
            await client.call("front", "ask")
        assert await client.call("back", "get") == "got"  # a trace of its own, which ends the wait

    # The program's own span leaves when it likes, by another way than its service's.
    await wait_for(receiver, lambda spans: {"CLIENT", "SERVER"} <= {span.kind for span in spans})
    assert [span.name for span in receiver.spans if "front" in span.name] == []
    assert {span.kind for span in receiver.spans} == {"CLIENT", "SERVER"}


async def test_baggage_of_opentelemetry_travels_where_nothing_is_sampled(
    receiver: SpanReceiver, serve: Serve, invoke: Invoke
) -> None:
    class Giving:
        name = "giving"
        back = RpcProxy("back")

        @rpc
        async def give(self) -> Any:
            token = otel_context.attach(baggage.set_baggage("tenant", "acme"))
            try:
                return await self.back.baggage_of()
            finally:
                otel_context.detach(token)

    await serve(Giving, Back, config=traced(receiver, sample=0.0))

    assert await invoke("giving", "give") == ["acme", "acme"]


@pytest.mark.parametrize(("name", "value"), [("", "x"), ("tenant", "x" * 10_000)])
async def test_baggage_that_no_header_holds_is_left_out_and_fails_no_call(
    receiver: SpanReceiver,
    serve: Serve,
    invoke: Invoke,
    caplog: pytest.LogCaptureFixture,
    name: str,
    value: str,
) -> None:
    class Giving:
        name = "giving"
        back = RpcProxy("back")

        @rpc
        async def give(self) -> Any:
            token = otel_context.attach(baggage.set_baggage(name, value))
            try:
                return await self.back.get()
            finally:
                otel_context.detach(token)

    await serve(Giving, Back, config=traced(receiver))

    assert await invoke("giving", "give") == "got"
    assert "context_left_out" in caplog.text


HEADER = st.text("0123456789abcdefABCDEF-,=;% é", max_size=80)
ANYTHING = st.one_of(
    HEADER,
    st.text(max_size=60),
    st.integers(),
    st.none(),
    st.binary(max_size=20),
    st.lists(st.integers(), max_size=2),
    st.builds(
        lambda trace_id, span_id, flags: f"00-{trace_id:032x}-{span_id:016x}-{flags}",
        st.integers(0, 2**129),
        st.integers(0, 2**65),
        st.text("01f", max_size=3),
    ),
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first text of a process takes seconds
@given(
    headers=st.dictionaries(
        st.sampled_from(["traceparent", "tracestate", "baggage", "nameko.traceparent"]), ANYTHING
    ),
    direction=st.sampled_from(list(Direction)),
)
def test_whatever_the_headers_hold_the_call_goes_on(
    headers: dict[str, Any], direction: Direction
) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    target = Target(direction, CallKind.RPC, "svc", "method")

    async def end(call: Call) -> Outcome:
        return Outcome("done")

    chain = compose([span_layer(lambda: tracer, target)], end)

    async def handle() -> Outcome:
        return await chain(Call(target, ((), {}), headers=headers))

    outcome = asyncio.run(handle())

    assert outcome == Outcome("done")
    links_of([Call(target, ((), {}), headers=headers)])


async def test_span_of_a_batch_links_to_the_spans_of_its_calls(
    receiver: SpanReceiver, serve: Serve, uri: str
) -> None:
    class Ledger:
        name = "ledger"
        tracer = Tracer()
        waiting: ClassVar[list[Call | None]] = []

        @event_handler("orders", "placed", concurrency=1)
        async def placed(self, order: Any) -> None:
            self.waiting.append(get_current_call())
            if len(self.waiting) == 3:
                calls = [call for call in self.waiting if call is not None]
                with self.tracer.start_as_current_span("book", links=links_of(calls)):
                    pass

    await serve(Ledger, config=traced(receiver))
    async with Client(uri) as client:
        for number in range(3):
            await client.publish("orders", "placed", number)

    await wait_for(receiver, lambda spans: len(spans) == 4)
    [book] = [span for span in receiver.spans if span.name == "book"]
    handled = [span for span in receiver.spans if span.kind == "CONSUMER"]
    assert len({span.trace_id for span in handled}) == 3
    assert sorted(book.links) == sorted((span.trace_id, span.span_id) for span in handled)


async def test_span_of_a_list_links_to_the_spans_that_its_messages_came_from(
    receiver: SpanReceiver, serve: Serve, uri: str
) -> None:
    class Lists:
        name = "lists"

        @event_handler("shop", "sold", batch=Batch(size=3, within=10))
        async def sold(self, items: list[int]) -> None: ...

    class Shop:
        name = "shop"
        emit = EventDispatcher()

        @rpc
        async def sell(self, number: int) -> None:
            await self.emit("sold", number)

    await serve(Lists, Shop, config=traced(receiver))
    async with Client(uri) as client:
        for number in range(3):
            await client.call("shop", "sell", number)

    await wait_for(receiver, lambda spans: any(span.kind == "CONSUMER" for span in spans))
    [handled] = [span for span in receiver.spans if span.kind == "CONSUMER"]
    sent = [span for span in receiver.spans if span.kind == "PRODUCER"]
    assert sorted(handled.links) == sorted((span.trace_id, span.span_id) for span in sent)
    assert len(handled.links) == 3


def test_batch_links_to_the_traces_that_its_calls_came_with() -> None:
    target = Target(Direction.INBOUND, CallKind.EVENT, "svc", "handle")
    headers: list[dict[str, Any] | None] = [
        {"traceparent": f"00-{'a' * 32}-{'1' * 16}-01"},
        None,
        {"nameko.traceparent": f"00-{'b' * 32}-{'2' * 16}-00"},
    ]

    links = links_of([Call(target, ((), {}), headers=one) for one in headers])

    assert [f"{link.context.trace_id:032x}" for link in links] == ["a" * 32, "b" * 32]
