"""Sends dead letters again: each is published, confirmed, and only then removed from its queue.

| interrupted | what became of a message |
|---|---|
| before its confirm | it is in the dead-letter queue, and may be where it was sent as well |
| after it, before the broker knows that it may go | in both: at most `IN_FLIGHT` messages of a run |
| else | in one place; what was not sent is where it was, in its order |
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import msgspec

from mycelia.amqp import Delivery, Link, Message, Properties
from mycelia.control.dead_letters.letters import Letter, LetterFilter
from mycelia.control.dead_letters.routes import Destination, Router, Stranded
from mycelia.control.dead_letters.walk import Walk, WalkInterrupted
from mycelia.entrypoints.republished import HEADER_LIMITS, for_a_new_life
from mycelia.errors import (
    BrokerUnavailable,
    LinkError,
    ProtocolError,
    TopologyError,
    Unroutable,
    describe,
)

__all__ = ["IN_FLIGHT", "AroundSending", "RedriveReport", "purge", "redrive", "send_changed"]

IN_FLIGHT: Final = 64
"""Messages that are published and not yet removed. A compromise: of a killed run so many may be in two places."""
TOLD_S: Final = 0.006
"""After which the broker has been told that a message may go: acknowledgements wait for each other a little."""
MAX_INTERRUPTIONS: Final = 5
"""Losses of the connection without a message sent in between, before a run gives up."""
FINISH_S: Final = 10.0
"""For what is in flight, when the run is called off."""


class RedriveReport(msgspec.Struct, kw_only=True):
    """What a run has done. Counts are of messages."""

    dead_letter_queue: str
    there: int = 0
    """In the queue when it began."""
    looked_at: int = 0
    chosen: int = 0
    """Those that were meant."""
    sent: int = 0
    """Sent again, or thrown away."""
    foreign: int = 0
    """No dead letters of Mycelia's: left alone."""
    maybe_twice: int = 0
    """Sent, but the broker took them back before they were removed."""
    moved_to_the_end: int = 0
    """Left alone, but at the end of the queue: they had nearly been looked at too often."""
    destinations: Counter[str] = msgspec.field(default_factory=Counter)
    stranded: Counter[Stranded] = msgspec.field(default_factory=Counter)
    error: str | None = None
    """Why it ended before its end."""

    @property
    def is_complete(self) -> bool:
        """Whether all that was meant has been done."""
        return self.error is None and not self.stranded


OnProgress = Callable[[RedriveReport], None]

AroundSending = Callable[[Delivery, str, str], AbstractContextManager[None]]
"""What stands around the sending of a message: given that, as it lies there, and the exchange and the routing key that it goes to."""


def _nothing(delivery: Delivery, exchange: str, routing_key: str) -> AbstractContextManager[None]:
    return nullcontext()


async def redrive(
    link: Link,
    queue: str,
    router: Router,
    chosen: LetterFilter,
    *,
    limit: int | None = None,
    rate: float | None = None,
    dry_run: bool = False,
    user: str | None = None,
    timeout: float = 30.0,
    on_progress: OnProgress | None = None,
    around: AroundSending = _nothing,
) -> RedriveReport:
    """Send the dead letters of `queue` that are `chosen` again, each on its way.

    Those that come in meanwhile are left alone, so that what fails again is not sent round and round. Errors of the broker
    end the run; the report says so. Cancelling it lets what is in flight arrive, and leaves the rest where it was.

    Args:
        limit: how many to send at most.
        rate: how many a second.
        dry_run: send nothing, only tell.
        user: who publishes on the link.
        timeout: seconds for the broker to take a message.
        on_progress: told after each message that was looked at; must not wait.
        around: what stands around the sending of each message: a span, for instance.

    Raises:
        TopologyError: no such queue, or somebody else is at work on it.
    """
    run = _Run(
        link, queue, router, chosen, limit, rate, dry_run, user, timeout, on_progress, around
    )
    await run.run()
    return run.report


