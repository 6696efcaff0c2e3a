"""`eventlet.Event` between threads; `nameko/thread_event.py`, on a class like eventlet's, without eventlet."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mycelia.nameko.thread_event import thread_event_methods

NOT_USED = object()


class Event:
    """The attributes that the methods work on; `reset` as in eventlet."""

    wait: Callable[..., Any]
    send: Callable[..., None]

    def __init__(self) -> None:
        self._waiters: set[Any] = set()
        self.reset()

    def reset(self) -> None:
        self._result: Any = NOT_USED
        self._exc: Any = None


for _name, _method in thread_event_methods(NOT_USED, lambda: None).items():
    setattr(Event, _name, _method)


def _waiting(event: Event, count: int) -> None:
    deadline = threading.Event()
    for _ in range(1000):
        if len(event._waiters) == count:
            return
        deadline.wait(0.005)
    pytest.fail(f"{len(event._waiters)} waiters instead of {count}")


def test_result_reaches_waiters_in_other_threads() -> None:
    event = Event()
    with ThreadPoolExecutor(3) as pool:
        waits = [pool.submit(event.wait) for _ in range(3)]
        _waiting(event, 3)
        event.send("result")

        assert [wait.result(5) for wait in waits] == ["result"] * 3
    assert event.wait() == "result"
    assert not event._waiters


def test_error_is_raised_with_its_traceback() -> None:
    event = Event()
    try:
        raise ValueError("no")
    except ValueError:
        event.send(None, sys.exc_info())

    with pytest.raises(ValueError, match="no") as raised:
        event.wait()
    assert any(
        entry.name == "test_error_is_raised_with_its_traceback" for entry in raised.traceback
    )


@pytest.mark.parametrize("error", [ValueError("no"), ValueError])
def test_error_may_be_an_instance_or_a_class(error: Any) -> None:
    event = Event()
    event.send(None, error)

    with pytest.raises(ValueError):  # noqa: PT011  a class has no text
        event.wait()


def test_wait_ends_at_its_timeout() -> None:
    event = Event()

    assert event.wait(0.01) is None
    assert not event._waiters


def test_second_send_is_an_error_until_the_reset() -> None:
    event = Event()
    event.send(1)
    with pytest.raises(AssertionError, match="re-send"):
        event.send(2)
    event.reset()
    event.send(3)

    assert event.wait() == 3


def test_waiter_keeps_its_result_over_a_reset() -> None:
    """The sender may reset the event before the waiter's thread gets its turn."""
    event = Event()
    with ThreadPoolExecutor(1) as pool:
        for number in range(100):
            wait = pool.submit(event.wait)
            _waiting(event, 1)
            event.send(number)
            event.reset()
            assert wait.result(5) == number


def test_thread_with_greenthreads_gives_them_their_turn_while_it_waits() -> None:
    class GreenEvent(Event):
        pass

    turns: list[float] = []
    event = GreenEvent()

    def pause(seconds: float) -> None:
        turns.append(seconds)
        if len(turns) == 3:
            event.send("sent by a greenthread of this thread")

    for name, method in thread_event_methods(NOT_USED, lambda: pause).items():
        setattr(GreenEvent, name, method)

    assert event.wait() == "sent by a greenthread of this thread"
    event.reset()
    assert event.wait(0.02) is None
