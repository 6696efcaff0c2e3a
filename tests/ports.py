"""A port for a server that a test starts: free now, and nobody else's until then."""

from __future__ import annotations

import itertools
import os
import random

from mycelia.broker.node import is_free

__all__ = ["free_port"]

PORT_RANGE = (10_000, 19_999)
"""Below the ports that the system gives to connections and to listeners on port 0, of which the suite opens some thousand a minute: one
of those that is free now may be taken a moment later. Brokers have the range above."""
PORT_SHARES = 50

_taken: set[int] = set()
"""Those that this process has given away: the tests use them later."""


def free_port() -> int:
    """A free port on 127.0.0.1. Each worker of pytest-xdist has every fiftieth to choose from: their process ids are near to each other."""
    choice = range(*PORT_RANGE)[os.getpid() % PORT_SHARES :: PORT_SHARES]
    tries = (random.choice(choice) for _ in itertools.repeat(None))
    port = next(one for one in tries if one not in _taken and is_free(one))
    _taken.add(port)
    if len(_taken) > len(choice) // 2:
        _taken.clear()
    return port
