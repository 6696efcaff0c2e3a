"""Faults that are injected on purpose: calls that fail, take long, or vanish, as many and as often as a rule says.

For tests (`mycelia.testing.faults`) and for a service that runs, to see what the others make of it:

    mycelia:
      middleware:
        - mycelia.policies.faults.ConfiguredFaults:
            seed: 1
            rules:
              - {fail: registry.get, rate: 0.2, error: ConnectionError}
              - {delay: "registry.*", by: 200ms, rate: 0.5}
              - {drop: registry.get, nth: [3]}

What a rule does depends on where it meets the call: as it arrives at the service (`inbound`, the default) or as it leaves its
caller (`outbound`). Nothing but what rules name is touched.
"""

from __future__ import annotations

import asyncio
import builtins
import importlib
import inspect
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from random import Random
from typing import Any, Literal

import msgspec

from mycelia.call import Ack, Call, CallKind, Direction, Middleware, Next, Outcome, Target
from mycelia.durations import Duration, seconds_of
from mycelia.errors import ConfigError, DeadlinePassed, MyceliaError, RpcTimeout
from mycelia.log_event import event

__all__ = ["ArmedFault", "ConfiguredFaults", "FaultRule", "FaultSource", "InjectedFault"]

log = logging.getLogger("mycelia.policies")

MakeError = Callable[[], BaseException]


class InjectedFault(MyceliaError):
    """Nothing is wrong: a fault rule wanted this call to fail."""

    retryable = True


class FaultRule(msgspec.Struct, frozen=True, kw_only=True):
    """What is to happen to which calls."""

    action: Literal["fail", "delay", "drop"]
    target: str
    """`service.method` as logs name it, with `*` and `?`; of an event that leaves `service.event`, of a message `exchange.key`."""
    direction: Direction = Direction.INBOUND
    rate: float = 1.0
    """How often, from 0 to 1, of the calls that `nth` and `times` leave."""
    nth: frozenset[int] | None = None
    """Which of the calls, counted from 1; `None` for all."""
    times: int | None = None
    """After how many faults it is over; `None` for never."""
    error: MakeError | None = None
    """Makes what a call fails with."""
    is_after: bool = False
    """Whether it fails after its method has run: the work is done, its result is lost."""
    lost: Literal["reply", "request"] = "reply"
    """What of an RPC is dropped. Without its reply the method has run."""
    least_s: float = 0.0
    most_s: float = 0.0
    """Between which two a delay lies."""

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate={self.rate!r}: expected a number from 0 to 1")
        if self.nth is not None and any(type(n) is not int or n < 1 for n in self.nth):
            raise ValueError(f"nth={sorted(self.nth)!r}: calls are counted from 1")
        if self.times is not None and (type(self.times) is not int or self.times < 1):
            raise ValueError(f"times={self.times!r}: expected a whole number of at least 1")
        if not self.target:
            raise ValueError('no target: expected "service.method", such as "registry.get"')

    @property
    def words(self) -> str:
        """In short: `fail registry.get rate=0.2`."""
        limits = [f"rate={self.rate:g}"] if self.rate < 1 else []
        limits += [] if self.nth is None else [f"nth={sorted(self.nth)}"]
        limits += [] if self.times is None else [f"times={self.times}"]
        if self.most_s:
            pause = (
                f"{self.least_s:g}..{self.most_s:g}"
                if self.least_s < self.most_s
                else f"{self.most_s:g}"
            )
            limits.append(f"by={pause}s")
        return " ".join([self.action, self.target, *limits])

    def could_meet(self, target: Target) -> bool:
        """Whether calls of `target` may be meant; a target whose method is `*` stands for many."""
        if self.direction is not target.direction:
            return False
        return target.method == "*" or fnmatchcase(target.name, self.target)


class ArmedFault:
    """A rule, and how far it has come. Pure: which calls it hits follows from the seed and their order.

    Attributes:
        met: calls of its target so far.
        hit: how many of them had the fault.
    """

    def __init__(self, rule: FaultRule, seed: int | float | str | None = None) -> None:
        self.rule = rule
        self.random = Random(seed)
        self.met = 0
        self.hit = 0

    def meet(self, target: Target) -> bool:
        """Count a call, and say whether it is to have the fault."""
        rule = self.rule
        if rule.direction is not target.direction or not fnmatchcase(target.name, rule.target):
            return False
        self.met += 1
        is_hit = (
            self.random.random() < rule.rate
        )  # drawn for each, so that a limit moves no later fault
        if rule.times is not None and self.hit >= rule.times:
            return False
        if not is_hit or (rule.nth is not None and self.met not in rule.nth):
            return False
        self.hit += 1
        return True


