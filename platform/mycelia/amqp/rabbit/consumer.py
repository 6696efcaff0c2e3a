"""A consumer that outlives its channels.

`RabbitConsumer` is what the runtime holds. It runs on one `Intake` after another: an intake is one channel with its subscription
at the broker, and the settler of what was delivered there. When an intake ends (connection lost, channel closed by an error,
consumer cancelled by the broker), the consumer's task sees to the next; settling a delivery of an ended intake does nothing,
because the broker has requeued it.

What can change while it runs (the prefetch, whether it is paused) is kept in the consumer as what is *wanted*; its task brings the
intake there, and each new intake begins there. So a change outlives reconnects, and changes need no lock: the last one wins.
"""

from __future__ import annotations

import asyncio
import logging
import re
from asyncio import FIRST_COMPLETED
from collections.abc import Awaitable, Callable
from typing import Any, Final

from mycelia.amqp.link import ConsumeOptions, LinkStatistics, OnDeliveries, check_prefetch
from mycelia.amqp.model import Delivery, Queue
from mycelia.amqp.rabbit.backoff import Backoff
from mycelia.amqp.rabbit.connection import (
    BrokerConnection,
    ChannelClosed,
    ConnectionLost,
)
from mycelia.amqp.rabbit.intake import Intake
from mycelia.amqp.refusals import NOT_POSSIBLE, QueueNodeDown, declaration_refused
from mycelia.errors import AccessRefused, BrokerUnavailable, LinkError, ProtocolError, TopologyError
from mycelia.log_event import event

__all__ = ["RabbitConsumer"]

_log = logging.getLogger("mycelia.amqp")


_STABLE_AFTER_S: Final = 5.0
"""An intake that lasted this long starts the backoff anew; one that did not is part of the same trouble."""
_SILENCE_S: Final = 2.0
"""Without an answer to `basic.consume`, before that is said: some brokers take a minute to find that a queue's node is down."""
_REMIND_EVERY_S: Final = 30.0
"""Between two lines about a queue that cannot be consumed. Arbitrary; rare enough not to fill a log overnight."""

_ACK_TIMEOUT: Final = re.compile(
    r"delivery acknowledgement on channel \d+ timed out(?:\. Timeout value used: (\d+) ms)?"
)
"""What RabbitMQ says (406) when a delivery stayed unsettled longer than its `consumer_timeout`."""
_ACK_TIMEOUT_ADVICE: Final = (
    "A delivery stayed unsettled longer than the broker's consumer_timeout, so the broker closed the channel and delivers "
    "everything unsettled on it again, while the first run may still be going on. Raise consumer_timeout in rabbitmq.conf "
    "(milliseconds; 1800000 by default) above the longest handler, make the handler shorter, or lower the prefetch if "
    "deliveries wait here for their turn."
)


