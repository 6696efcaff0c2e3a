"""Calls that leave, tried again: `RpcProxy("prices", retry=Retry(attempts=3))`."""

from __future__ import annotations

import asyncio
import logging
from random import Random
from typing import Final

from mycelia.call import Call, Next, Outcome
from mycelia.errors import Overloaded, UnknownService, describe
from mycelia.log_event import event
from mycelia.policies.retry import Retry

__all__ = ["NOT_RUN", "Retrying"]

log = logging.getLogger("mycelia.clients")

NOT_RUN: Final = (UnknownService, Overloaded)
"""Errors that say for certain that the method has not run, and may come to another end in a moment. A broker that cannot be
reached is not among them: the link waits for it anyway, as long as the call has time."""


class Retrying:
    """The middleware around a proxy's calls: the same request again, while the policy wants it and time is left.

    The call's deadline holds for all attempts, pauses included; a pause that would pass it is not begun, and the last error is
    the outcome. Other middleware stands inside, and sees each attempt (`Call.attempt`).

    Args:
        policy: its `on`, where it is left at `Exception`, stands for `NOT_RUN`.
        random: for jitter.
    """

    def __init__(self, policy: Retry, random: Random | None = None) -> None:
        self._policy = policy
        self._only = NOT_RUN if policy.on is Exception else (BaseException,)
        self._random = random or Random()

    async def __call__(self, call: Call, next: Next) -> Outcome:
        while True:
            outcome = await next(call)
            error = outcome.error
            if error is None or not isinstance(error, self._only):
                return outcome
            pause = self._policy.delay_after(error, call.attempt, self._random)
            left = call.remaining()
            if pause is None or (left is not None and left <= pause):
                return outcome
            log.info(
                event(
                    "call_tried_again",
                    call=call.target.name,
                    attempt=call.attempt,
                    after=round(pause, 3),
                    error=describe(error),
                )
            )
            await asyncio.sleep(pause)
            call.attempt += 1
