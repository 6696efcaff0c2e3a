"""Stops the consumer of a handler that fails too often, tries one message at a time, and goes on: `KillSwitch` at work.

While it is stopped messages wait in their queue, for other instances as well. What had come and not begun goes back there once,
when the broker has said that it sends no more; one may wait here, to be tried next. (From a stream, and from a queue that ends
with its consumers, nothing goes back: what had come waits here, and is tried first.)
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from mycelia.amqp import Delivery, LinkConsumer, OnDeliveries
from mycelia.call import Call, GiveBack, Outcome, Settlement
from mycelia.entrypoints.prefetch_changes import PrefetchChanges
from mycelia.errors import MyceliaError, RetryLater, describe
from mycelia.log_event import event
from mycelia.policies.kill_switch import Consumption, ConsumptionState, KillSwitch
from mycelia.runtime import Lane

__all__ = ["ConsumptionGuard"]

log = logging.getLogger("mycelia.entrypoints")

LOOK_S: Final = 1.0
"""Between two looks, while it probes, at whether anything is being tried. Arbitrary; nearly always the outcome of one brings the next."""
ASK_AGAIN_S = 2.0
"""Before the broker is asked again for what it has refused: the node of the queue may be down. Arbitrary."""


class ConsumptionGuard:
    """Of one consumer.

    Args:
        deliver: what takes its deliveries while all is well.
        expected: errors that callers cause: no failures of the handler.
        keeps: whether what had come waits here, because it cannot be given back.
        prefetch: of the consumer while all is well, as it is then.
    """

    def __init__(
        self,
        switch: KillSwitch,
        deliver: OnDeliveries,
        *,
        call: str,
        queue: str,
        expected: type[BaseException] | tuple[type[BaseException], ...],
        keeps: bool,
        prefetch: Callable[[], int],
    ) -> None:
        self._consumption = Consumption(switch)
        self._deliver = deliver
        self._call = call
        self._queue = queue
        self._expected = expected
        self._keeps = keeps
        self._prefetch_of = prefetch
        self._held: deque[Delivery] = deque()
        self._task: asyncio.Task[None] | None = None
        self._is_over = False
        self._consumer: LinkConsumer | None = None
        self._lane: Lane | None = None
        self._changes: PrefetchChanges | None = None

    def guard(self, consumer: LinkConsumer, lane: Lane, changes: PrefetchChanges) -> None:
        """Begin."""
        self._consumer, self._lane, self._changes = consumer, lane, changes

    @property
    def state(self) -> ConsumptionState:
        return self._consumption.state

    @property
    def stops(self) -> int:
        """How often it has stopped."""
        return self._consumption.stops

    def ask_for(self, prefetch: int) -> None:
        """Have the consumer's prefetch changed: now, or when it goes on."""
        if self.state is ConsumptionState.CONSUMING and self._changes is not None:
            self._changes.ask_for(prefetch)

    # --- in: deliveries -----------------------------------------------------------------------

    def on_deliveries(self, deliveries: list[Delivery]) -> None:
        """Takes what the consumer hands out."""
        if self._is_over:
            for delivery in deliveries:
                delivery.nack(requeue=True)
        elif self.state is ConsumptionState.CONSUMING:
            self._deliver(deliveries)
        else:
            self._held.extend(deliveries)
            if self.state is ConsumptionState.PROBING:
                self._try_one()

    def _try_one(self) -> None:
        """Let the first that is held begin, if there is one and none is being tried."""
        while self._held and not self._is_over and not self._is_trying:
            delivery = self._held.popleft()
            if not delivery.is_lost:
                self._deliver([delivery])
                return

    @property
    def _is_trying(self) -> bool:
        """Whether a probe runs, or waits for a worker. What began before does not count."""
        lane, since = self._lane, self._consumption.probing_since
        assert lane is not None
        return lane.waiting > 0 or any(call.started_at >= since for call in lane.running)

    # --- in: outcomes -------------------------------------------------------------------------

    def note(self, call: Call, outcome: Outcome, settlement: Settlement) -> None:
        """Count what came of a call, before it is settled."""
        if self._is_over or type(settlement) is GiveBack:
            return
        error = outcome.error
        before = self.state
        # What was refused tells of the message, and `RetryLater` of something else than the handler.
        if not outcome.is_refused and not isinstance(error, RetryLater):
            is_failure = error is not None and not isinstance(error, self._expected)
            has_changed = self._consumption.outcome(
                is_failure, began_at=call.started_at, now=time.monotonic()
            )
            if has_changed and self.state is ConsumptionState.STOPPED:
                self._stop(error, before)
            elif has_changed:
                self._go_on()
        if self.state is ConsumptionState.PROBING and self._held:
            asyncio.get_running_loop().call_soon(self._try_next)

    def _try_next(self) -> None:
        if self.state is ConsumptionState.PROBING:
            self._try_one()

    # --- what becomes of it -------------------------------------------------------------------

    def _stop(self, error: BaseException | None, before: ConsumptionState) -> None:
        switch, window = self._consumption.switch, self._consumption.window
        said = None if error is None else describe(error)
        if before is ConsumptionState.PROBING:
            log.warning(
                event(
                    "kill_switch_probe_failed",
                    call=self._call,
                    queue=self._queue,
                    probe_in_s=switch.pause_s,
                    error=said,
                )
            )
        else:
            log.error(
                event(
                    "kill_switch_stopped",
                    call=self._call,
                    queue=self._queue,
                    failures=window.failures,
                    outcomes=window.outcomes,
                    window_s=switch.window_s,
                    probe_in_s=switch.pause_s,
                    error=said,
                )
            )
        assert self._lane is not None
        waiting = [call.message for call in self._lane.take_backlog() if call.message is not None]
        self._held.extendleft(reversed(waiting))
        self._drive(self._stand_still)

    def _go_on(self) -> None:
        log.warning(event("kill_switch_resumed", call=self._call, queue=self._queue))
        held = [delivery for delivery in self._held if not delivery.is_lost]
        self._held.clear()
        if held:
            # After the outcome that brought it here is settled.
            asyncio.get_running_loop().call_soon(self.on_deliveries, held)
        self._drive(self._consume)

    def _drive(self, step: Callable[[], Awaitable[None]]) -> None:
        """Run `step` when the one before is over, or has been called off."""
        before, self._task = self._task, None

        async def run() -> None:
            if before is not None:
                before.cancel()
                await asyncio.wait([before])
            await step()

        self._task = asyncio.create_task(run(), name=f"mycelia:kill-switch:{self._queue}")

    async def _ask(self, change: Callable[..., Awaitable[None]], *arguments: int) -> None:
        """Have the broker do it, however often that takes."""
        while True:
            try:
                await change(*arguments)
            except MyceliaError as exc:
                log.warning(event("kill_switch_unanswered", queue=self._queue, error=describe(exc)))
                await asyncio.sleep(ASK_AGAIN_S)
            else:
                return

    async def _stand_still(self) -> None:
        consumer = self._consumer
        assert consumer is not None
        pause_s = self._consumption.switch.pause_s
        over_at = time.monotonic() + pause_s
        # A paused consumer keeps what is on its way. So first it is to take one at a time: then what was on its way comes here.
        await self._ask(consumer.set_prefetch, 1)
        await self._ask(consumer.pause)
        if not self._keeps:
            self._give_back()
        await asyncio.sleep(max(0.0, over_at - time.monotonic()))
        self._consumption.probe(time.monotonic())
        log.info(event("kill_switch_probing", call=self._call, queue=self._queue))
        await self._probe()

    async def _probe(self) -> None:
        """See to it that something is tried until it is decided."""
        assert self._consumer is not None
        self._try_one()
        await self._ask(self._consumer.resume)
        # A probe may end without an outcome: its channel is lost, or its return is counted first.
        while self.state is ConsumptionState.PROBING:
            await asyncio.sleep(LOOK_S)
            self._try_next()

    async def _consume(self) -> None:
        assert self._consumer is not None
        assert self._changes is not None
        await self._ask(self._consumer.resume)
        await self._ask(self._consumer.set_prefetch, self._prefetch_of())
        self._changes.ask_for(self._prefetch_of())  # it may have changed meanwhile

    def _give_back(self) -> None:
        while self._held:
            self._held.popleft().nack(requeue=True)

    def stop(self) -> None:
        """Change nothing more; what is held goes back."""
        self._is_over = True
        if self._task is not None:
            self._task.cancel()
        self._give_back()
