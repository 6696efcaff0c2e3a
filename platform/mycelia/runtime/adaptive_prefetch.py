"""How a prefetch that adapts is said: `prefetch=AdaptivePrefetch(wait=0.1)`. Data; who keeps to it is an entrypoint's matter."""

from __future__ import annotations

import msgspec

from mycelia.durations import Duration, seconds_of
from mycelia.errors import ConfigError

__all__ = ["MAX_PREFETCH", "AdaptivePrefetch"]

MAX_PREFETCH = 65535
"""AMQP's prefetch has 16 bits."""


class AdaptivePrefetch(msgspec.Struct, frozen=True, kw_only=True):
    """A prefetch that follows how long the method takes: what runs, and what can be begun within `wait` seconds.

    So a method that takes a millisecond has hundreds of messages here and never waits for the broker, and one that takes a minute
    has hardly more than its workers, so that the others are there for other instances.

    Args:
        least: messages, at first and at the least. More than the workers, if these are never to wait at all.
        most: messages at the most.
        wait: seconds, or text as "200ms", that a message may wait here for its turn. Above the round trip to the broker, and small
            beside the time that a message may take altogether.

    Raises:
        ConfigError: one of these is something else.
    """

    least: int = 10
    most: int = 2000
    wait: Duration = 0.1

    def __post_init__(self) -> None:
        for name in ("least", "most"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= MAX_PREFETCH:
                raise ConfigError(
                    f"AdaptivePrefetch({name}={value!r:.60}): expected a whole number from 1 to {MAX_PREFETCH}."
                )
        if self.least > self.most:
            raise ConfigError(
                f"AdaptivePrefetch(least={self.least}, most={self.most}): the least is above the most."
            )
        seconds_of(self.wait, "AdaptivePrefetch(wait=)")
