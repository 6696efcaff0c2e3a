"""Context data that travels back: headers of a reply, `x-mycelia-back.<name>`.

Stock Nameko's callers read no header of a reply; as all `x-mycelia-` headers they belong to one message and become nobody's
context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final

__all__ = [
    "MAX_REPLY_CONTEXT_BYTES",
    "MAX_REPLY_CONTEXT_ITEMS",
    "REPLY_CONTEXT_PREFIX",
    "decode_reply_context",
    "encode_reply_context",
]

REPLY_CONTEXT_PREFIX: Final = "x-mycelia-back."

MAX_REPLY_CONTEXT_ITEMS: Final = 100
MAX_REPLY_CONTEXT_BYTES: Final = 16 * 1024
"""Of one reply's; arbitrary. Headers travel in one frame, of 128 KiB where nobody sets `frame_max`."""


def encode_reply_context(
    context: Mapping[Any, Any], size_of: Callable[[str, Any], int | None], left_out: list[str]
) -> dict[str, Any]:
    """Headers for `context`. Never raises: the reply goes without what cannot be carried.

    Args:
        size_of: bytes of a header on the wire; `None` where it cannot be there.
        left_out: told what is left out, and why.
    """
    headers: dict[str, Any] = {}
    room = MAX_REPLY_CONTEXT_BYTES
    items = list(context.items())
    for key, value in items[:MAX_REPLY_CONTEXT_ITEMS]:
        if value is None:
            continue
        if not isinstance(key, str):
            left_out.append(f"{key!r:.60} (no text)")
            continue
        name = REPLY_CONTEXT_PREFIX + key
        size = size_of(name, value)
        if size is None:
            left_out.append(f"{key:.60} (no header carries it)")
        elif size > room:
            left_out.append(f"{key:.60} ({size} bytes)")
        else:
            room -= size
            headers[name] = value
    if len(items) > MAX_REPLY_CONTEXT_ITEMS:
        left_out.append(f"{len(items) - MAX_REPLY_CONTEXT_ITEMS} of {len(items)} items")
    return headers


def decode_reply_context(headers: Mapping[str, Any]) -> dict[str, Any]:
    """What came back in a reply's headers, as far as it is within the bounds of what may be sent."""
    start = len(REPLY_CONTEXT_PREFIX)
    found = (
        (name[start:], value)
        for name, value in headers.items()
        if name.startswith(REPLY_CONTEXT_PREFIX)
    )
    return dict(islice(found, MAX_REPLY_CONTEXT_ITEMS))
