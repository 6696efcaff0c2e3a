"""Requests that came back because no queue took them: is there no such service, or is its queue's node down?

To a publisher both look alike (`basic.return`, 312 NO_ROUTE). So the queue is asked for, once for all requests that came
back for one service:

| the broker says | the request |
|---|---|
| there is no such queue | is refused: `UnknownService` |
| its node is down, or the link has no connection | waits for the queue until its caller's deadline, then goes out again |
| the queue is there | goes out again: it came, or was bound, in this very moment. Refused the third time: nothing binds it |
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from mycelia.amqp import Link, Returned
from mycelia.errors import BrokerUnavailable, MyceliaError
from mycelia.log_event import event
from mycelia.wire import service_queue_name

__all__ = ["ReturnedRequests"]

log = logging.getLogger("mycelia.clients")

PAUSE_S = 0.1
"""Before the queue is asked for again; doubled each time."""
MAX_PAUSE_S = 2.0
MAX_SENDINGS = 3
"""Of one request whose queue is there and that comes back all the same."""


class ReturnedRequests:
    """Finds out what becomes of returned requests. Lives on one event loop.

    Args:
        link: an open link.
        is_waiting: whether the caller of a request still waits.
        send: sends a request again.
        refuse: ends a request's call with `UnknownService`.
    """

    def __init__(
        self,
        link: Link,
        *,
        is_waiting: Callable[[Returned], bool],
        send: Callable[[Returned], None],
        refuse: Callable[[Returned], None],
    ) -> None:
        self._link = link
        self._is_waiting = is_waiting
        self._send = send
        self._refuse = refuse
        self._waiting: dict[str, list[Returned]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._sendings: dict[str | None, int] = {}

    def add(self, returned: Returned) -> None:
        """A request has come back."""
        service = returned.routing_key.partition(".")[0]
        self._waiting.setdefault(service, []).append(returned)
        if service not in self._tasks:
            self._begin(service)

    @property
    def is_looking(self) -> bool:
        """Whether a queue is asked for now, or will be again."""
        return bool(self._tasks)

    def _begin(self, service: str) -> None:
        task = asyncio.create_task(self._look_for(service), name=f"mycelia:returned:{service}")
        self._tasks[service] = task
        task.add_done_callback(lambda _: self._ended(service))

    async def aclose(self) -> None:
        """Look for no queue any more. What waits is its callers' to end."""
        tasks = list(self._tasks.values())
        self._waiting.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, service: str) -> None:
        self._tasks.pop(service, None)
        if service in self._waiting:  # came back after the last look
            self._begin(service)
        if not self._tasks and not self._waiting:
            self._sendings.clear()

    async def _look_for(self, service: str) -> None:
        """Until no request for this service is left: those that come back meanwhile join in."""
        pause = PAUSE_S
        told = False
        while service in self._waiting:
            try:
                await self._link.consumer_count(service_queue_name(service))
            except BrokerUnavailable as exc:
                if not told:
                    told = True
                    count = len(self._waiting[service])
                    log.warning(event("requests_waiting", service=service, count=count, reason=exc))
            except MyceliaError:
                for returned in self._take(service):
                    self._refuse(returned)
                return
            else:
                self._send_again(service)
            # The answer to what was sent again comes with the next return, if any: the task stays for it a moment.
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE_S)
            self._drop_given_up(service)

    def _send_again(self, service: str) -> None:
        for returned in self._take(service):
            request = returned.properties.correlation_id
            self._sendings[request] = sendings = self._sendings.get(request, 0) + 1
            if sendings > MAX_SENDINGS:
                self._refuse(returned)
                continue
            try:
                self._send(returned)
            except MyceliaError:  # the connection went in this very moment: wait for it
                self._waiting.setdefault(service, []).append(returned)

    def _take(self, service: str) -> list[Returned]:
        waiting = self._waiting.pop(service, [])
        return [returned for returned in waiting if self._is_waiting(returned)]

    def _drop_given_up(self, service: str) -> None:
        left = self._take(service)
        if left:
            self._waiting[service] = left
