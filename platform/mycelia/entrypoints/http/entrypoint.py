"""`@http`: a method that answers HTTP requests.

    @http("GET", "/delays/{origin}")
    async def delays(self, request: Request, origin: str) -> dict[str, float]: ...

This module stays light: Starlette and uvicorn are imported when a service with such a method is set up.
"""

from __future__ import annotations

import inspect
import logging
import re
from typing import TYPE_CHECKING, Any, Unpack

from mycelia.call import Call, CallKind, Outcome, Reply, Settlement
from mycelia.entrypoints.http.call import HttpCall
from mycelia.entrypoints.http.paths import parameters_of, translate_path
from mycelia.errors import ConfigError, IncorrectSignature
from mycelia.extras import require_extra
from mycelia.log_event import event
from mycelia.runtime import (
    Container,
    Entrypoint,
    EntrypointArguments,
    SharedExtension,
    SignatureCheck,
    decorator_of,
)

if TYPE_CHECKING:
    from mycelia.entrypoints.http.endpoint import HttpEndpoint
    from mycelia.entrypoints.http.server import HttpServer

__all__ = ["Http", "HttpListener", "http"]

log = logging.getLogger("mycelia.entrypoints")

_METHOD = re.compile(r"[A-Z]+")


class HttpListener(SharedExtension):
    """A service's part in the HTTP server of its process: there from `setup()` until the last worker has ended."""

    container: Container

    def __init__(self) -> None:
        self._server: HttpServer | None = None

    @property
    def server(self) -> HttpServer:
        """The server of the process."""
        if self._server is None:
            from mycelia.entrypoints.http.server import HttpServer  # uvicorn: only with `@http`

            self._server = HttpServer.of(self.container.host)
        return self._server

    async def setup(self) -> None:
        await self.server.join(self.container.service_name)

    def retire(self) -> None:
        """Take no more requests for the service. Idempotent."""
        if self._server is not None:
            self._server.retire(self.container.service_name)

    async def stop(self) -> None:
        """Responses have a moment to leave. Called after the workers have ended."""
        if self._server is not None:
            await self._server.leave(self.container.service_name)


class Http(Entrypoint):
    """The entrypoint behind `@http`.

    The method is called with the request and the path's parameters by name. An `async def` method gets Starlette's
    `Request`; a `def` method gets a `BlockingRequest`, with the same names without `await`. Either begins when the
    whole body is here, so that slow clients take no workers and a body that breaks off runs nothing. With
    `stream_request=True` an `async def` method begins at the request's head and reads the body as it comes, with
    `request.stream()`; a body that breaks off then raises Starlette's `ClientDisconnect` there.

    It may return: a str (`text/plain`), bytes, anything that has a form in JSON; `(status, body)` or
    `(status, headers, body)`; any Starlette response; an iterator of text or bytes, which is streamed;
    `ServerSentEvents(...)`. Errors become `application/problem+json`: 400 for `expected_exceptions`, the error's own
    status for Starlette's `HTTPException`, 503 and 504 where a service or the broker is away, 500 for the rest.

    Paths are tried from the particular to the general (fixed text, `{n:int}`, `{name}`, `{rest:path}`), whatever
    the order of the methods. HEAD is answered wherever GET is; OPTIONS with the methods there are.

    Args:
        method: one HTTP method, or several as in `"GET,POST"`.
        path: Starlette's `/flights/{number:int}` or werkzeug's `/flights/<int:number>`.
        stream_request: whether an `async def` method begins before the body is here. Each request under way then
            holds one of its workers for as long as the client takes.
        options: those of every entrypoint (`Entrypoint`).

    Raises:
        ValueError: a method or a path that cannot be.
        ConfigError: at the start, `stream_request` of a `def` method, or no Starlette or uvicorn installed.
    """

    kind = CallKind.HTTP
    on_success = Reply()
    settlements = frozenset({Reply})
    container: Container
    listener = HttpListener()

    def __init__(
        self,
        method: str,
        path: str,
        *,
        stream_request: bool = False,
        **options: Unpack[EntrypointArguments],
    ) -> None:
        super().__init__(**options)
        self.methods = tuple(dict.fromkeys(name.strip().upper() for name in method.split(",")))
        for name in self.methods:
            if _METHOD.fullmatch(name) is None:
                raise ValueError(
                    f'method={method!r}: expected HTTP methods, such as "GET" or "GET,POST".'
                )
        self.path = translate_path(path)
        self.stream_request = stream_request
        self._endpoint: HttpEndpoint | None = None

    @property
    def address(self) -> str:
        """`host:port` where the service answers; the bound port once it is set up."""
        return self.listener.server.address

    def bind(self, container: Any, method_name: str = "") -> Any:
        instance = super().bind(container, method_name)
        require_extra("http", f'{container.service_name}.{method_name}: @http("{self.path}")')
        return instance

    def setup(self) -> None:
        from mycelia.entrypoints.http.endpoint import HttpEndpoint  # Starlette: only with `@http`

        self._check_signature()
        if self.stream_request and not inspect.iscoroutinefunction(self.method):
            raise ConfigError(
                f'{self.container.service_name}.{self.method_name}: @http("{self.path}", stream_request=True) needs '
                "an `async def` method; a `def` method gets the body whole."
            )
        self._endpoint = HttpEndpoint(
            self,
            self.path,
            self.methods,
            streams_request=self.stream_request,
            bodies=self.listener.server.bodies,
        )
        self.listener.server.add(self._endpoint)

    def _check_signature(self) -> None:
        """A method that cannot take its path's parameters fails here, not at its first request."""
        names = parameters_of(self.path)
        try:
            SignatureCheck(self.method).check((None,), dict.fromkeys(names))
        except IncorrectSignature as exc:
            wanted = ", ".join(("self", "request", *names))
            raise ConfigError(
                f'{self.container.service_name}.{self.method_name} cannot answer "{self.path}": {exc.args[0]}. '
                f"Declare it as {self.method_name}({wanted})."
            ) from None

    async def start(self) -> None:
        assert self._endpoint is not None
        self._endpoint.lane = self.container.make_lane(self)
        await self.listener.server.start()

    def stop(self) -> None:
        """No more requests; those with a worker are finished."""
        self.listener.retire()

    def settlement_of(self, call: Call, outcome: Outcome) -> Settlement:
        return Reply()

    def settle(self, call: Call, outcome: Outcome, settlement: Settlement) -> None:
        assert isinstance(call, HttpCall)
        if not call.answer.done():  # else nobody waits any more: the client's connection was cut
            call.answer.set_result(outcome)

    def log_error(self, call: Call, outcome: Outcome) -> None:
        from starlette.exceptions import HTTPException
        from starlette.requests import ClientDisconnect

        error = outcome.error
        if isinstance(error, HTTPException) and error.status_code < 500:
            return  # an answer like any other
        if isinstance(error, ClientDisconnect):
            log.debug(event("client_gone", call=call.target.name, call_id=call.call_id))
            return
        super().log_error(call, outcome)

    def encode_result(self, call: Call, value: Any) -> bytes | None:
        """The response's body, made in the worker, so that what cannot be encoded is the worker's error."""
        from mycelia.entrypoints.http.responses import encode_body

        return encode_body(value)


http = decorator_of(
    "http",
    Http,
    'Answer HTTP requests: `@http("GET", "/delays/{origin}")`.',
)
