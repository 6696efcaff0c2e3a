"""What services bring into the server's router, beside `@http` methods: mounted applications, and sites."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Protocol

from starlette.responses import RedirectResponse
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from mycelia.entrypoints.http.lifespan import Lifespan
from mycelia.entrypoints.http.paths import shape_of, specificity
from mycelia.entrypoints.http.requests import BodyReader
from mycelia.entrypoints.http.responses import stopping

__all__ = ["HttpPart", "MountedApplication", "Site", "SiteRoute"]

SERVICE_RESTART = 1012
"""Why a websocket is closed (IANA's registry of close codes)."""

GRACE = 5.0
"""Seconds that requests of a mounted application have when the service's workers have ended."""


class HttpPart(BaseRoute):
    """A route that belongs to a service."""

    service: str
    """Whose it is."""
    title: str = ""
    """How it is called in messages."""
    path: str = ""
    """As it is written; empty where there is no one path."""
    shape: str = ""
    """Parts of one shape match the same paths."""
    verbs: frozenset[str] | None = frozenset()
    """The HTTP methods that it answers; `None` for all."""
    order: tuple[int, tuple[tuple[int, str], ...]] = (1, ())
    """Parts are tried in this order: methods and applications from the particular to the general; sites; the root."""
    stopping: asyncio.Event
    """Set when it takes no more requests."""

    def shared_verbs(self, other: HttpPart) -> frozenset[str]:
        """The HTTP methods that both answer."""
        mine, its = self.verbs, other.verbs
        if mine is None or its is None:
            return mine or its or frozenset(("every method of",))
        return mine & its

    def retire(self) -> None:
        """Take no more requests. Idempotent."""
        self.stopping.set()


class Site(Protocol):
    """An ASGI application that knows which paths are its own (`mycelia.nameko.web`)."""

    @property
    def service(self) -> str: ...

    @property
    def stopping(self) -> asyncio.Event: ...

    def answers(self, scope: Scope) -> bool:
        """Whether it has this path; one that does not is asked last."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


class SiteRoute(HttpPart):
    """A site in the router."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.service, self.stopping = site.service, site.stopping

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if self.site.answers(scope):
            return Match.FULL, {}
        # It may know more paths than it says.
        return (Match.PARTIAL if scope["type"] == "http" else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.site(scope, receive, send)


class MountedApplication(Mount, HttpPart):
    """An ASGI application that answers all that is below a path, as if a server of its own had that `root_path`.

    What holds for all of the server holds for it: the time for a request's head and body, the size of a body, how
    requests are framed, who may say what the client's address is. Its requests are no calls: they take no workers and
    pass no middleware but its own.

    Args:
        service: whose it is.
        title: how it is called in messages.
        path: fixed text without a slash at its end.
        app: the application.
        max_body_bytes: of a request.
        body_timeout: seconds in which a body must go on.
    """

    def __init__(
        self,
        service: str,
        title: str,
        path: str,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        body_timeout: float,
    ) -> None:
        super().__init__(path, app)
        below = f"{path}/{{path:path}}"
        self.service, self.title, self.shape, self.verbs = service, title, shape_of(below), None
        self.order = (0 if path else 2, specificity(below))
        self.stopping = asyncio.Event()
        self.lifespan = Lifespan(app)
        self._max_body_bytes = max_body_bytes
        self._body_timeout = body_timeout
        self._running: dict[asyncio.Task[Any], asyncio.Timeout] = {}

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if self.path and scope["path"] == self.path and scope["type"] == "http":
            return Match.FULL, {}
        return super().matches(scope)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or serve one websocket.

        Raises:
            HTTPException: the answer, where the service stops.
        """
        if self.path and scope["path"] == self.path:
            # Relative, so that it is right behind a proxy as well, whatever that makes of the path before.
            query = scope["query_string"].decode("latin-1")
            target = f"{self.path.rpartition('/')[2]}/" + (f"?{query}" if query else "")
            await RedirectResponse(target)(scope, receive, send)
            return
        if self.stopping.is_set() and scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
            return
        if self.stopping.is_set():
            raise stopping()
        if scope["type"] == "http":
            receive = BodyReader(scope, receive, self._max_body_bytes, self._body_timeout)
        # The links that it makes are to its own routes, below its own root.
        own = {key: value for key, value in scope.items() if key not in ("router", "route")}
        own |= {"app_root_path": scope["root_path"], "state": dict(self.lifespan.state)}
        await self._run(own, receive, send)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        limit = asyncio.timeout(None)
        self._running[task] = limit
        try:
            async with limit:
                await self.app(scope, receive, send)
        except TimeoutError:
            if not limit.expired():
                raise
            if scope["type"] == "http":
                raise stopping() from None
            with contextlib.suppress(RuntimeError):  # it is closed already
                await WebSocketClose(SERVICE_RESTART)(scope, receive, send)
        finally:
            del self._running[task]

    async def finish(self) -> None:
        """Wait for the requests under way; those that take longer than `GRACE` are cancelled."""
        now = asyncio.get_running_loop().time()
        for limit in self._running.values():
            limit.reschedule(now + GRACE)
        if self._running:
            await asyncio.wait(list(self._running), timeout=2 * GRACE)
