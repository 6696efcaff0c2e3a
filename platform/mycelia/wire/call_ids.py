"""Call ids, and the stack of them that travels with a call.

A call id is `{service}.{method}.{uuid4}`; the stack holds the ids from the origin to this call, oldest first
(nameko/containers.py:85-104).
"""

from __future__ import annotations

import os
from typing import Any

__all__ = ["DEFAULT_PARENT_CALLS_TRACKED", "call_id", "extend_call_stack", "new_uuid"]

DEFAULT_PARENT_CALLS_TRACKED = 10

_BATCH = 256  # ids made from one read of the system's randomness: 4 KiB
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
_ready: list[str] = []

# A forked child must not give out the ids that its parent holds ready.
os.register_at_fork(after_in_child=_ready.clear)


def new_uuid() -> str:
    """A random UUID (version 4, RFC 9562) as text. Safe in any thread and after a fork."""
    try:
        return _ready.pop()
    except IndexError:
        digits = os.urandom(16 * _BATCH).hex()
        made = [_uuid_text(digits[at : at + 32]) for at in range(0, len(digits), 32)]
        result = made.pop()
        _ready.extend(made)
        return result


def _uuid_text(d: str) -> str:
    return f"{d[:8]}-{d[8:12]}-4{d[13:16]}-{_VARIANT[d[16]]}{d[17:20]}-{d[20:]}"


def call_id(service: str, method: str) -> str:
    """A new id for one call of a method."""
    return f"{service}.{method}.{new_uuid()}"


def extend_call_stack(
    stack: Any, new_id: str, parent_calls_tracked: int = DEFAULT_PARENT_CALLS_TRACKED
) -> list[str]:
    """The stack with `new_id` on top, of at most `parent_calls_tracked` older ids.

    `stack` comes from the wire: anything that is not a list counts as empty.
    """
    if not isinstance(stack, (list, tuple)):
        return [new_id]
    parents = stack[-parent_calls_tracked:] if parent_calls_tracked > 0 else []
    return [*parents, new_id]
