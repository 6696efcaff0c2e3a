"""A partition's lease in a group, and its checkpoint: the glue between `LeaseRegister` and the broker."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from mycelia.amqp import (
    CLOSE_TIMEOUT,
    ConsumeOptions,
    Delivery,
    Link,
    LinkConsumer,
    Message,
    Properties,
    Queue,
)
from mycelia.errors import LeaseLost, LinkError
from mycelia.log_event import event
from mycelia.logs.lease_register import LeaseEntry, LeaseRegister, LeaseVerdict, read_lease_entry
from mycelia.logs.position import LogPosition

__all__ = ["PartitionLease", "consumers_of", "group_queue_name", "lease_queue"]

log = logging.getLogger("mycelia.logs")

CLAIM_TIMEOUT: Final = 3.0
"""Seconds for a claim to come back. It takes milliseconds, unless another has the partition."""

COMMIT_TIMEOUT: Final = 10.0

_CLAIM_AGAIN_S: Final = 1.0

_CLAIM_LIVES_MS: Final = 60_000
"""What nobody has read by then, nobody waits for."""

_NO_DELIVERY_LIMIT: Final = 1_000_000_000
"""RabbitMQ 4 drops a message that has come back twenty times; a checkpoint comes back with each owner that dies."""


def group_queue_name(log_name: str, group: str) -> str:
    """What the names of a group's queues begin with: its leases' are `…-p`, its dead letters' is `….dead`."""
    return f"log-{log_name}--{group}"


def lease_queue(log_name: str, group: str, partition: int) -> Queue:
    """The queue that holds whose a partition is, and how far the group has come there."""
    return Queue(
        f"{group_queue_name(log_name, group)}-{partition}",
        arguments={
            "x-queue-type": "quorum",
            "x-single-active-consumer": True,
            "x-delivery-limit": _NO_DELIVERY_LIMIT,
        },
    )


class PartitionLease:
    """One instance's lease of one partition.

    Args:
        link: an open link, for leases: its heartbeat bounds how long a dead owner is missed.
        on_lost: told, on the loop, when the lease has been lost.
    """

    def __init__(
        self, link: Link, queue: Queue, *, on_lost: Callable[[], None] = lambda: None
    ) -> None:
        self._link = link
        self._queue = queue
        self._on_lost_lease = on_lost
        self._claim = uuid.uuid4().hex
        self.owner = f"{socket.gethostname()}:{os.getpid()}"
        """Who this is, for people."""
        self._register = LeaseRegister(self._claim)
        self._kept: Delivery | None = None
        self._consumer: LinkConsumer | None = None
        self._owned: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_held(self) -> bool:
        """Whether the partition is ours, as far as we know."""
        return self._register.epoch > 0 and self._consumer is not None

    @property
    def epoch(self) -> int:
        return self._register.epoch

    @property
    def position(self) -> LogPosition | None:
        """How far the group has come; `None`: it has not begun."""
        return self._register.position

    async def acquire(self) -> bool:
        """Become the partition's owner, if nobody else is. Bounded.

        Raises:
            TopologyError, AccessRefused: refused for good.
            BrokerUnavailable: the broker does not answer.
        """
        return await self._acquire(self._claim_once, CLAIM_TIMEOUT)

    async def take_over(self, timeout: float) -> bool:
        """Become the partition's owner, whoever has it: that one is told to leave, ends what it does there, and commits nothing more. An owner
        that does not hear is missed by the broker when its heartbeats are.

        Raises: as `acquire()`.
        """
        return await self._acquire(self._claim_until_owned, timeout)

    async def _claim_once(self) -> None:
        await self._publish(LeaseEntry(kind="claim", claim=self._claim, owner=self.owner))
        await self._owned

    async def _claim_until_owned(self) -> None:
        """A claim that the former owner has read is gone, and so is a word that came to nobody."""
        while not self._owned.done():
            await self._publish(LeaseEntry(kind="leave", claim=self._claim, owner=self.owner))
            await self._publish(LeaseEntry(kind="claim", claim=self._claim, owner=self.owner))
            await asyncio.wait([self._owned], timeout=_CLAIM_AGAIN_S)

    async def _acquire(self, claim: Callable[[], Awaitable[None]], timeout: float) -> bool:
        try:
            await self._link.declare(self._queue, timeout=COMMIT_TIMEOUT)
            self._consumer = await self._link.consume(
                self._queue.name,
                self._on_deliveries,
                ConsumeOptions(prefetch=200, on_lost=self._on_lost),
                timeout=COMMIT_TIMEOUT,
            )
            async with asyncio.timeout(timeout):
                await claim()
            # Fences off whoever was the owner before.
            await self.commit(self._register.position)
        except (TimeoutError, LeaseLost):
            await self.aclose()
            return False
        except BaseException:
            await self.aclose()
            raise
        log.info(event("log_partition_owned", queue=self._queue.name, epoch=self._register.epoch))
        return True

    async def commit(self, position: LogPosition | None) -> None:
        """Write down that everything before `position` has been handled; returns when the broker has it.

        Raises:
            LeaseLost: the partition is ours no more; nothing was written, or what was will be passed over.
            BrokerUnavailable, BrokerBlocked: not confirmed in time.
        """
        if not self.is_held:
            raise LeaseLost(
                f'queue "{self._queue.name}": the lease is lost; what has been handled since the last checkpoint comes '
                "again to the next owner."
            )
        await self._publish(self._register.next_checkpoint(position, self.owner))
        if not self.is_held:
            raise LeaseLost(f'queue "{self._queue.name}": the lease was lost meanwhile.')

    async def aclose(self) -> None:
        """Leave the partition to another. Idempotent; works with the broker down."""
        self._register.lost()
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.aclose(CLOSE_TIMEOUT)

    async def _publish(self, entry: LeaseEntry) -> None:
        is_word = entry.kind != "at"
        properties = Properties(
            content_type="application/json",
            delivery_mode=2,
            expiration=str(_CLAIM_LIVES_MS) if is_word else None,
        )
        message = Message(
            "", self._queue.name, msgspec.json.encode(entry), properties, mandatory=True
        )
        await self._link.publish(message, timeout=COMMIT_TIMEOUT)

    def _on_deliveries(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            entry = read_lease_entry(delivery.body)
            if entry is None:
                log.warning(event("log_lease_entry_unreadable", queue=self._queue.name))
                delivery.ack()
                continue
            verdict = self._register.read(entry)
            if verdict in (LeaseVerdict.KEEP, LeaseVerdict.FENCED):
                kept, self._kept = self._kept, delivery
                if kept is not None:
                    kept.ack()
            else:
                delivery.ack()
            if verdict is LeaseVerdict.OWNED and not self._owned.done():
                self._owned.set_result(None)
            if verdict is LeaseVerdict.FENCED:
                self._tell_loss("another owner has a higher epoch")
            if verdict is LeaseVerdict.TAKEN:
                self._tell_loss(f"it was taken by {entry.owner}")

    def _on_lost(self) -> None:
        self._kept = None
        if self._register.epoch:
            self._register.lost()
            self._tell_loss("its connection or channel was lost")

    def _tell_loss(self, reason: str) -> None:
        if self._consumer is None:
            return  # leaving
        log.warning(event("log_partition_lost", queue=self._queue.name, reason=reason))
        self._on_lost_lease()


async def consumers_of(link: Link, queue: str) -> int | None:
    """How many consume from a queue; `None`: that cannot be said now."""
    try:
        return await link.consumer_count(queue)
    except LinkError:
        return None