class RabbitConsumer:
    """A consumer on a `RabbitLink`. See `LinkConsumer`.

    Args:
        declared: what is remembered of a queue's declaration.
        is_adopted: whether a declared queue was found with other arguments.
        connected: waits for a connection on which the topology is declared.
        redeclare: declares what is missing of the remembered topology.
    """

    def __init__(
        self,
        queue: str,
        options: ConsumeOptions,
        on_deliveries: OnDeliveries,
        statistics: LinkStatistics,
        *,
        declared: Callable[[str], Queue | None],
        is_adopted: Callable[[Queue], bool],
        connected: Callable[[], Awaitable[BrokerConnection]],
        redeclare: Callable[[], Awaitable[None]],
        backoff: Backoff,
        step_timeout: float,
        on_closed: Callable[[RabbitConsumer], None],
    ) -> None:
        check_prefetch(options.prefetch)
        self._queue = queue
        self._options = options
        self._on_deliveries = on_deliveries
        self._statistics = statistics
        self._declared = declared
        self._is_adopted = is_adopted
        self._connected = connected
        self._redeclare = redeclare
        self._backoff = backoff
        self._step_timeout = step_timeout
        self._on_closed = on_closed
        self._intake: Intake | None = None
        self._offset: int | None = None
        """Of a stream: where to go on."""
        self._held: list[Delivery] = []
        """Of a `no_ack` consumer that lost its channel while paused: the broker does not have them any more."""
        self._is_cancelled = False
        self._is_retired = False
        self._task: asyncio.Task[None] | None = None
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._last_reason: LinkError | None = None
        self._remind_at = 0.0
        self._prefetch = options.prefetch
        self._is_paused = False
        self._changed = asyncio.Event()
        """What is wanted may differ from what the intake does."""
        self._waiting: list[asyncio.Future[None]] = []
        """Who waits for the intake to do what is wanted."""

    @property
    def queue(self) -> str:
        return self._queue

    @property
    def prefetch(self) -> int:
        return self._prefetch

    @property
    def is_paused(self) -> bool:
        return self._is_paused

    @property
    def is_consuming(self) -> bool:
        return self._intake is not None and self._intake.is_consuming

    @property
    def is_cancelled(self) -> bool:
        return self._is_cancelled

    @property
    def unsettled(self) -> int:
        intake = self._intake
        return intake.unsettled if intake is not None and intake.channel.is_open else 0

    def __repr__(self) -> str:
        return f"<RabbitConsumer {self._queue!r} unsettled={self.unsettled}>"

    async def start(self, timeout: float | None) -> None:
        """Run; return when the broker has accepted the consumer.

        Raises:
            TopologyError, AccessRefused: refused for good.
            BrokerUnavailable: not consuming within `timeout` seconds.
        """
        self._task = asyncio.create_task(self._run(), name=f"mycelia:consume:{self._queue}")
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(self._started)
        except TimeoutError:
            await self.aclose(0)
            reason = self._last_reason or "no connection to the broker"
            raise BrokerUnavailable(
                f'queue "{self._queue}": not consuming within {timeout:g} s; {reason}'
            ) from None
        except BaseException:
            await self.aclose(0)
            raise

    # --- what can change while it runs ---

    async def set_prefetch(self, prefetch: int) -> None:
        check_prefetch(prefetch)
        self._prefetch = prefetch
        await self._settled()

    async def pause(self) -> None:
        self._is_paused = True
        if self._intake is not None:
            self._intake.hold()
        await self._settled()

    async def resume(self) -> None:
        self._is_paused = False
        if self._held:
            held, self._held = self._held, []
            self._on_deliveries(held)
        await self._settled()

    async def flush(self) -> None:
        intake = self._intake
        if intake is not None and intake.channel.is_open:
            await intake.flush(self._step_timeout)

    async def _settled(self) -> None:
        """Wait until the intake does what is wanted now. Without one there is nothing to wait for: the next begins there."""
        self._changed.set()
        intake = self._intake
        if self._task is None or intake is None or intake.ended.done():
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter

    # --- its end ---

    def retire(self) -> None:
        self._is_retired = self._is_paused = True
        if self._intake is not None:
            self._intake.hold()

    async def cancel(self) -> None:
        self._is_cancelled = True
        await self._end_task()
        if self._intake is not None:
            await self._intake.cancel(self._step_timeout)

    async def aclose(self, timeout: float = 5.0) -> None:
        self._is_cancelled = True
        await self._end_task()
        intake, self._intake = self._intake, None
        if intake is not None:
            loop = asyncio.get_running_loop()
            deadline = loop.time() + timeout
            try:
                await (
                    intake.retire(timeout)
                    if self._is_retired
                    else intake.cancel(timeout, is_closing=True)
                )
                if intake.channel.is_open:
                    await intake.settle_through(max(0.0, deadline - loop.time()))
            finally:
                intake.settle_soon()
                intake.close()
                await intake.channel.close(max(0.0, deadline - loop.time()))
        self._on_closed(self)

    async def _end_task(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    # --- inside ---

    async def _run(self) -> None:
        try:
            while True:
                await self._run_once()
        except LinkError as exc:  # there will be no connection any more
            if not self._started.done():
                self._started.set_exception(exc)
        finally:
            self._release_waiting()

    async def _run_once(self) -> None:
        """Run on one intake, from its start to its end, and wait until the next may be tried.

        Raises:
            LinkError: the consumer is refused for good, or there will be no connection any more.
        """
        while self._is_paused:  # another one would only take what nobody may be given
            self._changed.clear()
            await self._changed.wait()
        connection = await self._connected()
        reason: object
        try:
            intake = await self._start_intake(connection)
        except LinkError as exc:
            if not self._started.done() and isinstance(exc, TopologyError | AccessRefused):
                raise
            self._last_reason = exc
            reason = exc
            if isinstance(exc, TopologyError):
                self._offset = None  # of a queue, whose messages bear a stream's header: it takes no such argument
            self._intake = None
            self._release_waiting()
        else:
            if not self._started.done():
                self._started.set_result(None)
            self._last_reason = None
            self._remind_at = 0.0
            started_at = connection.loop.time()
            reason = await self._follow(intake)
            self._leave(intake)
            if connection.loop.time() - started_at > _STABLE_AFTER_S:
                self._backoff.reset()
        if connection.lost.done():
            return  # the link says so, reconnects and declares; all that is left is to wait for it
        delay = self._backoff.next_delay()
        self._log_loss(str(reason), delay)
        await asyncio.sleep(delay)
        if self._started.done() and not connection.lost.done():
            try:
                await self._redeclare()
            except LinkError as exc:
                _log.debug(event("redeclare_given_up", queue=self._queue, reason=exc))

    async def _follow(self, intake: Intake) -> str:
        """Keep `intake` doing what is wanted, until it ends; return why it did."""
        while not intake.ended.done():
            self._changed.clear()
            waiting, self._waiting = self._waiting, []
            refused: TopologyError | None = None
            try:
                await self._adjust(intake)
            except TopologyError as exc:
                refused = exc  # the intake has ended, if the broker said so, and else goes on
            except (LinkError, ProtocolError) as exc:
                intake.end(str(exc))
            finally:
                _release(waiting, refused)
            if not intake.ended.done() and not self._changed.is_set():
                changed = asyncio.ensure_future(self._changed.wait())
                try:  # cancelling this wait does not cancel `ended`
                    both: list[asyncio.Future[Any]] = [intake.ended, changed]
                    await asyncio.wait(both, return_when=FIRST_COMPLETED)
                finally:
                    changed.cancel()
        return intake.ended.result()

    async def _adjust(self, intake: Intake) -> None:
        """Bring `intake` to what is wanted.

        Raises:
            TopologyError: the broker refuses the prefetch; the one before is wanted again.
            LinkError, ProtocolError: the intake has ended over it.
        """
        if self._is_retired:
            return
        if self._is_paused:
            await intake.pause(self._step_timeout)
        elif intake.is_paused:
            await intake.resume(self._prefetch, self._step_timeout)
        before, wanted = intake.prefetch, self._prefetch
        if before == wanted:
            return
        if not wanted and intake.is_stream:  # asked, RabbitMQ closes the whole connection
            self._prefetch = before
            raise TopologyError(
                f'queue "{self._queue}": prefetch 0 refused: a stream needs a prefetch.'
            )
        try:
            await intake.change_prefetch(wanted, self._step_timeout)
        except (ChannelClosed, ConnectionLost) as exc:
            if exc.code not in (406, *NOT_POSSIBLE):
                raise
            if self._prefetch == wanted:
                self._prefetch = before
            raise TopologyError(f'queue "{self._queue}": prefetch {wanted} refused: {exc}') from exc

    def _release_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        _release(waiting, None)

    def _leave(self, intake: Intake) -> None:
        """Give an ended intake up, and remember what the next needs."""
        intake.close()
        if self._options.no_ack:
            self._held += intake.held
        intake.held.clear()
        # A stream hands out from where it is asked to: ask for what was not settled, not for the beginning again.
        offset = intake.next_offset()
        if offset is not None:
            self._offset = offset
        self._release_waiting()

    def _log_loss(self, reason: str, delay: float) -> None:
        timed_out = _ACK_TIMEOUT.search(reason)
        if timed_out is not None:
            _log.error(
                event(
                    "delivery_ack_timeout",
                    queue=self._queue,
                    consumer_timeout_ms=int(timed_out[1]) if timed_out[1] else None,
                    retry_in_s=round(delay, 2),
                    detail=_ACK_TIMEOUT_ADVICE,
                )
            )
            return
        now = asyncio.get_running_loop().time()
        if now < self._remind_at:
            return
        if (
            self._last_reason is not None
        ):  # it did not even start: the same again will be said more seldom
            self._remind_at = now + _REMIND_EVERY_S
        _log.warning(
            event(
                "consumer_lost" if self._started.done() else "consumer_waiting",
                queue=self._queue,
                retry_in_s=round(delay, 2),
                reason=reason,
            )
        )

    def _resume_offset(self) -> int | None:
        """Where the next intake of a stream begins; `None`: where the options say."""
        ask = self._options.resume_from
        if ask is not None and self._started.done():
            try:
                asked = ask()
            except Exception:  # noqa: BLE001  # a fault of the runtime; to go on is better than to stand still
                _log.exception(event("resume_from_raised", queue=self._queue))
            else:
                if asked is not None:
                    return asked
        return self._offset

    async def _start_intake(self, connection: BrokerConnection) -> Intake:
        channel = await connection.open_channel(self._step_timeout)
        declared = self._declared(self._queue)
        intake = Intake(
            channel,
            self._queue,
            self._options,
            self._on_deliveries,
            self._statistics,
            declared,
            self._changed.set,
            is_as_declared=declared is None or not self._is_adopted(declared),
        )
        if self._is_paused:
            intake.hold()
        self._intake = intake
        silence = connection.loop.call_later(_SILENCE_S, self._note_silence)
        try:
            await intake.start(self._prefetch, self._resume_offset(), self._step_timeout)
        except ChannelClosed as exc:
            raise declaration_refused(
                f'consuming from queue "{self._queue}"', exc.code, exc.text
            ) from exc
        except ConnectionLost as exc:
            if exc.code in NOT_POSSIBLE:
                raise TopologyError(f'consuming from queue "{self._queue}": {exc}') from exc
            raise
        except ProtocolError as exc:
            channel.close_nowait()
            raise TopologyError(f'consuming from queue "{self._queue}": {exc}') from exc
        except BaseException:
            channel.close_nowait()
            raise
        finally:
            silence.cancel()
        return intake

    def _note_silence(self) -> None:
        """Say what is waited for. Not given up sooner: what was asked would be done when nobody takes the messages any more."""
        self._last_reason = QueueNodeDown(
            f'queue "{self._queue}": no answer to basic.consume yet; its node may be down or inaccessible'
        )
        self._log_loss(str(self._last_reason), self._step_timeout)


def _release(waiting: list[asyncio.Future[None]], error: Exception | None) -> None:
    for waiter in waiting:
        if waiter.done():
            continue
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)