class FaultSource:
    """A source of middleware that does what rules say. Rules may come and go while calls pass.

    Args:
        is_open: whether rules may still come: then it stands around every call. Else it stands around those only that its
            rules may mean.
    """

    def __init__(self, armed: Iterable[ArmedFault] = (), *, is_open: bool = True) -> None:
        self.armed: list[ArmedFault] = list(armed)
        self._is_open = is_open

    def middleware(self, direction: Direction, target: Target) -> Middleware | None:
        if self._is_open or any(one.rule.could_meet(target) for one in self.armed):
            return self._pass
        return None

    async def _pass(self, call: Call, next: Next) -> Outcome:
        if call.refusal is not None:  # its method does not run anyway
            return await next(call)
        is_to_fail_after: ArmedFault | None = None
        for armed in [*self.armed]:
            if not armed.meet(call.target):
                continue
            rule = armed.rule
            log.info(
                event(
                    "fault_injected", fault=rule.words, call=call.target.name, call_number=armed.met
                )
            )
            if rule.action == "delay":
                await asyncio.sleep(armed.random.uniform(rule.least_s, rule.most_s))
            elif rule.action == "drop":
                return await _drop(call, next, rule)
            elif rule.is_after:
                is_to_fail_after = armed
            else:
                return Outcome(error=_error_of(armed))
        outcome = await next(call)
        return outcome if is_to_fail_after is None else Outcome(error=_error_of(is_to_fail_after))


def _error_of(armed: ArmedFault) -> BaseException:
    make = armed.rule.error
    if make is not None:
        return make()
    return InjectedFault(f"{armed.rule.target}: injected on purpose ({armed.rule.words}).")


async def _drop(call: Call, next: Next, rule: FaultRule) -> Outcome:
    target = call.target
    if target.kind is CallKind.RPC:
        if rule.lost == "reply":
            await next(call)
        if target.direction is Direction.OUTBOUND:
            return await _wait_in_vain(call)
        if call.deadline is None:
            call.deadline = call.arrived_at
        # Acknowledged, and not answered: as a request is whose caller has given up.
        lost = DeadlinePassed(
            f"{target.name}: its {rule.lost} is dropped on purpose ({rule.words})."
        )
        return Outcome(error=lost, is_refused=True)
    if target.kind is CallKind.HTTP:
        return Outcome(error=InjectedFault(f"{target.name}: dropped on purpose ({rule.words})."))
    if target.direction is Direction.INBOUND and target.kind in (
        CallKind.EVENT,
        CallKind.MESSAGE,
    ):
        return Outcome(settlement=Ack())
    return Outcome()


async def _wait_in_vain(call: Call) -> Outcome:
    left = 0.0 if call.deadline is None else max(call.deadline - time.monotonic(), 0.0)
    await asyncio.sleep(left)
    return Outcome(
        error=RpcTimeout(
            call.target.name, round(left, 2), "It was dropped on purpose, by a fault rule."
        )
    )


# --- from a configuration -------------------------------------------------------------------------------


class ConfiguredFaults(FaultSource):
    """Faults by configuration: name it in `mycelia: middleware:` with its rules. Says so in the log, for it is no accident.

    Args:
        rules: each a mapping with one of `fail`, `delay`, `drop` and what it names (`service.method`, with `*`); then
            `direction` ("inbound", "outbound"), `rate`, `nth` (a number or a list), `times`; of `fail` also `error` (a
            dotted name, or that of a built-in exception), `message` and `after`; of `delay` `by` (a duration, or a list of the
            least and the most); of `drop` `lost` ("reply", "request").
        seed: of the randomness; the same seed gives the same calls their faults, in their order. By default another one
            each time, which the log names.

    Raises:
        ConfigError: a rule is not one; it is named.
    """

    def __init__(self, rules: Iterable[Mapping[str, Any]], seed: int | None = None) -> None:
        if seed is None:
            seed = Random().randrange(2**32)
        checked = [
            rule_from(given, f"fault rule {number}") for number, given in enumerate(rules, 1)
        ]
        if not checked:
            raise ConfigError(
                "ConfiguredFaults has no rules: name what is to fail, or take it out."
            )
        armed = [ArmedFault(rule, f"{seed}/{number}") for number, rule in enumerate(checked)]
        super().__init__(armed, is_open=False)
        log.warning(
            event(
                "faults_are_injected",
                rules="; ".join(rule.words for rule in checked),
                seed=seed,
                detail="on purpose, by mycelia.middleware: never in production",
            )
        )


