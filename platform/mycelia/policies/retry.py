"""When something that failed is tried again, and when no more: a record, and decisions over it. Pure.

The same record serves event handlers (`@event_handler(…, retry=Retry(attempts=5))`) and whatever else repeats. It knows neither
clock nor broker: who failed asks it for a pause, and randomness comes in as an argument.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Coroutine, Mapping
from random import Random
from typing import Any, Final, ParamSpec, TypeVar, overload

import msgspec

from mycelia.durations import Duration, seconds_of
from mycelia.errors import ConfigError, RetryLater
from mycelia.policies.attempts import AwaitedAttempts, BlockingAttempts

__all__ = [
    "DEFAULT_RETRY",
    "Exponential",
    "Fixed",
    "Linear",
    "Pauses",
    "Retry",
    "exponential",
    "fixed",
    "linear",
    "retry_of",
]

P = ParamSpec("P")
T = TypeVar("T")

Errors = type[BaseException] | tuple[type[BaseException], ...]


class Fixed(msgspec.Struct, frozen=True, tag=True):
    """Pauses one by one; the last stays. Made by `fixed()`. In seconds."""

    steps: tuple[float, ...]

    def pause(self, attempt: int, random: Random) -> float:
        return self.steps[min(attempt, len(self.steps)) - 1]


class Exponential(msgspec.Struct, frozen=True, tag=True):
    """Pauses that grow by a factor. Made by `exponential()`. In seconds."""

    first: float
    max: float
    factor: float
    jitter: bool

    def pause(self, attempt: int, random: Random) -> float:
        if self.first == 0:
            return 0.0
        # By logarithms, so that no number of attempts overflows.
        grown = math.log(self.first) + (attempt - 1) * math.log(self.factor)
        longest = self.max if grown >= math.log(self.max) else math.exp(grown)
        return random.uniform(0.0, longest) if self.jitter else longest


class Linear(msgspec.Struct, frozen=True, tag=True):
    """Pauses that grow by the same step. Made by `linear()`. In seconds."""

    step: float
    max: float

    def pause(self, attempt: int, random: Random) -> float:
        return min(self.step * attempt, self.max)


Pauses = Fixed | Exponential | Linear


def fixed(*steps: Duration) -> Fixed:
    """These pauses, one after the other; further ones are as long as the last: `fixed("1s", "5s", "30s")`.

    Raises:
        ConfigError: no step, or one that is no duration.
    """
    if not steps:
        raise ConfigError('fixed() needs at least one pause: fixed("1s", "5s", "30s").')
    return Fixed(tuple(seconds_of(step, "fixed()") for step in steps))


def exponential(
    first: Duration, *, max: Duration = "30m", factor: float = 2.0, jitter: bool = True
) -> Exponential:
    """Pauses from `first` on, each `factor` times the one before, `max` at most.

    Args:
        jitter: each pause is drawn between nothing and that (full jitter), so that what failed together does not come
            back together.

    Raises:
        ConfigError: no durations, `max` below `first` or 0, or a factor below 1.
    """
    seconds, most = seconds_of(first, "exponential()"), seconds_of(max, "exponential(max=)")
    if most <= 0 or most < seconds:
        raise ConfigError(f"exponential(): max={max!r} is less than the first pause, {first!r}.")
    if type(factor) not in (int, float) or not 1 <= factor < math.inf:
        raise ConfigError(f"exponential(): factor={factor!r} is not a number from 1.")
    return Exponential(seconds, most, float(factor), bool(jitter))


def linear(step: Duration, *, max: Duration = "30m") -> Linear:
    """Pauses of once, twice, three times … `step`, `max` at most.

    Raises:
        ConfigError: no durations, or `max` below `step`.
    """
    seconds, most = seconds_of(step, "linear()"), seconds_of(max, "linear(max=)")
    if most < seconds:
        raise ConfigError(f"linear(): max={max!r} is less than the step, {step!r}.")
    return Linear(seconds, most)


class Retry(msgspec.Struct, frozen=True):
    """How often something is tried, with which pauses, and after which errors.

    Args:
        attempts: all of them, the first included.
        backoff: the pauses between them: `fixed()`, `exponential()` or `linear()`.
        on: errors after which it is tried again: a class, or a tuple of them.
        give_up_on: errors after which it is not, though they are among `on`.

    For what a service does itself, it gives attempts:

        retry = Retry(attempts=3, backoff=exponential("100ms"))
        ...
        async for attempt in self.retry:
            with attempt:
                return await self.http.get(url)

    In a `def` method `for` does the same; `self.retry.call(function, …)` is the short form of both. Pauses that would outlast the
    deadline of the call being handled are not begun: the error is raised.

    Raises:
        ConfigError: one of these is something else.
    """

    attempts: int = 6
    backoff: Pauses = Fixed((1.0, 5.0, 30.0, 300.0, 1800.0))
    """By default 1 s, 5 s, 30 s, 5 min, 30 min: what passes in a moment is over quickly, and a deployment fits in."""
    on: Errors = Exception
    give_up_on: Errors = ()

    def __post_init__(self) -> None:
        if type(self.attempts) is not int or self.attempts < 1:
            raise ConfigError(
                f"Retry(attempts={self.attempts!r}): expected a whole number from 1, which counts the first attempt too."
            )
        if not isinstance(self.backoff, Fixed | Exponential | Linear):
            raise ConfigError(
                f"Retry(backoff={self.backoff!r:.60}): expected fixed(…), exponential(…) or linear(…)."
            )
        for name in ("on", "give_up_on"):
            value = getattr(self, name)
            classes = value if isinstance(value, tuple) else (value,)
            if not all(isinstance(one, type) and issubclass(one, BaseException) for one in classes):
                raise ConfigError(
                    f"Retry({name}={value!r:.60}): expected an exception class, or a tuple of them."
                )

    def delay(self, attempt: int, random: Random) -> float | None:
        """Seconds to wait after attempt `attempt` (from 1) has failed; `None`: give up."""
        if attempt >= self.attempts:
            return None
        return self.backoff.pause(max(attempt, 1), random)

    def wants(self, error: BaseException) -> bool:
        """Whether this error is one to try again after. A `RetryLater` always is."""
        if isinstance(error, RetryLater):
            return True
        return isinstance(error, self.on) and not isinstance(error, self.give_up_on)

    def delay_after(self, error: BaseException, attempt: int, random: Random) -> float | None:
        """Seconds to wait after attempt `attempt` (from 1) came to `error`; `None`: give up.

        A `RetryLater` says itself how long; the limit of attempts holds for it too.

        Raises:
            ConfigError: a `RetryLater` with something else than a duration.
        """
        if attempt >= self.attempts or not self.wants(error):
            return None
        if isinstance(error, RetryLater):
            return seconds_of(error.after, "RetryLater()")
        return self.delay(attempt, random)

    def __aiter__(self) -> AwaitedAttempts:
        return AwaitedAttempts(self, _random)

    def __iter__(self) -> BlockingAttempts:
        return BlockingAttempts(self, _random)

    @overload
    def call(
        self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T]: ...

    @overload
    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `function` as often as it takes; of an `async def` the result is to be awaited.

        Raises:
            Exception: what the last attempt raised.
        """
        if inspect.iscoroutinefunction(function):
            return self._call_awaited(function, args, kwargs)
        for attempt in self:
            with attempt:
                return function(*args, **kwargs)
        raise AssertionError("the last attempt returns or raises")

    async def _call_awaited(
        self,
        function: Callable[..., Coroutine[Any, Any, Any]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        async for attempt in self:
            with attempt:
                return await function(*args, **kwargs)
        raise AssertionError("the last attempt returns or raises")


_random = Random()

DEFAULT_RETRY: Final = Retry()
"""What event handlers and `@consume` do where nobody says."""

_KEYS: Final = ("attempts", "backoff", "exponential", "linear", "max", "factor", "jitter")


def retry_of(value: object, key: str) -> Retry | None:
    """The policy that a configuration says: a mapping, a list of pauses, `true` for the default; `false` and nothing for none.

    In a mapping, `attempts`; and the pauses as one of `backoff` (a list), `exponential` and `linear` (the first pause, beside which
    `max`, `factor` and `jitter` may stand). Pauses as a list: each of them once, and then no more.

    Args:
        key: of the configuration, for the error's text.

    Raises:
        ConfigError: it is something else.
    """
    if value is None or value is False:
        return None
    if value is True:
        return DEFAULT_RETRY
    try:
        if isinstance(value, list):
            return Retry(len(value) + 1, _steps(value))
        if isinstance(value, Mapping):
            return _retry_of_mapping(value)
        raise ConfigError(f"expected a mapping, a list of pauses, or false; got {value!r:.60}.")
    except ConfigError as exc:
        raise ConfigError(f'configuration key "{key}": {exc}') from None


def _retry_of_mapping(value: Mapping[str, Any]) -> Retry:
    unknown = [one for one in value if one not in _KEYS]
    if unknown:
        raise ConfigError(f"{unknown[0]!r:.60} is unknown. Known keys: {', '.join(_KEYS)}.")
    shapes = [one for one in ("backoff", "exponential", "linear") if one in value]
    if len(shapes) > 1:
        raise ConfigError(f"one of {' and '.join(shapes)}, not both.")
    shape = shapes[0] if shapes else ""
    fitting = {"exponential": ("max", "factor", "jitter"), "linear": ("max",)}.get(shape, ())
    beside = {one: value[one] for one in ("max", "factor", "jitter") if one in value}
    for one in beside:
        if one not in fitting:
            owner = "exponential or linear" if one == "max" else "exponential"
            raise ConfigError(f"{one} says something only beside {owner}.")
    backoff: Pauses
    match shape:
        case "exponential":
            backoff = exponential(value[shape], **beside)
        case "linear":
            backoff = linear(value[shape], **beside)
        case "backoff":
            backoff = _steps(value[shape])
            return Retry(value.get("attempts", len(backoff.steps) + 1), backoff)
        case _:
            backoff = DEFAULT_RETRY.backoff
    return Retry(value.get("attempts", DEFAULT_RETRY.attempts), backoff)


def _steps(value: object) -> Fixed:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"expected a list of pauses, got {value!r:.60}.")
    return Fixed(tuple(seconds_of(step, "a pause") for step in value))
