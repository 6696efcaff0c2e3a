"""Where a call goes, as data that is made once and shared by all of its calls."""

from __future__ import annotations

from enum import Enum

import msgspec

__all__ = ["CallKind", "Direction", "Target"]


class CallKind(Enum):
    """How a call travels."""

    RPC = "rpc"
    EVENT = "event"
    MESSAGE = "message"
    TIMER = "timer"
    HTTP = "http"
    OTHER = "other"


class Direction(Enum):
    """Which way a call passes the process's border.

    With the kind it tells the five directions apart: a message arrives, time or HTTP arrives (`INBOUND`); a call
    leaves, an event or message leaves (`OUTBOUND`); a batch of records goes in or out of a log.
    """

    INBOUND = "inbound"
    OUTBOUND = "outbound"


class Target(msgspec.Struct, frozen=True, gc=False):
    """One method of one service as middleware is asked about it, or one exchange that events and messages leave for.

    Every call has a target of its own names. Where these may be without number, a source of middleware is asked once for
    all: about events that leave by the service that they are of, and about messages by their exchange, with `*` as the
    method; about calls that leave by service and method, for the first thousand of a caller, and as `*.*` for the rest.

    Attributes:
        direction: whether the call comes in or leaves.
        kind: how it travels.
        service: the service called; of an event that leaves, the service it is of; of a message, the exchange.
        method: the method called; of an event that leaves, its type; of a message, the routing key; `*` for any.
        name: `service.method`, as logs and errors name it.
    """

    direction: Direction
    kind: CallKind
    service: str
    method: str
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            msgspec.structs.force_setattr(self, "name", f"{self.service}.{self.method}")

    def __str__(self) -> str:
        return self.name