async def purge(
    link: Link,
    queue: str,
    chosen: LetterFilter,
    *,
    foreign_too: bool = False,
    user: str | None = None,
    timeout: float = 30.0,
    on_progress: OnProgress | None = None,
) -> RedriveReport:
    """Throw away the dead letters of `queue` that are `chosen` and there now.

    Args:
        foreign_too: also messages that Mycelia did not bury.

    Raises:
        LinkError: as `redrive()`; what was not thrown away is where it was.
    """
    report = RedriveReport(dead_letter_queue=queue)
    try:
        async with Walk(link, queue, user=user, timeout=timeout) as walk:
            report.there = walk.total
            async for delivery in walk:
                letter = Letter.of(delivery, queue, walk.seen)
                report.looked_at = walk.seen
                if not chosen.accepts(letter, time.time()):
                    await walk.keep(delivery)
                elif not (letter.is_ours or foreign_too):
                    report.foreign += 1
                    await walk.keep(delivery)
                else:
                    report.chosen += 1
                    report.sent += 1
                    walk.take(delivery)
                if on_progress is not None:
                    on_progress(report)
            report.moved_to_the_end = walk.moved_to_the_end
    except WalkInterrupted as exc:
        report.error = str(exc)
    return report


async def send_changed(
    link: Link,
    letter: Letter,
    route: Destination,
    body: bytes,
    properties: Properties,
    *,
    user: str | None = None,
    timeout: float = 30.0,
    around: AroundSending = _nothing,
) -> None:
    """Send `letter` with another body and other properties, then remove it from its queue.

    It is looked for again, and known by its body, its `message_id` and its fate.

    Raises:
        TopologyError: it is not in its queue any more.
        LinkError: it cannot be sent; it is where it was.
    """
    queue = letter.dead_letter_queue
    async with Walk(link, queue, user=user, timeout=timeout) as walk:
        async for delivery in walk:
            if letter.is_same(Letter.of(delivery, queue, walk.seen)):
                changed = msgspec.structs.replace(delivery, properties=properties, body=body)
                with around(changed, route.exchange, route.routing_key):
                    await _publish(link, changed, route, user, timeout)
                walk.take(delivery)
                return
            await walk.keep(delivery)
    raise TopologyError(
        f'queue "{queue}": the message is not there any more: somebody else has taken it.'
    )


async def _publish(
    link: Link, delivery: Delivery, route: Destination, user: str | None, timeout: float
) -> None:
    refusal: ProtocolError | None = None
    for limit in HEADER_LIMITS:
        properties = for_a_new_life(delivery, user=user, limit=limit)
        message = Message(
            route.exchange, route.routing_key, delivery.body, properties, mandatory=True
        )
        try:
            await link.publish(message, timeout=timeout)
        except ProtocolError as exc:  # the frame is smaller than hoped for
            refusal = exc
        else:
            return
    assert refusal is not None
    raise refusal


