"""A small client of RabbitMQ's management API: standard library only, blocking, one kept connection.

It serves private nodes and tests. Figures (message counts, connections) come from the broker's statistics and lag
behind by its `collect_statistics_interval`: wait for a condition instead of reading once.
"""

from __future__ import annotations

import base64
import http.client
import json
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from mycelia.errors import LinkError

__all__ = ["ManagementApi", "ManagementApiError"]


class ManagementApiError(LinkError):
    """The management API answered with an error, or did not answer.

    `status` is the HTTP status, or 0 when there was no answer.
    """

    def __init__(self, request: str, status: int, text: str) -> None:
        super().__init__(f"management API: {request}: {status or 'no answer'}: {text}")
        self.status = status


def _path(*parts: str) -> str:
    """`/api/` and the parts, each quoted: virtual hosts and connection names hold slashes and spaces."""
    return "/api/" + "/".join(quote(part, safe="") for part in parts)


class ManagementApi:
    """Blocking calls to the management API of one node.

    May be used from several threads; calls are made one after the other. Each call waits at most `timeout` seconds.
    Nothing is connected before the first call, and a lost connection is replaced by the next call.
    """

    def __init__(
        self,
        port: int,
        *,
        host: str = "127.0.0.1",
        user: str = "guest",
        password: str = "guest",
        timeout: float = 15.0,
        tls: bool = False,
    ) -> None:
        self.port = port
        self.host = host
        self.user = user
        credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._headers = {
            "Authorization": f"Basic {credentials}",
            "Content-Type": "application/json",
        }
        connect = http.client.HTTPSConnection if tls else http.client.HTTPConnection
        self._connection = connect(host, port, timeout=timeout)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the kept connection; the next call opens another."""
        with self._lock:
            self._connection.close()

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Send one request and return the decoded JSON answer, or `None` for an empty one.

        Args:
            method: `GET`, `PUT`, `POST` or `DELETE`.
            path: From `/api/…` on, already quoted.
            body: What to send as JSON; `None` sends an empty object with `PUT` and `POST`.
            headers: Sent beside the usual ones.

        Raises:
            ManagementApiError: The answer is an error status, or there is no answer.
        """
        content = None if method in ("GET", "DELETE") else json.dumps({} if body is None else body)
        with self._lock:
            status, text = self._exchange(
                method, path, content, {**self._headers, **(headers or {})}
            )
        if status >= 400:
            raise ManagementApiError(f"{method} {path}", status, text.strip())
        return json.loads(text) if text else None

    def _exchange(
        self, method: str, path: str, content: str | None, headers: Mapping[str, str]
    ) -> tuple[int, str]:
        # A kept connection may have been closed by the broker (restart, idle time): one more attempt on a fresh one.
        kept = self._connection.sock is not None
        try:
            self._connection.request(method, path, content, headers)
            response = self._connection.getresponse()
            return response.status, response.read().decode()
        except (OSError, http.client.HTTPException) as exc:
            self._connection.close()
            if kept and not isinstance(exc, TimeoutError):
                return self._exchange(method, path, content, headers)
            raise ManagementApiError(
                f"{method} {path}", 0, f"{self.host}:{self.port}: {exc!r}"
            ) from exc

    # --- virtual hosts ---------------------------------------------------------------------------

    def create_vhost(self, name: str) -> None:
        """Create a virtual host and give this client's user all permissions on it. Idempotent."""
        self.request("PUT", _path("vhosts", name))
        self.request(
            "PUT",
            _path("permissions", name, self.user),
            {"configure": ".*", "write": ".*", "read": ".*"},
        )

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with all it holds; its connections are closed by the broker. Idempotent."""
        try:
            self.request("DELETE", _path("vhosts", name))
        except ManagementApiError as exc:
            if exc.status != 404:
                raise

    # --- what there is ---------------------------------------------------------------------------

    def version(self) -> str:
        """The broker's version, such as `3.13.7`."""
        return str(self.request("GET", "/api/overview")["rabbitmq_version"])

    def queues(self, vhost: str) -> list[dict[str, Any]]:
        """All queues of a virtual host, in no particular order."""
        found: list[dict[str, Any]] = self.request("GET", _path("queues", vhost))
        return found

    def queue(self, vhost: str, name: str) -> dict[str, Any] | None:
        """One queue with its arguments, counts and consumers; `None` when there is none of this name."""
        try:
            found: dict[str, Any] = self.request("GET", _path("queues", vhost, name))
        except ManagementApiError as exc:
            if exc.status == 404:
                return None
            raise
        return found

    def bindings(self, vhost: str) -> list[dict[str, Any]]:
        """All bindings of a virtual host, those of the default exchange included."""
        found: list[dict[str, Any]] = self.request("GET", _path("bindings", vhost))
        return found

    def exchanges(self, vhost: str) -> list[dict[str, Any]]:
        """All exchanges of a virtual host, the built-in ones included."""
        found: list[dict[str, Any]] = self.request("GET", _path("exchanges", vhost))
        return found

    def connections(self, vhost: str) -> list[dict[str, Any]]:
        """The AMQP connections that are open on a virtual host."""
        found: list[dict[str, Any]] = self.request("GET", _path("vhosts", vhost, "connections"))
        return found

    def close_connections(self, vhost: str, reason: str = "closed on purpose") -> int:
        """Close every known connection of a virtual host from the broker's side; return how many there were.

        The peers see `connection.close` with 320 CONNECTION_FORCED and the reason.
        """
        closed = 0
        for connection in self.connections(vhost):
            try:
                path = _path("connections", connection["name"])
                self.request("DELETE", path, headers={"X-Reason": reason})
            except ManagementApiError as exc:
                if exc.status != 404:  # gone by itself meanwhile
                    raise
                continue
            closed += 1
        return closed
