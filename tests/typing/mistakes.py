"""Mistakes, each below what mypy says of it. Read by mypy, in test_types.py, and never run."""

from __future__ import annotations

from typing import Any

from mycelia import (
    BlockingClient,
    Client,
    EventDispatcher,
    Log,
    Publisher,
    Record,
    RpcProxy,
    consume,
    event_handler,
    http,
    log_handler,
    rpc,
    timer,
)
from mycelia.flow import FlowOutput, Stream, count, flow, max_of, mean, tumbling


class Options:
    # error: Unexpected keyword argument "concurency" for overloaded function "__call__" of "BareOrWithOptions"; did you mean "concurrency"? [call-overload]
    # error: Untyped decorator makes function "misspelt" untyped [untyped-decorator]
    @rpc(concurency=3)
    def misspelt(self) -> None: ...

    # error: No overload variant of "__call__" of "BareOrWithOptions" matches argument type "int" [call-overload]
    # error: Untyped decorator makes function "positional" untyped [untyped-decorator]
    @rpc(3)
    def positional(self) -> None: ...

    # error: No overload variant of "__call__" of "BareOrWithOptions" matches argument type "str" [call-overload]
    # error: Untyped decorator makes function "of_another_type" untyped [untyped-decorator]
    @rpc(concurrency="3")
    def of_another_type(self) -> None: ...

    # error: Argument 1 has incompatible type "str"; expected "float | None" [arg-type]
    @timer("ten")
    def tick(self) -> None: ...

    # error: Argument 1 has incompatible type "Callable[[Options], None]"; expected "float | None" [arg-type]
    @timer
    def tock(self) -> None: ...

    # error: Unexpected keyword argument "eagre"; did you mean "eager"? [call-arg]
    @timer(1, eagre=True)
    def tack(self) -> None: ...

    # error: Too few arguments [call-arg]
    @event_handler("feed")
    def heard(self, payload: Any) -> None: ...

    # error: Unexpected keyword argument "requeue" [call-arg]
    @event_handler("feed", "x", requeue=True)
    def heard_again(self, payload: Any) -> None: ...

    # error: Argument 1 has incompatible type "float"; expected "str | Queue | QueueLike" [arg-type]
    @consume(3.5)
    def consumed(self, payload: Any) -> None: ...

    # error: Too few arguments [call-arg]
    @http("GET")
    def page(self, request: Any) -> None: ...


class Providers:
    # error: Unexpected keyword argument "mandatroy" for "EventDispatcher"; did you mean "mandatory"? [call-arg]
    misspelt = EventDispatcher(mandatroy=True)
    # error: Argument "mandatory" to "EventDispatcher" has incompatible type "str"; expected "bool" [arg-type]
    of_another_type = EventDispatcher(mandatory="yes")
    # error: Unexpected keyword argument "timout" for "RpcProxy"; did you mean "timeout"? [call-arg]
    proxy = RpcProxy("x", timout=2)
    # error: Missing positional argument "target_service" in call to "RpcProxy" [call-arg]
    nobody = RpcProxy()
    # error: Unexpected keyword argument "routing_kye" for "Publisher"; did you mean "routing_key"? [call-arg]
    publisher = Publisher(routing_kye="x")
    # error: Argument "queue" to "Publisher" has incompatible type "int"; expected "str | Queue | QueueLike | None" [arg-type]
    queue = Publisher(queue=3)


class ForgottenAwait:
    stock = RpcProxy("stock")
    emit = EventDispatcher()
    publish = Publisher("work")
    blocking = RpcProxy("stock").blocking
    emit_blocking = EventDispatcher().blocking

    @rpc
    async def sell(self, item: str) -> int:
        # error: Value of type "Coroutine[Any, Any, Any]" must be used [unused-coroutine]
        self.stock.take(item)
        # error: Value of type "Coroutine[Any, Any, None]" must be used [unused-coroutine]
        self.emit("sold", item)
        # error: Value of type "Coroutine[Any, Any, None]" must be used [unused-coroutine]
        self.publish(item)
        # error: Value of type "Coroutine[Any, Any, Any]" must be used [unused-coroutine]
        self.stock.take.call_async(item).result()
        # error: Incompatible types in assignment (expression has type "Coroutine[Any, Any, Any]", variable has type "int") [assignment]
        left: int = self.stock.left(item)
        # error: Incompatible types in "await" (actual type "None", expected type "Awaitable[Any]") [misc]
        # error: Function does not return a value (it only ever returns None) [func-returns-value]
        await self.emit_blocking("sold", item)
        return left

    @rpc
    def sell_in_thread(self, item: str) -> int:
        self.blocking.take(item)
        self.emit_blocking("sold", item)
        left: int = self.blocking.left(item)
        return left

    @rpc(idempotent=True)
    async def options(self) -> None:
        # error: Unexpected keyword argument "timout" for "options" of "MethodProxy"; did you mean "timeout"? [call-arg]
        await self.stock.take.options(timout=1)()
        # error: Unexpected keyword argument "priorty" for "__call__" of "Dispatch"; did you mean "priority"? [call-arg]
        await self.emit("sold", priorty=1)


