"""Attempts at something of the user's own: `async for attempt in retry:`, and `for` in a thread."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from random import Random
from types import TracebackType
from typing import Protocol, Self

from mycelia.call import get_current_call
from mycelia.errors import RetryLater, RuntimeStateError, describe
from mycelia.log_event import event

__all__ = ["Attempt", "AwaitedAttempts", "BlockingAttempts"]

log = logging.getLogger("mycelia.policies")


_NEVER_KEPT_BACK = asyncio.CancelledError | GeneratorExit | KeyboardInterrupt | SystemExit


class Decides(Protocol):
    """What attempts ask of a policy. `Retry` is one."""

    def delay_after(self, error: BaseException, attempt: int, random: Random) -> float | None:
        """Seconds to wait after attempt `attempt` (from 1) came to `error`; `None`: give up."""
        ...


class Attempt:
    """One attempt; `with attempt:` around what may fail.

    An error after which the policy wants another attempt is kept back, and the loop goes on after its pause. Any other leaves the
    block, and so does one whose pause would outlast the deadline of the call being handled. A `RetryLater` always leaves it: it is
    for whoever runs the handler. So does what ends the task or the process, also with `on=BaseException`.
    """

    def __init__(self, policy: Decides, number: int, random: Random) -> None:
        self.number = number
        """From 1."""
        self.pause: float | None = None
        """Seconds until the next attempt; `None` where there is none to be."""
        self._policy = policy
        self._random = random
        self._is_used = False

    def __enter__(self) -> Self:
        self._is_used = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if error is None or isinstance(error, RetryLater | _NEVER_KEPT_BACK):
            return False
        pause = self._policy.delay_after(error, self.number, self._random)
        call = get_current_call()
        left = None if call is None else call.remaining()
        if pause is None or (left is not None and left <= pause):
            return False
        log.info(
            event(
                "attempt_failed",
                attempt=self.number,
                after=round(pause, 3),
                error=describe(error),
            )
        )
        self.pause = pause
        return True

    def following(self) -> Attempt | None:
        """The attempt after this one; `None` when it has succeeded.

        Raises:
            RuntimeStateError: this one was never used.
        """
        if not self._is_used:
            raise RuntimeStateError(
                "an attempt was not used: write `with attempt:` around what may fail, inside the loop."
            )
        if self.pause is None:
            return None
        return Attempt(self._policy, self.number + 1, self._random)


class AwaitedAttempts(AsyncIterator[Attempt]):
    """Attempts on the event loop."""

    def __init__(self, policy: Decides, random: Random) -> None:
        self._first = Attempt(policy, 1, random)
        self._last: Attempt | None = None

    async def __anext__(self) -> Attempt:
        last = self._last
        if last is None:
            self._last = self._first
            return self._first
        self._last = last.following()
        if self._last is None:
            raise StopAsyncIteration
        assert last.pause is not None
        await asyncio.sleep(last.pause)
        return self._last


class BlockingAttempts(Iterator[Attempt]):
    """Attempts in a thread, which sleeps between them."""

    def __init__(self, policy: Decides, random: Random) -> None:
        self._first = Attempt(policy, 1, random)
        self._last: Attempt | None = None

    def __next__(self) -> Attempt:
        last = self._last
        if last is None:
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                self._last = self._first
                return self._first
            raise RuntimeStateError(
                "`for attempt in retry` would block the event loop between attempts. Write `async for`."
            )
        self._last = last.following()
        if self._last is None:
            raise StopIteration
        assert last.pause is not None
        time.sleep(last.pause)
        return self._last
