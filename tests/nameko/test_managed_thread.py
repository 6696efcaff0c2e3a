"""The threads that third-party extensions run in; `nameko/managed_thread.py`."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from mycelia.nameko.managed_thread import (
    ManagedThread,
    ManagedThreadKilled,
    run_in_daemon_thread,
)


def _ignore(_: ManagedThread) -> None: ...


def test_wait_returns_the_result() -> None:
    thread = ManagedThread(lambda: 42, "x", _ignore).start()

    assert thread.wait() == 42
    assert thread.dead


def test_wait_raises_the_error() -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        ManagedThread(fail, "x", _ignore).start().wait()


def test_links_are_called_before_the_owner_and_late_ones_at_once() -> None:
    called: list[Any] = []
    gate = threading.Event()
    thread = ManagedThread(gate.wait, "x", lambda _: called.append("owner")).start()
    thread.link(lambda one, word: called.append((one is thread, word)), "early")
    gate.set()
    assert thread.join(5)
    thread.link(lambda _: called.append("late"))

    assert called == [(True, "early"), "owner", "late"]


def test_broken_link_does_not_keep_the_others_from_being_called() -> None:
    called: list[str] = []
    gate = threading.Event()
    thread = ManagedThread(gate.wait, "x", lambda _: called.append("owner")).start()
    thread.link(lambda _: 1 / 0)
    gate.set()
    assert thread.join(5)

    assert called == ["owner"]


def test_killed_thread_runs_its_clean_up_and_ends() -> None:
    running, cleaned = threading.Event(), threading.Event()

    def loop() -> None:
        try:
            while True:
                running.set()
                threading.Event().wait(0.005)
        finally:
            cleaned.set()

    thread = ManagedThread(loop, "x", _ignore).start()
    assert running.wait(5)
    thread.kill()

    assert thread.join(5)
    assert cleaned.is_set()
    assert thread.error is None
    assert thread.wait() is None
    thread.kill()  # of an ended one: nothing


def test_except_exception_does_not_survive_a_kill() -> None:
    assert not issubclass(ManagedThreadKilled, Exception)


async def test_function_in_a_daemon_thread_is_awaited() -> None:
    name = await run_in_daemon_thread(lambda: threading.current_thread().name, "hook")

    assert name == "mycelia:hook"
    with pytest.raises(ZeroDivisionError):
        await run_in_daemon_thread(lambda: 1 / 0, "hook")
