"""When a handler that fails too often stops taking messages, and when it goes on: a record, and decisions over it. Pure.

| state | an outcome | it becomes |
|---|---|---|
| consuming | a failure; within `window` at least `minimum` outcomes, of which `failure_rate` failures | stopped |
| stopped | any | stays: these began before |
| stopped | … `pause` is over | probing |
| probing | a failure of what began since | stopped |
| probing | the `probes`-th success of what began since | consuming, its window empty |
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

import msgspec

from mycelia.durations import Duration, seconds_of
from mycelia.errors import ConfigError

__all__ = ["Consumption", "ConsumptionState", "FailureWindow", "KillSwitch", "kill_switch_of"]

BUCKETS: Final = 20
"""Parts of a window, each of which leaves it as a whole. Arbitrary: a window is up to a twentieth longer than it says."""


class KillSwitch(msgspec.Struct, frozen=True, kw_only=True):
    """When a handler stops taking messages because it fails: they wait in their queue, and one at a time is tried.

    The defaults are MassTransit's: a tenth of at least a hundred messages within a minute, and a minute's pause.

    Args:
        failure_rate: the share of failures, above 0 and up to 1.
        minimum: outcomes in the window before their rate means anything.
        window: how far back outcomes count; seconds, or text such as "1m".
        pause: how long nothing is taken before a message is tried.
        probes: messages that have to succeed, one after the other, before it goes on.

    Raises:
        ConfigError: one of these is something else.
    """

    failure_rate: float = 0.1
    minimum: int = 100
    window: Duration = 60.0
    pause: Duration = 60.0
    probes: int = 1

    def __post_init__(self) -> None:
        for name in ("minimum", "probes"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(
                    f"KillSwitch({name}={value!r:.60}): expected a whole number from 1."
                )
        rate = self.failure_rate
        if type(rate) not in (int, float) or not 0 < rate <= 1:
            raise ConfigError(
                f"KillSwitch(failure_rate={rate!r:.60}): expected a share of failures, above 0 and up to 1."
            )
        for name in ("window", "pause"):
            seconds = seconds_of(getattr(self, name), f"KillSwitch({name}=)")
            if seconds <= 0:
                raise ConfigError(
                    f"KillSwitch({name}={getattr(self, name)!r}): expected more than 0."
                )
            msgspec.structs.force_setattr(self, name, seconds)

    @property
    def window_s(self) -> float:
        return float(self.window)

    @property
    def pause_s(self) -> float:
        return float(self.pause)


def kill_switch_of(value: object, key: str) -> KillSwitch | None:
    """What a configuration says: `true` for the defaults, a mapping of what is other, `false` or nothing for none.

    Args:
        key: of the configuration, for the error's text.

    Raises:
        ConfigError: it is something else.
    """
    if value is None or value is False:
        return None
    if value is True:
        return KillSwitch()
    if not isinstance(value, Mapping):
        raise ConfigError(
            f'configuration key "{key}": expected a mapping, true or false; got {value!r:.60}.'
        )
    fields = KillSwitch.__struct_fields__
    unknown = [one for one in value if one not in fields]
    if unknown:
        raise ConfigError(
            f'configuration key "{key}": {unknown[0]!r:.60} is unknown. Known keys: {", ".join(fields)}.'
        )
    options: dict[str, Any] = dict(value)
    try:
        return KillSwitch(**options)
    except ConfigError as exc:
        raise ConfigError(f'configuration key "{key}": {exc}') from None


class FailureWindow:
    """Outcomes of the last `seconds`, counted in `BUCKETS` parts."""

    def __init__(self, seconds: float) -> None:
        self._length = seconds / BUCKETS
        self._parts: deque[list[float]] = deque()
        """(when it began, outcomes, failures), the oldest first."""
        self.outcomes = 0
        self.failures = 0

    def add(self, is_failure: bool, now: float) -> None:
        """Count an outcome; `now` never goes back."""
        self.expire(now)
        if not self._parts or now >= self._parts[-1][0] + self._length:
            self._parts.append([now, 0, 0])
        last = self._parts[-1]
        last[1] += 1
        last[2] += is_failure
        self.outcomes += 1
        self.failures += is_failure

    def expire(self, now: float) -> None:
        """Drop what is older than the window."""
        oldest = now - self._length * BUCKETS
        while self._parts and self._parts[0][0] + self._length <= oldest:
            _, outcomes, failures = self._parts.popleft()
            self.outcomes -= int(outcomes)
            self.failures -= int(failures)

    def clear(self) -> None:
        self._parts.clear()
        self.outcomes = self.failures = 0

    @property
    def failure_rate(self) -> float:
        return self.failures / self.outcomes if self.outcomes else 0.0


class ConsumptionState(Enum):
    """Where the handler stands."""

    CONSUMING = "consuming"
    STOPPED = "stopped"
    PROBING = "probing"


class Consumption:
    """Whether a handler takes messages. Times are of one clock that never goes back."""

    def __init__(self, switch: KillSwitch) -> None:
        self.switch = switch
        self.state = ConsumptionState.CONSUMING
        self.window = FailureWindow(switch.window_s)
        self.stops = 0
        """How often it has stopped, failed probes not counted."""
        self.probing_since = 0.0
        """When it began to probe last."""
        self._succeeded = 0

    def outcome(self, is_failure: bool, *, began_at: float, now: float) -> bool:
        """Count the outcome of a call that began at `began_at`. Returns whether the state has changed."""
        switch = self.switch
        if self.state is ConsumptionState.CONSUMING:
            window = self.window
            window.add(is_failure, now)
            if (
                not is_failure
                or window.outcomes < switch.minimum
                or window.failures < switch.failure_rate * window.outcomes
            ):
                return False
            self.stops += 1
            self.state = ConsumptionState.STOPPED
            return True
        if self.state is ConsumptionState.STOPPED or began_at < self.probing_since:
            return False
        if is_failure:
            self.state = ConsumptionState.STOPPED
            return True
        self._succeeded += 1
        if self._succeeded < switch.probes:
            return False
        self.window.clear()
        self.state = ConsumptionState.CONSUMING
        return True

    def probe(self, now: float) -> None:
        """The pause is over.

        Raises:
            ValueError: it does not stand still.
        """
        if self.state is not ConsumptionState.STOPPED:
            raise ValueError(f"{self.state.value}, not stopped")
        self.probing_since = now
        self._succeeded = 0
        self.state = ConsumptionState.PROBING
