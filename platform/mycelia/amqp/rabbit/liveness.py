"""Whether the peer still lives. Pure, but for reading the state of a socket.

A broker's process that dies says so: its kernel closes the connection. A machine that dies, or a network that swallows, says
nothing, and TCP by itself takes a quarter of an hour to notice. Two things are watched, twice a second:

- *Acknowledgements.* The kernel of a living machine acknowledges what it is sent, however busy its processes are. Keep-alive
  probes ask it while nothing is sent. Where something stays unanswered (a retransmission, a probe) and nothing at all has been
  acknowledged for `peer_timeout`, the machine is gone.
- *Bytes.* The broker sends heartbeats, at the latest one interval apart. Where half an interval more brings nothing, its
  process hangs, or something between us answers in its place.

Not `TCP_USER_TIMEOUT`, which seems made for the first: since Linux 5.11 it also cuts connections whose peer answers, but has no room
(a zero window), and that is how RabbitMQ treats publishers during a memory or disk alarm. Such a peer answers each probe, and
is left alone here.

After a turn of the loop that took long, bytes may lie unread: what seems silent then is looked at again before it is judged.
"""

from __future__ import annotations

import math
import socket
import sys
from struct import Struct
from typing import Any, Final, NamedTuple

__all__ = ["CHECK_EVERY_S", "Liveness", "TcpState", "ask_while_idle", "read_tcp_state"]

CHECK_EVERY_S: Final = 0.5
_LATE: Final = 3.0
"""Times `CHECK_EVERY_S`: a look that comes later than that finds a loop that has been busy with something else."""

# struct tcp_info (linux/tcp.h): eight octets, of which the third counts retransmissions of the same segment and the fourth
# unanswered probes, then words of 32 bits; the thirteenth holds the milliseconds since the last acknowledgement.
_TCP_INFO: Final = Struct("=2xBB4x48xI")


class TcpState(NamedTuple):
    """What the kernel knows of the peer's."""

    unanswered: int
    """Retransmissions and probes since its last answer."""
    silent_s: float
    """Since its last answer."""


class Liveness:
    """Judges one connection.

    Args:
        heartbeat: seconds, as agreed with the broker; 0 for none.
        peer_timeout: seconds without an answer of the peer's machine after which it is given up; 0 for never.
        now: monotonic seconds, at the start.
    """

    __slots__ = ("_bytes", "_heard_at", "_looked_at", "_peer_timeout", "_silence_max", "_suspected")

    def __init__(self, heartbeat: float, peer_timeout: float, now: float) -> None:
        self._silence_max = heartbeat + min(max(heartbeat / 2, 1.0), 5.0) if heartbeat else math.inf
        self._peer_timeout = peer_timeout or math.inf
        self._bytes = -1
        self._heard_at = now
        self._looked_at = now
        self._suspected = False

    def look(self, now: float, bytes_received: int, tcp: TcpState | None) -> str | None:
        """Why the peer must be given up, if it must.

        Args:
            bytes_received: from it so far.
            tcp: what the kernel says, where it does.
        """
        was_late = now - self._looked_at > _LATE * CHECK_EVERY_S
        self._looked_at = now
        if bytes_received != self._bytes:
            self._bytes = bytes_received
            self._heard_at = now
        if was_late:
            return None
        silent = now - self._heard_at
        if silent > self._silence_max:
            return f"no sign of life from the broker for {silent:.1f} s"
        # twice in a row: a probe may have been sent this very moment
        gone = (
            tcp is not None
            and tcp.unanswered > 0
            and tcp.silent_s >= self._peer_timeout - 2 * CHECK_EVERY_S
        )
        if gone and self._suspected and tcp is not None:
            return f"the broker's machine has answered nothing for {tcp.silent_s:.1f} s"
        self._suspected = gone
        return None


def ask_while_idle(raw: Any, peer_timeout: float) -> None:
    """Have the kernel probe the peer of socket `raw` while nothing is sent, often enough for `peer_timeout`."""
    if not peer_timeout:
        return
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", max(1, math.floor(peer_timeout / 2))),
        ("TCP_KEEPINTVL", 1),
        ("TCP_KEEPCNT", max(2, math.ceil(peer_timeout))),
    ):
        option = getattr(socket, name, None)  # not every system has them
        if option is not None:
            raw.setsockopt(socket.IPPROTO_TCP, option, value)


def read_tcp_state(raw: Any) -> TcpState | None:
    """What the kernel knows of the peer of socket `raw`; `None` where it cannot be asked."""
    if sys.platform != "linux":
        return None
    try:
        info = raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        retransmits, probes, silent_ms = _TCP_INFO.unpack(info)
    except (OSError, ValueError):  # closed meanwhile; or no TCP
        return None
    return TcpState(retransmits + probes, silent_ms / 1000)
