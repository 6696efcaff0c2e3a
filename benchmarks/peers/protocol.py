"""How a peer's programs speak with the harness, and what they send one another.

Reports to the harness are lines of JSON on standard output, `{"bench": KIND, ...}`:

| kind | from | says |
|---|---|---|
| `ready` | a server, a publisher | it may be used now |
| `measuring` | an RPC client | the warm-up is over; the measured span begins |
| `sample` | an RPC client | what it measured |
| `published` | a publisher | a burst is confirmed: `burst`, `first_at`, `confirmed_at`, `count` |
| `handled` | an event handler | all of a burst was handled: `burst`, `count`, `at` |

`…_at` is wall-clock time in seconds (`time.time()`): two processes of one machine compare it.
The programs take what they need from the environment: `AMQP_URI`, and `BENCH_HTTP_PORT`.
"""

from __future__ import annotations

import json
import os
from typing import TypedDict

ECHOED = 1
"""The argument of every RPC: the request is `{"args": [1], "kwargs": {}}`."""

PREFETCH = 256
"""Deliveries a hand-written server or handler lets the broker send ahead of its acks."""

PUBLISH_WINDOW = 256
"""Events a publisher has unconfirmed at most."""

ANSWER_WITHIN = 30.0
"""Seconds a peer waits for one reply or confirm before it counts as lost, and the run as failed."""


class Event(TypedDict):
    """A small event; the last of a burst carries its size in `total`, the others 0."""

    burst: int
    total: int
    carrier: str
    flight: int
    tail_number: str
    dep_delay: float


def make_event(burst: int, number: int, total: int = 0) -> Event:
    """Event `number` of a burst."""
    return Event(
        burst=burst,
        total=total,
        carrier="UA",
        flight=number,
        tail_number="N14228",
        dep_delay=2.0,
    )


def say(kind: str, **values: object) -> None:
    """Report to the harness."""
    print(json.dumps({"bench": kind, **values}), flush=True)


def amqp_uri() -> str:
    """The broker to use."""
    return os.environ["AMQP_URI"]
