"""HTTP and websockets of existing services: Nameko's own web application, on the process's one HTTP server.

`nameko.web.server.WebServer` (or a user's subclass) routes with werkzeug, finds the entrypoint and forms the response,
as it always has; what it served with eventlet's sockets is served here by the server of `entrypoints/http/server.py`, so paths
and formats are Nameko's to the letter, custom handlers and WSGI middleware included.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mycelia.extras import require_extra
from mycelia.nameko.access_log import write_access_log
from mycelia.nameko.managed_thread import run_in_daemon_thread
from mycelia.nameko.web_socket import serve_websocket
from mycelia.nameko.wsgi import Receive, Scope, Send, WsgiBridge, answer_plainly
from mycelia.runtime import Container, Extension

if TYPE_CHECKING:
    from mycelia.entrypoints.http.server import HttpServer

__all__ = ["NamekoWebSite"]


class NamekoWebSite(Extension):
    """What Nameko's `WebServer` of one container does, without its sockets.

    Args:
        web_server: the bound `WebServer`; entrypoints have registered with it when `start()` is called.
    """

    container: Container

    def __init__(self, web_server: Any) -> None:
        self.web_server = web_server
        self.stopping = asyncio.Event()
        """No more requests are taken."""
        self._server: HttpServer | None = None
        self._wsgi: WsgiBridge | None = None
        self._url_map: Any = None
        self._writes_namekos_lines = False

    @property
    def service(self) -> str:
        """Under which name this site takes part in the server; a service may have Mycelia's `@http` beside it."""
        return f"{self.container.service_name} (nameko.web)"

    def bind(self, container: Any) -> Any:
        require_extra("http", f"{container.service_name}: nameko.web")
        return super().bind(container)

    async def setup(self) -> None:
        # uvicorn and Starlette: only where there is HTTP
        from mycelia.entrypoints.http.routes import SiteRoute
        from mycelia.entrypoints.http.server import HttpServer

        self._server = HttpServer.of(self.container.host)
        self._server.add(SiteRoute(self))
        await self._server.join(self.service)

    async def start(self) -> None:
        app = await run_in_daemon_thread(self.web_server.get_wsgi_app, "get_wsgi_app")
        self._url_map = self.web_server.make_url_map()
        section = self.container.settings.mycelia
        self._wsgi = WsgiBridge(
            app, max_body_bytes=section.max_body_bytes, body_timeout=section.http_body_timeout
        )
        # Else the server writes lines of its own, or nobody wants any.
        self._writes_namekos_lines = section.http_access_log is None and not section.access_log
        assert self._server is not None
        await self._server.start()

    def stop_consuming(self) -> None:
        """Take no more requests; called when an entrypoint stops, before the workers end. Idempotent."""
        if self._server is not None and not self.stopping.is_set():
            self._server.retire(self.service)

    async def stop(self) -> None:
        """Responses have a moment to leave. Called after the workers have ended."""
        if self._server is not None:
            await self._server.leave(self.service)

    # --- what the server asks -----------------------------------------------------------------

    def answers(self, scope: Scope) -> bool:
        """Whether one of Nameko's rules has this path; the web application may know more paths than these."""
        return self._provider_of(scope) is not None

    def _provider_of(self, scope: Scope) -> Any:
        from werkzeug.exceptions import HTTPException

        if self._url_map is None:
            return None
        is_websocket = scope["type"] == "websocket"
        adapter = self._url_map.bind("localhost", url_scheme="ws" if is_websocket else "http")
        try:
            return adapter.match(scope["path"], scope.get("method", "GET"), websocket=is_websocket)[
                0
            ]
        except HTTPException:
            return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or serve one websocket."""
        if scope["type"] == "websocket":
            provider = self._provider_of(scope)
            if self.stopping.is_set() or not hasattr(provider, "handle_websocket_request"):
                await send({"type": "websocket.close"})
            else:
                await serve_websocket(provider, scope, receive, send)
        elif self._wsgi is None or self.stopping.is_set():
            await answer_plainly(send, 503, "Error: the service is not running\n")
        elif self._writes_namekos_lines:
            await write_access_log(self._wsgi, scope, receive, send)
        else:
            await self._wsgi(scope, receive, send)
