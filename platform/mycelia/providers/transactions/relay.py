"""What publishes the rows of committed transactions: one task in each instance of a service.

    claim some rows → publish them, each key's one after the other → write what became of them → again

It looks when a session of this process has committed, and every `poll` seconds for what others left. A row goes when the broker
has confirmed its message; if the process dies in between, another publishes it again, with the same `message_id`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from random import Random
from typing import Any, Protocol, TypeVar
from uuid import uuid4

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from mycelia.amqp import Link
from mycelia.call import CallKind, PublishOptions
from mycelia.errors import BrokerBlocked, BrokerUnavailable, text_of
from mycelia.log_event import event
from mycelia.policies.retry import Retry, exponential
from mycelia.providers.transactions import claims
from mycelia.providers.transactions.claims import Backlog, ClaimedRow
from mycelia.providers.transactions.database import Database
from mycelia.providers.transactions.fate import LeftFree, Park, PutOff, fate_of, lines_of
from mycelia.providers.transactions.log_outlet import RowNumbers
from mycelia.wire import new_uuid

__all__ = ["OutboxRelay", "OutboxStatistics", "RelayOptions"]

log = logging.getLogger("mycelia.outbox")

T = TypeVar("T")

AWAY = (SQLAlchemyError, OSError)
"""What a database raises that cannot be asked now."""

_COUNT_EVERY_S = 15.0
_READY_S = 5.0
_MARGIN_S = 1.0
"""A message is given up this long before its claim runs out, so that no two instances publish it at once."""
_DRAIN_S = 5.0
_AWAY_PAUSES = exponential("250ms", max="15s")


class PublishesRows(Protocol):
    """What publishes rows of one kind: an `Outlet`, or a `LogOutlet`."""

    def publish_with(
        self,
        source: str,
        name: str,
        payload: Any,
        headers: dict[str, Any],
        deadline: float,
        options: PublishOptions,
    ) -> Coroutine[Any, Any, None]: ...


class OutboxStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What an outbox has done here, and what lies in its table."""

    sent: int
    """Messages that the broker has confirmed."""
    put_off: int
    """Attempts that failed, of messages that are tried again."""
    parked: int
    """Messages that were given up here."""
    waiting: int
    """Rows of this service in the table when it was last looked at (every 15 s), up to 10,000; parked ones are not among them."""
    parked_rows: int
    """Rows that lie there parked, up to 10,000."""
    oldest_s: float
    """Age of the oldest one that waits."""
    is_database_away: bool


class RelayOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a relay works. In seconds."""

    batch: int
    poll: float
    lease: float
    retry: Retry


class OutboxRelay:
    """The relay of one service in this process.

    Args:
        service: whose rows it publishes.
        database: where they are.
        link: by which they leave.
        outlets: the outlet for each kind.
        publish_timeout: gives the seconds that a message may wait for the broker.
    """

    def __init__(
        self,
        service: str,
        database: Database,
        link: Link,
        outlets: Mapping[CallKind, PublishesRows],
        options: RelayOptions,
        publish_timeout: Callable[[], float],
    ) -> None:
        self._service = service
        self._database = database
        self._link = link
        self._outlets = outlets
        self._options = options
        self._publish_timeout = publish_timeout
        self._name = f"{socket.gethostname()}:{os.getpid()}:{new_uuid()[:8]}"
        self._numbers = RowNumbers(uuid4().hex)
        self._random = Random()
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._is_stopping = False
        self._is_away = False
        self._unwritten: list[Callable[[Any], None]] = []
        """What became of rows, where the database could not be told yet. It comes before the next claim."""
        self._sent = self._put_off = self._parked = 0
        self._backlog = Backlog(0, 0, 0.0)
        self._counted_at = -_COUNT_EVERY_S
        self._task: asyncio.Task[None] | None = None

    # --- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        self._task = self._loop.create_task(self._run(), name=f"mycelia:outbox:{self._service}")

    def wake(self) -> None:
        """There may be something to publish. Safe in any thread, and after the end."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._woken.set)

    async def stop(self) -> None:
        """Publish what is there, for some seconds; give back the rest."""
        self._is_stopping = True
        self._woken.set()
        task, self._task = self._task, None
        if task is None:
            return
        await asyncio.wait([task], timeout=_DRAIN_S)
        if not task.done():
            await _cancelled(task)
            with contextlib.suppress(*AWAY, TimeoutError):
                async with asyncio.timeout(_DRAIN_S / 2):
                    await self._write_down()
                    await self._database.run(partial(claims.give_back, claimed_by=self._name))

    async def kill(self) -> None:
        """Stop at once. What it has claimed is free when the lease is over."""
        task, self._task = self._task, None
        if task is not None:
            await _cancelled(task)

    def statistics(self) -> OutboxStatistics:
        backlog = self._backlog
        return OutboxStatistics(
            sent=self._sent,
            put_off=self._put_off,
            parked=self._parked,
            waiting=backlog.waiting,
            parked_rows=backlog.parked,
            oldest_s=backlog.oldest_s,
            is_database_away=self._is_away,
        )

    # --- its task --------------------------------------------------------------------------------

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                has_more = await self._round()
                failures = 0
                if self._is_away:
                    self._is_away = False
                    log.info(event("outbox_database_back", service=self._service))
            except AWAY as exc:
                was_away, self._is_away = self._is_away, True
                failures += 1
                if not was_away:
                    self._say_away(exc)
                has_more = False
            except _BrokerAway:
                failures, has_more = failures + 1, False
            except Exception:
                # Nobody else would go on with the rows of this process.
                failures, has_more = failures + 1, False
                log.exception(event("outbox_failed", service=self._service))
            if self._is_stopping and not has_more:
                return
            if not has_more:
                await self._pause(failures)

    async def _pause(self, failures: int) -> None:
        if failures:
            await asyncio.sleep(_AWAY_PAUSES.pause(failures, self._random))
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._options.poll):
                await self._woken.wait()

    def _say_away(self, exc: BaseException) -> None:
        log.warning(
            event(
                "outbox_database_away",
                service=self._service,
                database=self._database.shown,
                error=text_of(exc).partition("\n")[0],
            )
        )

    async def _round(self) -> bool:
        """Publish some rows; give whether there may be more."""
        await self._write_down()
        await self._count()
        if not await self._is_broker_there():
            return False
        was_woken = self._woken.is_set()
        self._woken.clear()
        run, service, options = self._database.run, self._service, self._options
        if not was_woken and not await run(partial(claims.is_any_free, service=service)):
            return False
        claimed_at = time.monotonic()
        rows = await run(
            partial(
                claims.claim,
                service=service,
                claimed_by=self._name,
                limit=options.batch,
                lease=options.lease,
                numbers=self._numbers,
            )
        )
        if not rows:
            return False
        is_broker_away = await self._publish(rows, claimed_at + options.lease - _MARGIN_S)
        await self._write_down()
        if is_broker_away:
            self._woken.set()  # what has been given back is there for anybody
            raise _BrokerAway
        return len(rows) == options.batch or self._woken.is_set()

    async def _is_broker_there(self) -> bool:
        """Whether it makes sense to claim anything; waits a little for it."""
        if self._link.writable:
            return True
        if self._is_stopping:
            return False
        try:
            await self._link.ready(_READY_S)
        except (BrokerUnavailable, BrokerBlocked):
            return False
        return True

    async def _count(self) -> None:
        now = time.monotonic()
        if now - self._counted_at >= _COUNT_EVERY_S:
            self._backlog = await self._database.run(
                partial(claims.backlog_of, service=self._service)
            )
            self._counted_at = now

    # --- publishing ------------------------------------------------------------------------------

    async def _publish(self, rows: list[ClaimedRow], until: float) -> bool:
        """Publish rows, and note what became of each; give whether the broker went away meanwhile."""
        batch = _Batch(until)
        try:
            async with asyncio.TaskGroup() as tasks:
                for line in lines_of(rows):
                    tasks.create_task(self._publish_line(line, batch))
        finally:
            known = {*batch.done, *(row.id for row, _ in batch.failed)}
            if len(batch.done) < len(rows):
                self._numbers.begin_anew()
            self._unwritten.append(
                partial(
                    claims.settle,
                    claimed_by=self._name,
                    done=batch.done,
                    failed=batch.failed,
                    back=[row.id for row in rows if row.id not in known],
                )
            )
        return batch.is_broker_away

    async def _publish_line(self, line: list[ClaimedRow], batch: _Batch) -> None:
        """Publish the rows of one key, until one has to wait."""
        for row in line:
            if batch.is_over():
                return
            try:
                await self._publish_row(row, batch.until)
            except Exception as exc:  # noqa: BLE001  a middleware's may be any; it is the row's fate
                if not self._take_failure(row, exc, batch):
                    return
            else:
                batch.done.append(row.id)
                self._sent += 1

    async def _publish_row(self, row: ClaimedRow, until: float) -> None:
        message = row.message
        outlet = self._outlets[CallKind(message.kind)]
        deadline = min(until, time.monotonic() + self._publish_timeout())
        await outlet.publish_with(
            message.source,
            message.name,
            message.body,
            message.all_headers(),
            deadline,
            message.publish_options(),
        )

    def _take_failure(self, row: ClaimedRow, error: Exception, batch: _Batch) -> bool:
        """Note what becomes of the row; give whether the next one of its key may follow."""
        fate = fate_of(error, row.attempts + 1, self._options.retry, self._random)
        if isinstance(fate, LeftFree):
            batch.is_broker_away = True
            return False
        batch.failed.append((row, fate))
        message = row.message
        what = {
            "service": self._service,
            "row": row.id,
            "to": f"{message.source}/{message.name}",
            "message_id": message.message_id,
            "attempt": row.attempts + 1,
            "reason": fate.reason,
        }
        if isinstance(fate, PutOff):
            self._put_off += 1
            log.warning(event("outbox_put_off", **what, retry_in_s=fate.pause))
            return False
        assert isinstance(fate, Park)
        self._parked += 1
        log.error(event("outbox_parked", **what))
        return True

    async def _write_down(self) -> None:
        """Tell the database what became of rows."""
        while self._unwritten:
            await self._database.run(self._unwritten[0])
            del self._unwritten[0]


class _BrokerAway(Exception):
    """The broker went away while a batch was being published."""


class _Batch:
    """What becomes of the rows of one claim."""

    def __init__(self, until: float) -> None:
        self.until = until
        """On the monotonic clock: nothing is begun later."""
        self.done: list[int] = []
        self.failed: list[tuple[ClaimedRow, PutOff | Park]] = []
        self.is_broker_away = False

    def is_over(self) -> bool:
        return self.is_broker_away or time.monotonic() >= self.until


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
