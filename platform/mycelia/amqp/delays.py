"""Messages that arrive later, kept by the broker meanwhile: no plugin, no process that must live, few queues.

A delay is a whole number of quarter seconds, written in binary. Each binary digit is a *level*: a quorum queue whose messages
expire after 0.25, 0.5, 1, 2, … seconds. A message passes the levels whose digits are set, the longest first: 5 s is 4 s and then 1 s.
So a handful of queues serves every delay, and in each of them all messages wait equally long: nobody waits behind another.

    publish ─► mycelia.delay.short ─────► queue of the first level, mycelia.delay.short.4s
                                             │ expired
                                             ▼
               mycelia.delay.short.below.4s, its dead-letter exchange
                 │ the next digit is set: that queue    └ it is not: alternate exchange, …below.2s ─► …
                 ▼ after the last
               mycelia.delay.deliver ─► the queue, or the exchange, that the message is for
                 └ gone ─► mycelia.delayed.dead

All these are `headers` exchanges: digits and goal are headers of the message, so its routing key stays its own (with topic
exchanges it would have to carry both, within 255 bytes). What the design rests on:

- Dead-lettering is *at least once* (`x-dead-letter-strategy`, with `x-overflow: reject-publish`): a level forgets a message when
  the next queue has it.
- What is dead-lettered so and can be routed nowhere is tried for ever, and 32 such messages stop a level. So nothing is
  unroutable: a goal that is gone leads to `ORPHANS`, and a message that may vanish (an event without handlers) goes also to a
  queue in which nothing stays. A goal that is *full* and refuses messages does hold up its level.
- A level that is missing is passed over: the message comes early, and is not lost. The first one cannot be missing
  unnoticed: publishing is mandatory, and the entry has no alternate.
- Idle levels go by `x-expires`, which counts from the last declaration, whatever is in the queue. So a level is declared again
  before it is published to, at least every `REFRESH_S`, and lives longer than that and the longest delay together, by a wide margin.
  Short delays (up to 68 minutes) have levels of their own, which go after a day. A broker that is down meanwhile counts
  from its start.
- A level that was just made is not published to before the broker has it on disk (`Link.settling_time`): killed sooner, it would
  come back without what it had confirmed, or with a level that has no leader (seen with 3.10.8 and 4.3.6, up to 0.6 s after).
- Arguments of a name never change, because two versions of this may share a broker: another layout takes other names.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Final

from mycelia.amqp.delay_levels import (
    DELIVER,
    GOAL_HEADER,
    LEAST_DELAY_S,
    MAX_DELAY_S,
    REFRESH_S,
    VANISH_HEADER,
    family_of,
    on_its_way,
    units_of,
    when,
)
from mycelia.amqp.link import Link
from mycelia.amqp.model import Binding, Exchange, ExchangeBinding, Message, Queue
from mycelia.amqp.topology import Part
from mycelia.errors import BrokerUnavailable, ConfigError, LinkError, TopologyError, Unroutable
from mycelia.log_event import event

__all__ = ["LEAST_DELAY_S", "MAX_DELAY_S", "ORPHANS", "Delays"]

log = logging.getLogger("mycelia.amqp")

ORPHANS: Final = "mycelia.delayed.dead"
"""The queue of messages whose goal was gone when their time had come. Somebody should look at them, as at dead letters; the header
`x-mycelia-delay-to` says where they were going."""

_NOWHERE: Final = "mycelia.delay.nowhere"
_QUEUE: Final = "queue:"
_EXCHANGE: Final = "exchange:"


class Delays:
    """Publishes messages that arrive later. Shares its queues with all others on the broker.

    Args:
        link: an open link.
        monotonic: the clock that tells when a declaration is old.
    """

    def __init__(
        self,
        link: Link,
        *,
        monotonic: Callable[[], float] = lambda: time.monotonic(),  # a test may move it
    ) -> None:
        self._link = link
        self._monotonic = monotonic
        self._declared_at: dict[str, float] = {}
        """When what was last declared: a level by its queue, a goal, and all that every delay needs."""
        self._settled_at: dict[str, float] = {}
        """When a level that we made may be published to, by the loop's clock."""
        self._declaring = asyncio.Lock()
        self._expected: set[str] = set()

    async def expect(
        self, queue: str, *, after: float | None = None, timeout: float | None = None
    ) -> None:
        """Make sure that messages on their way to `queue` find it, from now on: also where the queue is a new one.

        For whoever consumes from it, once it is declared. The link looks after it, as after all that it has declared.

        Args:
            after: a delay that is likely: its levels are made too, so that the first such message need not wait for them to settle.
            timeout: seconds for all of it; `None`: as long as the link reconnects.

        Raises:
            TopologyError, AccessRefused: the broker does not let us.
            BrokerUnavailable: not done within `timeout` seconds.
        """
        self._expected.add(_QUEUE + queue)
        self._declared_at.pop(_QUEUE + queue, None)
        units = 0 if after is None else units_of(min(after, MAX_DELAY_S))
        async with self._bounded(_QUEUE + queue, timeout):
            await self._declare(_QUEUE + queue, units)

    async def publish(
        self,
        message: Message,
        after: float,
        *,
        queue: str | None = None,
        may_vanish: bool = False,
        timeout: float = 30.0,
    ) -> None:
        """Publish `message` so that it arrives `after` seconds from now, or up to 0.25 s later. Returns when the broker has it.

        It outlives restarts of the broker and of everyone else, and arrives at least once: with its body, routing key, headers and
        properties, but for what would set it apart in a level (`delay_levels` has the list). Entrypoints restore all of it.

        Args:
            message: with an exchange, it goes to that exchange in the end; without, to the queue that its routing key names.
            after: seconds; at least `LEAST_DELAY_S`, at most `MAX_DELAY_S`.
            queue: it goes to this queue instead, whatever its exchange and its routing key, which it keeps.
            may_vanish: nobody need be there for it. Else it ends in `ORPHANS` where its goal is gone when its time has come.
                What goes to an exchange may vanish in any case where no queue is bound for it, as any event without handlers.
            timeout: seconds for all of it.

        Raises:
            ConfigError: more than `MAX_DELAY_S`.
            LinkError: as `Link.declare()` and `Link.publish()`. It may be on its way all the same.
        """
        if not 0 <= after <= MAX_DELAY_S:
            raise ConfigError(
                f"{message.target}: a message can be delayed by 45 days ({MAX_DELAY_S:g} s) at most, not by {after:g} s."
            )
        ends = self._monotonic() + timeout
        if queue is not None or not message.exchange:
            goal = _QUEUE + (message.routing_key if queue is None else queue)
        else:
            goal, may_vanish = _EXCHANGE + message.exchange, True
        units = units_of(after)
        delayed = on_its_way(message, units, goal, may_vanish=may_vanish, wall=time.time())
        await self._prepare(goal, units, timeout)
        try:
            await self._link.publish(delayed, timeout=max(ends - self._monotonic(), 0.0))
        except (Unroutable, TopologyError):  # somebody has deleted the level, or its exchange
            self._declared_at.clear()
            await self._prepare(goal, units, max(ends - self._monotonic(), 0.0))
            await self._link.publish(delayed, timeout=max(ends - self._monotonic(), 0.0))

    async def _prepare(self, goal: str, units: int, timeout: float) -> None:
        """Have all declared that a delay of `units` needs, and settled."""
        async with self._bounded(goal, timeout):
            await self._declare(goal, units)
            path = family_of(units).queues(units)
            pause = max(self._settled_at.get(level, 0.0) for level in path) - _loop_time()
            if pause > 0:
                await asyncio.sleep(pause)

    @contextlib.asynccontextmanager
    async def _bounded(self, goal: str, timeout: float | None) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(timeout):
                yield
        except TimeoutError:
            raise BrokerUnavailable(
                f"delays on the way to {goal}: not declared within {timeout:g} s. Is the broker there?"
            ) from None

    async def _declare(self, goal: str, units: int) -> None:
        """Have all declared that a delay of `units` needs (0: only its end), lately. Callers beside each other share it."""
        family = family_of(units)
        path = {family.queue(level): level for level in family.path(units)}
        needs: dict[str, Callable[[], Iterator[Part]]] = {DELIVER: _foundation}
        for name, level in path.items():
            needs[name] = partial(family.parts, level)
        needs[goal] = partial(_goal_parts, goal)
        if not self._missing(needs):
            return
        async with self._declaring:
            missing = self._missing(needs)
            began = self._monotonic()
            made = [name for name in missing if name in path and not await self._exists(name)]
            parts = dict.fromkeys(part for name in missing for part in needs[name]())
            await self._link.declare(*parts)
            self._settled_at.update(dict.fromkeys(made, _loop_time() + self._link.settling_time))
            self._declared_at.update(dict.fromkeys(missing, began))
            if goal not in self._expected:  # it is somebody else's, and may go with him
                self._link.forget(*_goal_parts(goal))
        if DELIVER in missing:
            await self._look_at_orphans()

    async def _exists(self, queue: str) -> bool:
        try:
            await self._link.message_count(queue)
        except LinkError:  # for another reason than that it is missing, nobody knows: as if it were
            return False
        return True

    def _missing(self, names: dict[str, Callable[[], Iterator[Part]]]) -> list[str]:
        old = self._monotonic() - REFRESH_S
        return [name for name in names if self._declared_at.get(name, -float("inf")) < old]

    async def _look_at_orphans(self) -> None:
        """Say it where somebody should look at them: once an hour at most, and only where something is delayed."""
        try:
            count = await self._link.message_count(ORPHANS)
        except LinkError:
            return
        if count:
            log.warning(
                event(
                    "delayed_messages_orphaned",
                    queue=ORPHANS,
                    messages=count,
                    detail="their queue was gone when their time had come; x-mycelia-delay-to names it",
                )
            )


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


def _foundation() -> Iterator[Part]:
    """What every delay needs behind its last level."""
    yield Exchange(ORPHANS, "fanout")
    # RabbitMQ 4 would drop a message that has been looked at twenty times.
    yield Queue(ORPHANS, arguments={"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000})
    yield Binding(ORPHANS, ORPHANS, "")
    yield Exchange(DELIVER, "headers", arguments={"alternate-exchange": ORPHANS})
    yield Queue(_NOWHERE, arguments={"x-queue-type": "classic", "x-message-ttl": 0})
    yield Binding(_NOWHERE, DELIVER, "", when(VANISH_HEADER, "1"))


def _goal_parts(goal: str) -> Iterator[Part]:
    """The way to where a message is going; it must be there."""
    if goal.startswith(_QUEUE):
        yield Binding(goal.removeprefix(_QUEUE), DELIVER, "", when(GOAL_HEADER, goal))
    else:
        yield ExchangeBinding(goal.removeprefix(_EXCHANGE), DELIVER, "", when(GOAL_HEADER, goal))
