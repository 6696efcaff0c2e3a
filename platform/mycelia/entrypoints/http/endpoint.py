"""One `@http` method, ready to answer requests: a request becomes a call, its outcome a response."""

from __future__ import annotations

import asyncio
import inspect
import re
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse
from starlette.routing import Match, Route
from starlette.types import Message, Receive, Scope, Send

from mycelia.call import GiveBack, Outcome, current_call
from mycelia.entrypoints.http.call import HttpCall
from mycelia.entrypoints.http.paths import shape_of, specificity
from mycelia.entrypoints.http.requests import (
    BlockingRequest,
    BodyBudget,
    BodyReader,
    HttpRequest,
)
from mycelia.entrypoints.http.responses import (
    encode_body,
    problem_of,
    response_of,
    stopping,
)
from mycelia.entrypoints.http.routes import HttpPart
from mycelia.entrypoints.http.streams import aclose
from mycelia.errors import ConfigError, Overloaded
from mycelia.runtime import Entrypoint, Lane
from mycelia.wire import BAGGAGE, MAX_BAGGAGE_LENGTH, TRACEPARENT, TRACESTATE, is_baggage

__all__ = ["CALL", "CountingSender", "HttpEndpoint", "Sender", "shown_path"]

MAX_WAITING = 1000
"""Requests that may wait for a worker of one method; more are answered 503. Arbitrary: a queue needs an end."""

CALL_ID = "mycelia.call_id"
CALL = "mycelia.call"
"""In an ASGI scope: the call that its request has become, and its id."""
SHOWN_PATH = "mycelia.shown_path"
"""In an ASGI scope: what is shown for the path, where there is something sensitive in it."""

MAX_TRACESTATE = 512
"""Characters; W3C Trace Context, 3.3.1.5."""

_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(?:-.{0,64})?")


class Sender:
    """The ASGI `send` of one request: adds the call's id, and knows how far the response is."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self.status = 0
        """Of the response; 0 while it has not begun."""
        self.is_broken = False
        """Whether the response has begun and cannot go on."""

    @property
    def call_id(self) -> str:
        """Of the request's call; empty while there is none."""
        call_id: str = self._scope.get(CALL_ID, "")
        return call_id

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.call_id:
                headers = [
                    *message.get("headers", ()),
                    (b"x-call-id", self.call_id.encode("latin-1", "replace")),
                ]
                message = {**message, "headers": headers}
        await self._send(message)
        if message.get("more_body"):
            # uvicorn takes what it sends to a client that has gone without ever waiting; an iterator that never waits
            # either would then hold the loop for good.
            await asyncio.sleep(0)


class CountingSender(Sender):
    """One that counts the bytes of the response's body."""

    sent_bytes = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.body" and self._scope["method"] != "HEAD":
            self.sent_bytes += len(message.get("body", b""))
        await super().__call__(message)


def shown_path(scope: Scope) -> str:
    """The path of a request as it may be shown."""
    path: str = scope.get(SHOWN_PATH) or scope["path"]
    return path


