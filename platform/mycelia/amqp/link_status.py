"""What every link keeps of itself: its state, who is told of what, and how long it was blocked. No I/O."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from mycelia.amqp.link import LinkState, OnRefused, OnReturn, OnStateChange
from mycelia.amqp.model import Message, Returned
from mycelia.errors import LinkError
from mycelia.log_event import event

__all__ = ["LinkStatus", "Listeners"]

_log = logging.getLogger("mycelia.amqp")

F = TypeVar("F", bound=Callable[..., None])


class Listeners(Generic[F]):
    """Functions to call, in the order they came. What one raises is logged, and the others are called all the same."""

    __slots__ = ("_functions", "_link", "_what")

    def __init__(self, link: str, what: str) -> None:
        self._link = link
        self._what = what
        self._functions: list[F] = []

    def __len__(self) -> int:
        return len(self._functions)

    def add(self, function: F) -> Callable[[], None]:
        """Returns a function that removes it."""
        self._functions.append(function)

        def remove() -> None:
            if function in self._functions:
                self._functions.remove(function)

        return remove

    def tell(self, *arguments: Any) -> None:
        for function in list(self._functions):
            try:
                function(*arguments)
            except Exception:  # noqa: BLE001  # a listener's fault is not the link's
                _log.exception(event("listener_raised", listener=self._what, link=self._link))


class LinkStatus:
    """State, listeners and blocked time of one link.

    Args:
        name: of the link, for log lines.
        clock: monotonic seconds.
    """

    __slots__ = (
        "_blocked_before_s",
        "_blocked_since",
        "_clock",
        "_refused",
        "_returned",
        "_state_changed",
        "state",
    )

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.state = LinkState.CLOSED
        self._clock = clock
        self._blocked_since: float | None = None
        self._blocked_before_s = 0.0
        self._state_changed: Listeners[OnStateChange] = Listeners(name, "state")
        self._returned: Listeners[OnReturn] = Listeners(name, "return")
        self._refused: Listeners[OnRefused] = Listeners(name, "refusal")

    def change(self, state: LinkState) -> bool:
        """Note `state` and tell the listeners. Returns whether it is another."""
        if state is self.state:
            return False
        self.state = state
        self._state_changed.tell(state)
        return True

    def on_state_change(self, listener: OnStateChange) -> Callable[[], None]:
        return self._state_changed.add(listener)

    def on_return(self, listener: OnReturn) -> Callable[[], None]:
        return self._returned.add(listener)

    def on_refused(self, listener: OnRefused) -> Callable[[], None]:
        return self._refused.add(listener)

    def tell_returned(self, returned: Returned) -> None:
        self._returned.tell(returned)

    def tell_refused(self, message: Message, error: LinkError) -> None:
        self._refused.tell(message, error)

    @property
    def blocked_s(self) -> float:
        """Seconds spent blocked so far."""
        running = 0.0 if self._blocked_since is None else self._clock() - self._blocked_since
        return self._blocked_before_s + running

    def count_blocked(self, blocked: bool) -> None:
        """From now on the broker takes no publishings, or takes them again."""
        now = self._clock()
        if self._blocked_since is not None:
            self._blocked_before_s += now - self._blocked_since
        self._blocked_since = now if blocked else None