class _Run:
    """One run of `redrive()`, over as many walks as the connection makes of it."""

    def __init__(
        self,
        link: Link,
        queue: str,
        router: Router,
        chosen: LetterFilter,
        limit: int | None,
        rate: float | None,
        dry_run: bool,
        user: str | None,
        timeout: float,
        on_progress: OnProgress | None,
        around: AroundSending,
    ) -> None:
        self.report = RedriveReport(dead_letter_queue=queue)
        self._link = link
        self._queue = queue
        self._router = router
        self._chosen = chosen
        self._limit = limit
        self._interval = None if rate is None else 1 / rate
        self._next_at = 0.0
        self._dry_run = dry_run
        self._user = user
        self._timeout = timeout
        self._on_progress = on_progress
        self._around = around
        self._in_flight: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(IN_FLIGHT)
        self._failure: Exception | None = None

    async def run(self) -> None:
        report = self.report
        await self._router.check()
        left: int | None = None
        interruptions = 0
        while True:
            gone_before = self._gone
            try:
                await self._walk(left)
            except (WalkInterrupted, BrokerUnavailable) as exc:
                interruptions = 0 if self._gone > gone_before else interruptions + 1
                if interruptions >= MAX_INTERRUPTIONS:
                    report.error = str(exc)
                    return
                # Of what was sent last, the broker may not know yet that it may go: it comes again, before the others.
                if report.there:
                    left = report.there - self._gone + IN_FLIGHT
                report.chosen, report.foreign = self._gone, 0
                report.stranded.clear()
                try:
                    await self._link.ready(self._timeout)
                except LinkError as gone:
                    report.error = str(gone)
                    return
            except LinkError as exc:
                if left is None:  # nothing has been done
                    raise
                report.error = describe(exc)
                return
            else:
                if self._failure is not None:
                    report.error = describe(self._failure)
                return

    @property
    def _gone(self) -> int:
        """Messages that have left the queue, as far as we have told the broker."""
        return self.report.sent - self.report.maybe_twice

    async def _walk(self, count: int | None) -> None:
        report = self.report
        gone_before = self._gone
        async with Walk(
            self._link,
            self._queue,
            count=count,
            user=self._user,
            timeout=self._timeout,
        ) as walk:
            if count is None:
                report.there = walk.total
            try:
                async for delivery in walk:
                    report.looked_at = min(gone_before + walk.seen, report.there)
                    if self._failure is not None or self._is_enough:
                        break
                    await self._look_at(walk, delivery)
                    if self._on_progress is not None:
                        self._on_progress(report)
            finally:
                await self._finish()
                report.moved_to_the_end += walk.moved_to_the_end

    @property
    def _is_enough(self) -> bool:
        done = self.report.sent + len(self._in_flight)
        if self._dry_run:
            done = self.report.destinations.total()
        return self._limit is not None and done >= self._limit

    async def _look_at(self, walk: Walk, delivery: Delivery) -> None:
        report = self.report
        letter = Letter.of(delivery, self._queue, walk.seen)
        if not self._chosen.accepts(letter, time.time()):
            await walk.keep(delivery)
            return
        if not letter.is_ours and not self._router.is_told:
            report.foreign += 1
            await walk.keep(delivery)
            return
        route = await self._router.route(letter)
        report.chosen += 1
        if isinstance(route, Stranded):
            report.stranded[route] += 1
            await walk.keep(delivery)
        elif self._dry_run:
            report.destinations[str(route)] += 1
            await walk.keep(delivery)
        else:
            await self._pace()
            await self._room.acquire()
            task = asyncio.create_task(
                self._send(walk, delivery, route), name=f"mycelia:redrive:{self._queue}"
            )
            self._in_flight.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._room.release()

    async def _pace(self) -> None:
        if self._interval is None:
            return
        now = asyncio.get_running_loop().time()
        if self._next_at > now:
            await asyncio.sleep(self._next_at - now)
        self._next_at = max(self._next_at, now) + self._interval

    async def _send(self, walk: Walk, delivery: Delivery, route: Destination) -> None:
        report = self.report
        try:
            with self._around(delivery, route.exchange, route.routing_key):
                await _publish(self._link, delivery, route, self._user, self._timeout)
        except Unroutable:
            report.stranded[self._router.note_gone(route)] += 1
            await self._keep(walk, delivery)
        except Exception as exc:  # noqa: BLE001  whatever it is: the letter stays, and the run says why it ends
            self._failure = self._failure or exc
            await self._keep(walk, delivery)
        else:
            report.sent += 1
            report.destinations[str(route)] += 1
            if delivery.is_lost:
                report.maybe_twice += 1
            else:
                walk.take(delivery)
                await asyncio.sleep(TOLD_S)

    async def _keep(self, walk: Walk, delivery: Delivery) -> None:
        try:
            await walk.keep(delivery)
        except LinkError as exc:
            self._failure = self._failure or exc

    async def _finish(self) -> None:
        """Let what is in flight arrive; called off, for a while."""
        task = asyncio.current_task()
        called_off = task is not None and task.cancelling() > 0
        if self._in_flight:
            await asyncio.wait(self._in_flight, timeout=FINISH_S if called_off else None)
        for left in self._in_flight:
            left.cancel()
        if self._in_flight:
            await asyncio.wait(self._in_flight)