class HttpEndpoint(Route, HttpPart):
    """The route of one `@http` method, which answers its requests.

    Args:
        entrypoint: the method's, bound.
        path: in Starlette's form.
        verbs: the HTTP methods that it answers.
        streams_request: whether an `async def` method begins before the body is here.
        bodies: what bodies of the whole process share.

    Raises:
        ConfigError: the path names a converter that there is none of.
    """

    def __init__(
        self,
        entrypoint: Entrypoint,
        path: str,
        verbs: tuple[str, ...],
        *,
        streams_request: bool,
        bodies: BodyBudget,
    ) -> None:
        target = entrypoint.target
        try:
            super().__init__(path, self, methods=verbs)
        except AssertionError as exc:
            raise ConfigError(f'@http("{path}") of {target.name}: {exc}.') from None
        self.service, self.title = target.service, target.name
        self.shape, self.verbs = shape_of(path), frozenset(verbs)
        self.order = (0, specificity(path))
        self.stopping = asyncio.Event()  # it ends event streams as well
        self.lane: Lane | None = None
        """Where the method's workers run; `None` before the service has started."""
        assert entrypoint.container is not None
        self._entrypoint = entrypoint
        self._settings = entrypoint.container.settings
        self._is_async = inspect.iscoroutinefunction(entrypoint.method)
        self._reads_ahead = not streams_request
        self._bodies = bodies
        declared = target.declared
        self._hides_path = declared is not None and not declared.sensitive.names.isdisjoint(
            self.param_convertors
        )

    def retire(self) -> None:
        """Take no more requests. Those that run are finished; those that wait for a worker are answered 503."""
        super().retire()
        if self.lane is not None:
            self.lane.give_back_backlog()

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        try:
            return super().matches(scope)
        except ValueError:  # Python converts no number of more than 4300 digits: no path of ours
            return Match.NONE, {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request that the path matches.

        Raises:
            HTTPException: the answer, where the method is not run.
        """
        if self.methods is not None and scope["method"] not in self.methods:
            await _tell_methods(scope)(scope, receive, send)
            return
        if self._hides_path:
            scope[SHOWN_PATH] = self.path
        lane = self.lane
        if lane is None or self.stopping.is_set():
            raise stopping()
        section = self._settings.mycelia
        reader = BodyReader(
            scope, receive, section.http_max_body_bytes, section.http_body_timeout, self._bodies
        )
        try:
            await self._answer(lane, scope, reader, send)
        finally:
            reader.release()

    async def _answer(self, lane: Lane, scope: Scope, reader: BodyReader, send: Send) -> None:
        request = await self._request(scope, reader)
        if self.stopping.is_set():  # meanwhile
            raise stopping()
        call = HttpCall(
            self._entrypoint.target,
            ((request,), scope["path_params"]),
            headers=_trace_headers(scope),
            request=request,
            answer=asyncio.get_running_loop().create_future(),
            parent_calls_tracked=self._settings.parent_calls_tracked,
        )
        scope[CALL_ID], scope[CALL] = call.call_id, call
        response = await self._respond(lane, call)
        reader.release()
        # A stream goes on as part of this call: what it calls inherits the trace.
        current_call.set(call)
        try:
            if scope["method"] == "HEAD" and isinstance(response, StreamingResponse):
                head = Response(status_code=response.status_code)
                head.raw_headers = response.raw_headers
                await head(scope, reader, send)
            else:
                await response(scope, reader, send)
        finally:
            # Starlette leaves an iterator that it does not finish to the garbage collector.
            await aclose(getattr(response, "body_iterator", None))

    async def _request(self, scope: Scope, reader: BodyReader) -> HttpRequest | BlockingRequest:
        """What the method gets. The body is read before a worker is taken: a slow client takes none."""
        if not self._is_async:
            return BlockingRequest(scope, await reader.read_all())
        if self._reads_ahead:
            await reader.read_ahead()
        else:
            reader.refuse_too_large()
        return HttpRequest(scope, reader)

    async def _respond(self, lane: Lane, call: HttpCall) -> Response:
        if lane.waiting >= MAX_WAITING:
            lane.refuse(
                call,
                Overloaded(
                    f"{call.target.name}: {lane.waiting} requests are waiting for a worker."
                ),
            )
        else:
            lane.submit(call)
        outcome = await call.answer
        if outcome.error is not None:
            return problem_of(
                outcome.error,
                () if outcome.is_refused else self._entrypoint.expected_exceptions,
                call.call_id,
                is_stopping=isinstance(outcome.settlement, GiveBack),
            )
        try:
            body = outcome.body
            if body is None:  # no plain body, or a middleware answered in the method's place
                body = encode_body(outcome.value)
            return response_of(outcome.value, body, self.stopping)
        except Exception as exc:  # noqa: BLE001  the method returned something that is no response: its error
            self._entrypoint.log_error(call, Outcome(error=exc))
            return problem_of(exc, (), call.call_id)


def _tell_methods(scope: Scope) -> Response:
    """What OPTIONS is answered, and what any other method is that the path does not have: the methods there are."""
    routes = (route for route in scope["router"].routes if isinstance(route, HttpEndpoint))
    methods = {"OPTIONS"}.union(
        *(r.methods or () for r in routes if r.matches(scope)[0] is not Match.NONE)
    )
    headers = {"Allow": ", ".join(sorted(methods))}
    if scope["method"] == "OPTIONS":
        return Response(None, 204, headers)
    raise HTTPException(405, f"This path does not answer {scope['method']}.", headers)


def _trace_headers(scope: Scope) -> dict[str, Any] | None:
    """The W3C trace context and baggage of a request. Anything else a client sends stays out of the calls' context."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        if name == b"traceparent" and _TRACEPARENT.fullmatch(value):
            found[TRACEPARENT] = value.decode("latin-1")
        elif name == b"tracestate" and len(value) <= MAX_TRACESTATE:
            found[TRACESTATE] = value.decode("latin-1")
        elif name == b"baggage" and len(value) <= MAX_BAGGAGE_LENGTH:
            text = value.decode("latin-1")  # may come in several lines, as any list may
            text = f"{found[BAGGAGE]},{text}" if BAGGAGE in found else text
            if is_baggage(text):
                found[BAGGAGE] = text
    if TRACEPARENT not in found:
        found.pop(TRACESTATE, None)
    return found or None