_ALWAYS = {"direction", "rate", "nth", "times"}
_KEYS = {
    "fail": {"error", "message", "after", *_ALWAYS},
    "delay": {"by", *_ALWAYS},
    "drop": {"lost", *_ALWAYS},
}


def rule_from(given: Mapping[str, Any], where: str) -> FaultRule:
    """The rule that a mapping spells: `{"fail": "registry.get", "rate": 0.2}`.

    Raises:
        ConfigError: it does not; said with `where` it was given.
    """
    actions = [key for key in _KEYS if key in given]
    if len(actions) != 1:
        raise ConfigError(
            f'{where}: {given!r}: expected one of fail, delay, drop, as in {{"fail": "registry.get"}}.'
        )
    (action,) = actions
    options = {key: value for key, value in given.items() if key != action}
    if unknown := options.keys() - _KEYS[action]:
        raise ConfigError(
            f"{where}: {action} has no {', '.join(sorted(map(str, unknown)))}; it has {', '.join(sorted(_KEYS[action]))}."
        )
    try:
        return make_rule(action, given[action], **options)
    except (ValueError, TypeError) as exc:
        raise ConfigError(f"{where} ({action} {given[action]}): {exc}.") from exc


def make_rule(
    action: Any,
    target: str,
    *,
    direction: Direction | str = Direction.INBOUND,
    rate: float = 1.0,
    nth: int | Iterable[int] | None = None,
    times: int | None = None,
    error: Any = None,
    message: str | None = None,
    after: bool = False,
    lost: Literal["reply", "request"] = "reply",
    by: Duration | Iterable[Duration] | None = None,
) -> FaultRule:
    """A rule of what users write.

    Raises:
        ValueError, TypeError, ConfigError: something is not what it may be.
    """
    if not isinstance(target, str):
        raise TypeError(f"target {target!r}: expected text")
    if lost not in ("reply", "request"):
        raise ValueError(f'lost={lost!r}: expected "reply" or "request"')
    least_s = most_s = 0.0
    if action == "delay":
        least_s, most_s = _span_of(by)
    return FaultRule(
        action=action,
        target=target,
        direction=Direction(direction),
        rate=rate,
        nth=frozenset((nth,) if isinstance(nth, int) else nth) if nth is not None else None,
        times=times,
        error=_maker_of(error, message),
        is_after=bool(after),
        lost=lost,
        least_s=least_s,
        most_s=most_s,
    )


def _span_of(by: Any) -> tuple[float, float]:
    if by is None:
        raise ValueError('no by: how long? by="200ms", or ["100ms", "2s"] for anything between')
    if isinstance(by, list | tuple):
        least, most = (seconds_of(one, "by") for one in by)
    else:
        least = most = seconds_of(by, "by")
    if least > most:
        raise ValueError(f"by={by!r}: the least comes first")
    return least, most


def _maker_of(error: Any, message: str | None) -> MakeError | None:
    if error is None:
        return None if message is None else lambda: InjectedFault(message)
    if isinstance(error, str):
        error = _class_named(error)
    if isinstance(error, BaseException):
        return lambda: error
    if inspect.isclass(error) and issubclass(error, BaseException):
        text = "injected on purpose" if message is None else message
        return lambda: error(text)
    raise TypeError(
        f"error={error!r}: expected an exception, its class, or the class's dotted name"
    )


def _class_named(name: str) -> Any:
    module_name, _, attribute = name.replace(":", ".").rpartition(".")
    try:
        found = getattr(
            importlib.import_module(module_name) if module_name else builtins, attribute
        )
    except (ImportError, AttributeError) as exc:
        raise ValueError(f"error={name!r} cannot be found: {exc}") from exc
    if not (inspect.isclass(found) and issubclass(found, BaseException)):
        raise ValueError(f"error={name!r} is no exception class")
    return found
