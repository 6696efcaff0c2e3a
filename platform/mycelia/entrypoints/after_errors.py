"""What a policy makes of a method's error: the same for messages and for ticks."""

from __future__ import annotations

import logging
from random import Random

from mycelia.errors import ConfigError, RetryLater, describe
from mycelia.log_event import event
from mycelia.policies.retry import Retry

__all__ = ["pause_after", "policy_after"]

log = logging.getLogger("mycelia.entrypoints")


def policy_after(policy: Retry | None, error: BaseException, later_attempts: int) -> Retry | None:
    """The policy that says when to try again after `error`; `None` for never.

    Args:
        policy: of the entrypoint.
        later_attempts: of a method without a policy that raises `RetryLater`.
    """
    if policy is None and isinstance(error, RetryLater):
        policy = Retry(later_attempts)
    return policy if policy is not None and policy.wants(error) else None


def pause_after(
    policy: Retry, error: BaseException, attempt: int, random: Random, *, call: str
) -> float | None:
    """Seconds until the next attempt; `None` for no further one. A `RetryLater` that cannot be read is logged, and the policy's
    own pause taken: what `call` was about must not pay for it."""
    try:
        return policy.delay_after(error, attempt, random)
    except ConfigError as exc:
        log.error(event("retry_later_unreadable", call=call, error=describe(exc)))
        return policy.delay(attempt, random)
