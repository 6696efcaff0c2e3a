"""An instance in a group: which of the partitions are its own, as instances come and go.

Beside the queue of each partition (`partition_lease`) a group has two that never hold a message: whoever takes part consumes from
`….members`, whoever has too few partitions from `….waiting`. How many consumers a queue has is all that instances know of each other, but
for what they ask: whether all are the same method (`group_peers`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from random import Random, uniform
from typing import Final

from mycelia.amqp import CLOSE_TIMEOUT, Delivery, Link, LinkConsumer, Queue
from mycelia.errors import LeaseLost, LinkError, describe
from mycelia.log_event import event
from mycelia.logs.group_peers import GroupPeer, GroupPeers
from mycelia.logs.partition_lease import (
    PartitionLease,
    consumers_of,
    group_queue_name,
    lease_queue,
)
from mycelia.logs.shares import share_of

__all__ = ["Membership", "waited_for"]

log = logging.getLogger("mycelia.logs")

LOOK_EVERY: Final = 1.0
"""Seconds between two looks at the others, with jitter: a partition is free for one to three of them."""

ASK_EVERY: Final = 60.0
"""Seconds after which the others are asked again who they are, if nobody has come or gone."""

ASK_ASIDE: Final = 3.0
"""The same of an instance that stays out of the group."""

_SILENT_TWICE: Final = 2
"""Questions that nobody of another method has answered, until it counts as gone."""

Owns = Callable[[int, PartitionLease], Awaitable[None]]
"""What an owner does with a partition, until it is cancelled or has had enough; `LeaseLost` ends it, too. The lease is closed after it."""


_CANCEL_WAITS: Final = (2.5, 0.5)
"""Seconds that partitions have to end in once they are cancelled: to close their consumers, which a broker without a majority does not answer to. Then
they are cancelled again, in the middle of that."""


class Membership:
    """Takes part in a group, and runs `owns` for each partition that is its own.

    Args:
        link: an open link, for leases.
        method: `service.method`: who comes to a group of another's stays out until that has gone.
        leave: asks what `owns` does for a partition to end soon.
    """

    def __init__(
        self,
        link: Link,
        log_name: str,
        group: str,
        partitions: int,
        owns: Owns,
        leave: Callable[[int], None],
        method: str,
    ) -> None:
        self._link = link
        self._log_name = log_name
        self._group = group
        self._partitions = partitions
        self._owns = owns
        self._leave = leave
        name = group_queue_name(log_name, group)
        self._members = Queue(f"{name}.members", arguments={"x-queue-type": "quorum"})
        self._waiting = Queue(f"{name}.waiting", arguments={"x-queue-type": "quorum"})
        self._member: LinkConsumer | None = None
        self._waiter: LinkConsumer | None = None
        self._owned: dict[int, asyncio.Task[None]] = {}
        self._leases: dict[int, PartitionLease] = {}
        self._leaving: set[int] = set()
        self._seen_free: set[int] = set()
        self._random = Random()
        self._is_closing = False
        self._method = method
        self._peers = GroupPeers(link, name, method)
        self._rival: GroupPeer | None = None
        self._silences = 0
        self._ask_at = 0.0
        self._tell_at = 0.0
        self._asked_of = 0
        """How many the group had when they were asked."""

    @property
    def stays_out(self) -> str | None:
        """Why it takes no part, if it does not: another method is this group."""
        if self._rival is None:
            return None
        rival = self._rival
        return (
            f'{rival.method} in {rival.owner} is the group "{self._group}" of log "{self._log_name}" as well, so that each would have a part of its '
            f"partitions. {self._method} takes none until that has gone. Give one of them another group=, or none."
        )

    @property
    def owned(self) -> list[int]:
        """The partitions that are its own now, those included that it is about to leave."""
        return sorted(self._owned)

    def offsets(self) -> dict[int, int]:
        """Where the group goes on in each of them, by what has been written down."""
        positions = {number: lease.position for number, lease in self._leases.items()}
        return {number: at.offset for number, at in positions.items() if at is not None}

    async def run(self) -> None:
        """Take part until cancelled, whatever happens; `aclose()` comes after."""
        while True:
            try:
                if await self._join():
                    await self._look()
            except LinkError as exc:
                log.warning(
                    event("log_group_waiting", log=self._log_name, group=self._group, reason=exc)
                )
            except Exception as exc:  # a fault of ours; the group must go on all the same
                log.exception(
                    event(
                        "log_group_failed",
                        log=self._log_name,
                        group=self._group,
                        error=describe(exc),
                    )
                )
            await asyncio.sleep(LOOK_EVERY * uniform(0.7, 1.3))

    async def aclose(self, timeout: float) -> None:
        """Have all partitions left, and leave the group; within `timeout` seconds or little more, whether the broker answers or not. What runs is
        cancelled three seconds before, as what it ends with may have to be waited for as well. After `run()` has ended."""
        self._is_closing = True
        for partition in self._owned:
            self._leave(partition)
        if self._owned:
            patience = max(timeout - sum(_CANCEL_WAITS), min(timeout, 0.1))
            await asyncio.wait(self._owned.values(), timeout=patience)
        for waits in _CANCEL_WAITS:
            if left := list(self._owned.values()):
                for task in left:
                    task.cancel()
                await asyncio.wait(left, timeout=waits)
        await self._leave_queues()
        await self._peers.aclose()

    async def _leave_queues(self) -> None:
        """Be counted no more."""
        consumers = [one for one in (self._member, self._waiter) if one is not None]
        self._member = self._waiter = None
        await asyncio.gather(*(one.aclose(CLOSE_TIMEOUT) for one in consumers))

    async def _join(self) -> bool:
        """Whether it takes part: not beside another method."""
        if self._member is not None:
            return True
        await self._peers.start()
        queues = [
            lease_queue(self._log_name, self._group, number) for number in range(self._partitions)
        ]
        await self._link.declare(self._members, self._waiting, *queues, timeout=30.0)
        if not await self._may_join():
            return False
        self._peers.takes_part(True)
        self._member = await self._link.consume(self._members.name, _ignored, timeout=30.0)
        return True

    async def _may_join(self) -> bool:
        now = time.monotonic()
        if self._rival is not None and now < self._ask_at:
            return False
        members = await consumers_of(self._link, self._members.name)
        if members is None:
            return False  # it cannot be known now
        if members or self._rival is not None:
            self._ask_at = now + ASK_ASIDE
            rival = await self._peers.ask(members)
            if rival is not None:
                self._keep_out(rival)
                return False
            self._silences += 1
            if self._rival is not None and members and self._silences < _SILENT_TWICE:
                return False
        if self._rival is not None:
            self._rival = None
            log.info(event("log_group_is_free", log=self._log_name, group=self._group))
        self._asked_of = 0
        return True

    def _keep_out(self, rival: GroupPeer) -> None:
        now = time.monotonic()
        self._silences = 0
        if self._rival is None or self._rival.method != rival.method or now >= self._tell_at:
            self._tell_at = now + ASK_EVERY
            self._rival = rival
            log.error(
                event(
                    "log_group_is_anothers",
                    log=self._log_name,
                    group=self._group,
                    call=self._method,
                    other=rival.method,
                    owner=rival.owner,
                    detail=self.stays_out,
                )
            )

    async def _look_for_rivals(self, members: int) -> None:
        """Of two methods that came at the same moment, or over whom the broker was away, one leaves again."""
        now = time.monotonic()
        if members < 2 or (members == self._asked_of and now < self._ask_at):
            self._asked_of = members
            return
        self._asked_of, self._ask_at = members, now + ASK_EVERY
        rival = await self._peers.ask(members - 1)
        if rival is None:
            return
        self._keep_out(rival)
        self._peers.takes_part(False)
        for partition in list(self._owned):
            self._leaving.add(partition)
            self._leave(partition)
        await self._leave_queues()

    async def _look(self) -> None:
        """Look at the others once, and take or give what is due."""
        members = await consumers_of(self._link, self._members.name)
        if not members:
            return  # it cannot be known now: nothing is taken, and nothing is given
        await self._look_for_rivals(members)
        if self._member is None:
            return
        waiting = await consumers_of(self._link, self._waiting.name) or 0
        mine = len(self._owned) - len(self._leaving)
        others_need = waiting > (1 if self._waiter is not None else 0)
        share = share_of(self._partitions, members, mine, others_need)
        if share.give:
            staying = [one for one in self._owned if one not in self._leaving]
            for partition in self._random.sample(staying, share.give):
                self._leaving.add(partition)
                self._leave(partition)
        if share.take or share.take_spare:
            await self._take(share.take, share.take_spare)
        else:
            self._seen_free.clear()
        mine = len(self._owned) - len(self._leaving)
        await self._tell_need(share_of(self._partitions, members, mine, others_need).needs)

    async def _take(self, now: int, spare: int) -> None:
        others = [one for one in range(self._partitions) if one not in self._owned]
        self._random.shuffle(others)
        free: list[int] = []
        for partition in others:
            queue = lease_queue(self._log_name, self._group, partition).name
            if await consumers_of(self._link, queue) == 0:
                free.append(partition)
                if now and len(free) >= now:
                    break
        chosen = free[:now] if now else [one for one in free if one in self._seen_free][:spare]
        self._seen_free = set(free)
        await asyncio.gather(*map(self._acquire, chosen))

    async def _acquire(self, partition: int) -> None:
        queue = lease_queue(self._log_name, self._group, partition)
        lease = PartitionLease(self._link, queue, on_lost=lambda: self._leave(partition))
        try:
            if not await lease.acquire():
                return
        except LinkError as exc:
            log.info(event("log_lease_refused", queue=queue.name, reason=exc))
            return
        if self._is_closing:
            await lease.aclose()
            return
        task = asyncio.create_task(
            self._own(partition, lease), name=f"mycelia:log:{self._log_name}-{partition}"
        )
        self._owned[partition] = task
        self._leases[partition] = lease

    async def _own(self, partition: int, lease: PartitionLease) -> None:
        try:
            await self._owns(partition, lease)
        except LeaseLost as exc:
            log.info(
                event(
                    "log_checkpoint_refused",
                    log=self._log_name,
                    group=self._group,
                    partition=partition,
                    reason=exc,
                )
            )
        except Exception as exc:  # a fault of ours; whoever has the partition next tries again
            log.exception(
                event(
                    "log_group_failed",
                    log=self._log_name,
                    group=self._group,
                    partition=partition,
                    error=describe(exc),
                )
            )
        finally:
            try:
                await lease.aclose()
            finally:
                self._owned.pop(partition, None)
                self._leases.pop(partition, None)
                self._leaving.discard(partition)

    async def _tell_need(self, needs: bool) -> None:
        if needs and self._waiter is None:
            self._waiter = await self._link.consume(self._waiting.name, _ignored, timeout=10.0)
        elif not needs and self._waiter is not None:
            waiter, self._waiter = self._waiter, None
            await waiter.aclose(CLOSE_TIMEOUT)


def _ignored(deliveries: list[Delivery]) -> None:
    for delivery in deliveries:
        delivery.ack()


async def waited_for(event: asyncio.Event, timeout: float) -> bool:
    """Wait for an event, or until the time is over; whether it has come."""
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        return False
    return True