async def decorated_method_keeps_its_type(shop: ForgottenAwait) -> None:
    # error: Value of type "Coroutine[Any, Any, int]" must be used [unused-coroutine]
    # error: Argument 1 to "sell" of "ForgottenAwait" has incompatible type "int"; expected "str" [arg-type]
    shop.sell(3)
    # error: Incompatible types in assignment (expression has type "int", variable has type "str") [assignment]
    text: str = shop.sell_in_thread("x")
    # error: Incompatible types in assignment (expression has type "int", variable has type "str") [assignment]
    text = await shop.sell("x")
    text.upper()


async def clients() -> None:
    # error: Unexpected keyword argument "timout" for "Client"; did you mean "timeout"? [call-arg]
    client = Client("memory://", timout=1)
    # error: Unexpected keyword argument "middelware" for "BlockingClient"; did you mean "middleware"? [call-arg]
    BlockingClient("memory://", middelware=[])
    # error: Value of type "Coroutine[Any, Any, Any]" must be used [unused-coroutine]
    client.call("stock", "take")
    # error: Unexpected keyword argument "mandatroy" for "publish" of "Client"; did you mean "mandatory"? [call-arg]
    await client.publish("shop", "sold", mandatroy=True)


class Departed:
    origin: str
    delay: int


def flows(departed: Stream[Departed]) -> None:
    # error: "Stream[Departed]" has no attribute "window" [attr-defined]
    departed.window(tumbling("1h"))
    # error: "Departed" has no attribute "dely"; maybe "delay"? [attr-defined]
    departed.map(lambda f: f.dely)
    keyed = departed.key_by(lambda f: f.origin)
    # error: Argument "emit" to "window" of "KeyedStream" has incompatible type "Literal['closing']"; expected "Literal['close', 'update'] | EveryPeriod | AfterRecords" [arg-type]
    keyed.window(tumbling("1h"), emit="closing")
    windows = keyed.window(tumbling("1h"))
    # error: "WindowedStream[str, Departed]" has no attribute "map" [attr-defined]
    windows.map(lambda w: w)
    # error: "KeyedStream[str, Departed]" has no attribute "as_state" [attr-defined]
    keyed.as_state("departed")
    # error: No overload variant of "aggregate" of "WindowedStream" matches argument type "Callable[[], Aggregation[object, int]]" [call-overload]
    windows.aggregate(count)
    # error: "Departed" has no attribute "dely"; maybe "delay"? [attr-defined]
    windows.aggregate(count(), max_of(lambda f: f.dely))
    # error: Argument 1 to "mean" has incompatible type "Callable[[Departed], str]"; expected "Callable[[Departed], float]" [arg-type]
    # error: Incompatible return value type (got "str", expected "float") [return-value]
    windows.aggregate(count(), mean(lambda f: f.origin))
    # error: Argument 1 to "event_time" of "Stream" has incompatible type "Callable[[Departed], int]"; expected "Callable[[Departed], datetime]" [arg-type]
    # error: Incompatible return value type (got "int", expected "datetime") [return-value]
    departed.event_time(lambda f: f.delay)


FLIGHTS = Log("flights.departed", of=Departed, key="origin")


class Pipeline:
    name = "pipeline"
    numbers = Log("numbers", of=int)
    corrected = Log("flights.corrected", of=Departed)

    # error: Argument 1 has incompatible type "Callable[[Pipeline, Stream[int]], FlowOutput]"; expected "Callable[[Any, Stream[Departed]], FlowOutput]" [arg-type]
    @flow(FLIGHTS)
    def of_another_type(self, flights: Stream[int]) -> FlowOutput:
        return flights.emit("counted")

    # error: Argument 1 has incompatible type "Callable[[Pipeline, Stream[Departed]], FlowOutput]"; expected "Callable[[Any, Stream[Departed], Stream[int]], FlowOutput]" [arg-type]
    @flow(FLIGHTS, numbers)
    def of_one_of_two(self, flights: Stream[Departed]) -> FlowOutput:
        return flights.emit("counted")

    # error: Value of type variable "Given" of function cannot be "Stream[Departed]" [type-var]
    @flow(FLIGHTS)
    def to_nowhere(self, flights: Stream[Departed]) -> Stream[Departed]:
        return flights

    @flow(numbers)
    def into_another_log(self, numbers: Stream[int]) -> FlowOutput:
        # error: Argument 1 to "to" of "Stream" has incompatible type "Log[Departed]"; expected "Log[int] | LogWriter[int] | FlowSink[int] | SinkWriter[int]" [arg-type]
        return numbers.to(FLIGHTS)

    @flow(numbers)
    def into_another_log_of_the_service(self, numbers: Stream[int]) -> FlowOutput:
        # error: Argument 1 to "to" of "Stream" has incompatible type "LogWriter[Departed]"; expected "Log[int] | LogWriter[int] | FlowSink[int] | SinkWriter[int]" [arg-type]
        return numbers.to(self.corrected)

    # error: Argument 1 has incompatible type "Callable[[Pipeline, list[Record[int]]], Coroutine[Any, Any, None]]"; expected "Callable[[Any, list[Record[Departed]]], Coroutine[Any, Any, None]]" [arg-type]
    @log_handler(FLIGHTS)
    async def records_of_another_type(self, records: list[Record[int]]) -> None: ...

    # error: Argument 1 has incompatible type "Callable[[Pipeline, Record[Departed]], None]"; expected "Callable[[Any, list[Record[Departed]]], None]" [arg-type]
    @log_handler(FLIGHTS)
    def one_record(self, record: Record[Departed]) -> None: ...
