"""Keeps one connection up: connects to the first broker that answers, prepares it, waits for its end, and starts again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from mycelia.amqp.rabbit.backoff import Backoff
from mycelia.amqp.rabbit.connection import BrokerConnection, ConnectionLost
from mycelia.amqp.uri import Endpoint
from mycelia.errors import AccessRefused, BrokerUnavailable, LinkError
from mycelia.log_event import event

__all__ = ["Supervisor"]

_log = logging.getLogger("mycelia.amqp")

_REMIND_EVERY_S: Final = 30.0
"""Between two lines about a broker that stays away. Arbitrary; rare enough not to fill a log overnight."""
_STABLE_AFTER_S: Final = 5.0
"""A connection that lasted this long starts the backoff anew; one that did not is part of the same trouble."""


class Supervisor:
    """The owner of a link's publishing or consuming connection.

    Args:
        role: "publish" or "consume", for logs and task names.
        connect: makes one connection.
        prepare: declares and opens what belongs on it, before anyone else sees it.
        on_up, on_down: told when `connection` has changed.
        refusal_is_final: end when the first broker to answer refuses user, password or virtual host.

    Attributes:
        role: as given.
        connection: prepared and usable, or `None`.
        was_up: whether there ever was one.
        last_error: why the latest attempt failed.
    """

    def __init__(
        self,
        name: str,
        role: str,
        endpoints: Sequence[Endpoint],
        *,
        connect: Callable[[Endpoint, str], Awaitable[BrokerConnection]],
        prepare: Callable[[BrokerConnection], Awaitable[None]],
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        refusal_is_final: bool,
        backoff: Backoff,
    ) -> None:
        self.connection: BrokerConnection | None = None
        self.was_up = False
        self.last_error: LinkError | None = None
        self._name = name
        self.role = role
        self._endpoints = endpoints
        self._connect = connect
        self._prepare = prepare
        self._on_up = on_up
        self._on_down = on_down
        self._refusal_is_final = refusal_is_final
        self._backoff = backoff
        self._next_endpoint = 0
        self._up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    async def connected(self) -> BrokerConnection:
        """The connection, as soon as there is one. The first call starts connecting.

        Raises:
            AccessRefused: there never will be one.
            BrokerUnavailable: closed meanwhile.
        """
        while self.connection is None or self.connection.lost.done():
            # Lost, and `_run()` has not had its turn yet. Handing it out again would make a caller that tries
            # until it works spin, and `_run()` would never get its turn.
            self._set_down()
            if self._is_closed:
                raise BrokerUnavailable(f"link {self._name} is closed")
            task = self._task
            if task is None:
                task = self._task = asyncio.create_task(
                    self._run(), name=f"mycelia:link:{self._name}:{self.role}"
                )
            up = asyncio.ensure_future(self._up.wait())
            try:
                await asyncio.wait([up, task], return_when=asyncio.FIRST_COMPLETED)
            finally:
                up.cancel()
            if task.done() and not task.cancelled():
                task.result()  # raises why
        return self.connection

    async def aclose(self, timeout: float) -> None:
        """End the task and close the connection."""
        self._is_closed = True
        connection = self.connection
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        if connection is not None:
            await connection.aclose(timeout)
        self._set_down()

    def _set_down(self) -> None:
        if self.connection is not None:
            self.connection = None
            self._up.clear()
            self._on_down()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection = await self._connect_somehow()
            self.connection = connection
            up_since = loop.time()
            self.was_up = True
            self._up.set()
            _log.info(
                event(
                    "connected",
                    link=self._name,
                    role=self.role,
                    broker=str(connection.endpoint),
                    version=connection.server_properties.get("version", "?"),
                )
            )
            self._on_up()
            reason = await asyncio.shield(connection.lost)
            if loop.time() - up_since > _STABLE_AFTER_S:
                self._backoff.reset()
            delay = self._backoff.next_delay()
            _log.warning(
                event(
                    "connection_lost",
                    link=self._name,
                    role=self.role,
                    retry_in_s=round(delay, 2),
                    reason=reason,
                )
            )
            self._set_down()
            # The broker that was lost may be gone without a trace, and a connection to it would be waited for in vain: the
            # others are asked first.
            self._next_endpoint += 1
            await asyncio.sleep(delay)

    async def _connect_somehow(self) -> BrokerConnection:
        """Try the brokers in turn, with a delay after each round, until one takes us."""
        loop = asyncio.get_running_loop()
        remind_at = 0.0
        failures = 0
        while True:
            endpoint = self._endpoints[self._next_endpoint % len(self._endpoints)]
            try:
                return await self._connect_once(endpoint)
            except AccessRefused as exc:
                if self._refusal_is_final and not self.was_up:
                    raise
                reason: LinkError = exc  # a broker that knew us may know us again once it is set up
            except LinkError as exc:
                reason = exc
            except Exception as exc:
                if not self.was_up:
                    raise
                # A fault of ours must not leave a running service without its broker, in silence.
                _log.exception(event("connecting_raised", link=self._name, role=self.role))
                reason = BrokerUnavailable(repr(exc))
            self.last_error = reason
            failures += 1
            self._next_endpoint += 1
            if loop.time() >= remind_at:
                remind_at = loop.time() + _REMIND_EVERY_S
                _log.warning(
                    event(
                        "broker_unreachable",
                        link=self._name,
                        role=self.role,
                        attempts=failures,
                        trying_on=True,
                        reason=reason,
                    )
                )
            if failures % len(self._endpoints) == 0:
                await asyncio.sleep(self._backoff.next_delay())

    async def _connect_once(self, endpoint: Endpoint) -> BrokerConnection:
        connection = await self._connect(endpoint, self.role)
        try:
            await self._prepare(connection)
        except BaseException:
            connection.abort(ConnectionLost(f"{endpoint}: given up while connecting"))
            raise
        return connection
