"""Faults that a test injects: calls that fail, take long, or vanish, and connections that are cut.

    from mycelia.testing import faults, run_services

    async def test_order_survives_a_flaky_stock():
        async with run_services(Stock, Orders, middleware=[faults]) as bed:
            with faults.fail("stock.take", error=ConnectionError, rate=0.5, seed=1):
                ...

This module is itself the source of middleware: whatever runs with `middleware=[faults]` (`run_services`, `Runner`, `Client`) meets
the faults that are open, and nothing else does. A `with` block that ends, and whose fault has met no call, fails the test: it
has proved nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypedDict, Unpack

from mycelia.amqp import Link
from mycelia.amqp.memory.link import MemoryLink
from mycelia.amqp.rabbit.link import RabbitLink
from mycelia.call import Direction, Middleware, Target, unknown_option
from mycelia.clients import Client
from mycelia.durations import Duration
from mycelia.errors import ConfigError
from mycelia.policies.faults import ArmedFault, FaultRule, FaultSource, make_rule
from mycelia.runtime import Container, Runner
from mycelia.testing.services import ServiceBed

__all__ = ["clear", "delay", "disconnect", "drop", "fail", "middleware"]


class FaultArguments(TypedDict, total=False):
    """Which calls of a target a fault meets, as keyword arguments of `fail()`, `delay()` and `drop()`; what they mean stands at `fail()`."""

    rate: float
    nth: int | Iterable[int] | None
    times: int | None
    direction: Direction | str
    seed: int
    may_miss: bool


_source = FaultSource()
_seen: set[str] = set()
"""Names of the targets that the source was asked about, for the message of a fault that met none of them."""


def middleware(direction: Direction, target: Target) -> Middleware | None:
    """What stands around calls of `target`; asked by whoever has this module among its sources of middleware."""
    _seen.add(f"{target.name} ({direction.value})")
    return _source.middleware(direction, target)


def fail(
    target: str,
    error: BaseException | type[BaseException] | str | None = None,
    *,
    message: str | None = None,
    after: bool = False,
    **options: Unpack[FaultArguments],
) -> Any:
    """While the block lasts, calls of `target` fail: their methods do not run.

    Args:
        target: `service.method`, with `*` and `?`. As it arrives: the handler's name. As it leaves: what is called, and for
            events the service and type of the event, for messages exchange and routing key.
        error: what they fail with; a class is called with `message`. `InjectedFault` by default.
        after: the method runs, and its result is lost.
        options: which of the calls are meant: `rate`, how often, from 0 to 1; `nth`, which of them, counted from 1 when the block
            begins; `times`, after how many faults it is over; `direction`, "inbound", as the call arrives at the service, or
            "outbound", as it leaves its caller; `seed` of the randomness: the same seed and the same order of calls give the
            same faults; `may_miss`, whether the block may end without the fault having met a call.

    Returns:
        A context manager that gives an `ArmedFault`: `met` and `hit` count.

    Raises:
        ValueError, TypeError: an option cannot be so.
        AssertionError: at the end of the block: no call of `target` came by.
    """
    return _fault("fail", target, options, error=error, message=message, after=after)


def delay(
    target: str,
    by: Duration | tuple[Duration, Duration],
    **options: Unpack[FaultArguments],
) -> Any:
    """While the block lasts, calls of `target` begin later; as they arrive, each holds its worker meanwhile.

    Args:
        target, options: as in `fail()`.
        by: a duration (`"200ms"`, seconds), or the least and the most of it.
    """
    return _fault("delay", target, options, by=by)


def drop(
    target: str,
    *,
    lost: Literal["reply", "request"] = "reply",
    **options: Unpack[FaultArguments],
) -> Any:
    """While the block lasts, calls of `target` vanish.

    Of an RPC the reply: its method runs and its caller waits until the deadline; with `lost="request"` the method does not run
    either. An event or message is acknowledged and not handled, or, outbound, said to be sent and not sent. A tick does
    nothing. An HTTP request cannot vanish: it fails.

    Args:
        target, options: as in `fail()`.
        lost: what of an RPC.
    """
    return _fault("drop", target, options, lost=lost)


def _fault(action: str, target: str, options: FaultArguments, **own: Any) -> Any:
    for name in options:
        if name not in FaultArguments.__annotations__:
            raise TypeError(unknown_option(name, [*own, *FaultArguments.__annotations__]))
    which: dict[str, Any] = dict(options)
    seed, may_miss = which.pop("seed", 0), which.pop("may_miss", False)
    return _armed(make_rule(action, target, **own, **which), seed, may_miss)


@contextmanager
def _armed(rule: FaultRule, seed: int, may_miss: bool) -> Iterator[ArmedFault]:
    armed = ArmedFault(rule, seed)
    _source.armed.append(armed)
    try:
        yield armed
    finally:
        _source.armed.remove(armed)
    if not armed.met and not may_miss:
        asked = ", ".join(sorted(_seen)) or "none: run the services with middleware=[faults]"
        raise AssertionError(
            f'faults: no call of "{rule.target}" ({rule.direction.value}) came by, so nothing was tried. '
            f"Targets that have faults around them: {asked}."
        )


def clear() -> None:
    """End every fault that is open."""
    _source.armed.clear()
    _seen.clear()


def disconnect(*ends: Link | Client | ServiceBed | Runner | Container) -> None:
    """Cut the connections to the broker, as a network does that fails for a moment; what was on its way is lost.

    The link reconnects by itself. On RabbitMQ the TCP connections are reset; of `memory://` all connections of that broker are
    dropped, those of other links too. For a network that stays away: `TcpProxy`, or in memory `link.broker.stop()` and `start()`.

    Args:
        ends: links, or what has one: a `Client`, a bed, a runner, a container.

    Raises:
        ConfigError: something has no link.
    """
    for end in ends:
        _cut(_link_of(end))


def _link_of(end: Any) -> Any:
    if isinstance(end, ServiceBed):
        return end.runner.host.link
    if isinstance(end, Runner | Container):
        return end.host.link
    return getattr(end, "link", end)


def _cut(link: Any) -> None:
    if isinstance(link, MemoryLink):
        link.broker.drop_connections()
    elif isinstance(link, RabbitLink):
        link.cut_connections()
    else:
        raise ConfigError(
            f"faults.disconnect: {link!r} is no link; expected a link, a Client, a bed, a Runner or a Container."
        )
