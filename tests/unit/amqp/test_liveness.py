"""When a peer is given up: by its machine's silence, by its own, and never by ours."""

from __future__ import annotations

import socket
import sys

import pytest

from mycelia.amqp.rabbit.liveness import (
    CHECK_EVERY_S,
    Liveness,
    TcpState,
    ask_while_idle,
    read_tcp_state,
)

HEALTHY = TcpState(0, 1.5)


class Watched:
    """A connection under watch, on a clock of its own."""

    def __init__(self, heartbeat: float = 0.0, peer_timeout: float = 0.0) -> None:
        self.now = 100.0
        self.received = 0
        self.liveness = Liveness(heartbeat, peer_timeout, self.now)

    def look(self, tcp: TcpState | None = HEALTHY, after: float = CHECK_EVERY_S) -> str | None:
        self.now += after
        return self.liveness.look(self.now, self.received, tcp)

    def given_up_after(self, tcp: TcpState | None = HEALTHY, at_most: float = 200.0) -> float:
        started = self.now
        while self.look(tcp) is None:
            assert self.now - started < at_most, "never"
        return self.now - started


def test_broker_that_sends_its_heartbeats_late_lives() -> None:
    watched = Watched(heartbeat=10)

    for _ in range(20):
        for _ in range(20):
            assert watched.look() is None
        watched.received += 8  # once an interval, which is the latest


@pytest.mark.parametrize(("heartbeat", "seconds"), [(1, 2.0), (2, 3.0), (10, 15.0), (60, 65.0)])
def test_silent_broker_is_given_up_by_its_heartbeat(heartbeat: float, seconds: float) -> None:
    watched = Watched(heartbeat=heartbeat)
    watched.look()

    assert seconds < watched.given_up_after() <= seconds + 2 * CHECK_EVERY_S


def test_broker_without_heartbeat_may_be_silent_for_ever() -> None:
    watched = Watched()

    assert all(watched.look() is None for _ in range(10_000))


def test_loop_that_was_busy_blames_nobody_before_it_has_read() -> None:
    """Its timers come before its reading (uvloop): what the broker sent meanwhile is not counted yet."""
    watched = Watched(heartbeat=2)
    watched.look()

    assert watched.look(after=60.0) is None
    watched.received += 8
    assert watched.look() is None


def test_machine_that_answers_nothing_is_given_up_within_the_peer_timeout() -> None:
    watched = Watched(peer_timeout=4.0)
    started = watched.now
    for silent in (0.5, 1.0, 1.5, 2.0, 2.5):
        assert watched.look(TcpState(3, silent)) is None

    assert watched.look(TcpState(4, 3.0)) is None  # once may be a probe that is on its way
    verdict = watched.look(TcpState(4, 3.5))

    assert verdict is not None
    assert "answered nothing for 3.5 s" in verdict
    assert watched.now - started <= 4.0


def test_blocked_broker_whose_machine_answers_each_probe_lives() -> None:
    """A zero window: probes come ever more seldom, and each is answered a moment after it was sent."""
    watched = Watched(peer_timeout=4.0)

    for silent in (1.0, 6.4, 12.8, 25.6):
        assert watched.look(TcpState(0, silent - 0.1)) is None
        assert watched.look(TcpState(1, silent)) is None  # looked at in the moment of a probe
        assert watched.look(TcpState(0, 0.1)) is None


@pytest.mark.skipif(sys.platform != "linux", reason="NOT RUN: TCP_INFO is Linux's")
def test_kernel_tells_of_a_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
        ask_while_idle(ours, 4.0)
        ours.sendall(b"x")

        state = read_tcp_state(ours)

        assert state is not None
        assert state.unanswered == 0
        assert state.silent_s < 5.0
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 2
        ours.close()
        theirs.close()
        assert read_tcp_state(ours) is None
