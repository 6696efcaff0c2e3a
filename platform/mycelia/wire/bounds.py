"""How much a body may become once it is decoded: bounds that hold before the objects are there.

A list takes 3 bytes on the wire (`[],`) and 64 in memory, a small map 8 and 190; and where many are made Python's
garbage collector looks at all of them again and again. Compression takes another factor of a thousand: 29 KB of zlib were
690 MB and six seconds. Text and numbers take at most a dozen times their size, which `max_body_bytes` bounds.

- Every body: at most one list or map for each 32 bytes of `max_body_bytes` (4 million by default).
- A compressed one also: at most a million values, and eight more for each byte that was sent.

So honest data passes: 128 MiB of text or numbers, 128 MiB of records of 32 bytes and more, records that compress forty to
one. What is still possible: a body of 128 MiB, sent as such, may take 1.5 GB as short texts, one of 33 MB with the most
maps 800 MB. A lower `max_body_bytes` lowers both. Depth is bounded by the decoders, which stop at about a thousand
levels (JSON on Python 3.13: ten thousand) with as many objects made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mycelia.errors import UndecodableMessage

__all__ = ["OFF_LOOP_BYTES", "Bounds", "bounds_for", "check_json"]

OFF_LOOP_BYTES: Final = 256 * 1024
"""Bodies above this are better decoded in a thread. 256 KiB of the worst JSON take a few milliseconds."""

_BYTES_PER_CONTAINER = 32
_COMPRESSED_VALUES = 1_000_000
_VALUES_PER_BYTE_SENT = 8


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one body may become."""

    max_containers: int
    """Lists and maps."""
    max_values: int
    """Values of any kind, those two included."""

    def check(self, size: int, containers: int, values: int) -> None:
        """
        Args:
            size: of the body, in bytes, for the message.

        Raises:
            UndecodableMessage: too many of either.
        """
        if containers > self.max_containers:
            what = f"{containers} lists and maps, more than the limit of {self.max_containers}"
        elif values > self.max_values:
            what = f"{values} values, more than the limit of {self.max_values}"
        else:
            return
        raise UndecodableMessage(
            f"a body of {size} bytes holds at least {what}. "
            "Send less in one message, or raise mycelia.max_body_bytes."
        )


def bounds_for(max_body_bytes: int, compressed_bytes: int | None = None) -> Bounds:
    """The bounds for one body.

    Args:
        compressed_bytes: how many bytes were sent, where they were compressed.
    """
    max_containers = max(max_body_bytes // _BYTES_PER_CONTAINER, 1)
    if compressed_bytes is None:
        return Bounds(max_containers, max_body_bytes)
    return Bounds(max_containers, _COMPRESSED_VALUES + _VALUES_PER_BYTE_SENT * compressed_bytes)


def check_json(body: bytes, bounds: Bounds) -> None:
    """Count what a JSON body holds, without decoding it; a nanosecond a byte where nothing is suspicious.

    Raises:
        UndecodableMessage: more than the bounds allow.
    """
    if len(body) <= bounds.max_containers and len(body) <= bounds.max_values:
        return  # every value takes a byte
    containers = body.count(b"[") + body.count(b"{")
    values = containers + body.count(b",")
    if containers <= bounds.max_containers and values <= bounds.max_values:
        return
    # Perhaps they stand in texts, which cost nothing. But texts are values themselves, or keys of values.
    texts = (body.count(b'"') - body.count(b'\\"')) // 2
    bounds.check(len(body), 0, texts // 2)
    containers = values = 0
    for structure in _without_texts(body):
        found = structure.count(b"[") + structure.count(b"{")
        containers += found
        values += found + structure.count(b",")
        bounds.check(len(body), containers, values)


_SLICE = 1024 * 1024
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_WHOLE_TOKENS = re.compile(rb'(?:[^"]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+', re.DOTALL)


def _without_texts(body: bytes) -> Iterator[bytes]:
    """The body in slices, its texts cut out. In slices, so that a refusal comes early and other threads get their turn."""
    at = 0
    while at < len(body):
        piece = _whole_tokens(body, at)
        if piece:
            yield _TEXT.sub(b"", piece)
            at += len(piece)
            continue
        text = _TEXT.match(body, at)  # longer than a slice
        if text is None:
            return  # it does not end, as the decoder will say
        at = text.end()


def _whole_tokens(body: bytes, at: int) -> bytes:
    """The slice of a body from `at`, which is outside every text, without the text that goes on behind its end."""
    piece = body[at : at + _SLICE]
    if b"\\" not in piece:  # nothing is escaped: every second quote ends a text
        return piece[: piece.rfind(b'"')] if piece.count(b'"') & 1 else piece
    match = _WHOLE_TOKENS.match(piece)
    return piece[: match.end()] if match else b""
