"""Compressed bodies, as kombu's publishers make them (`compression=` of Nameko's `Publisher`).

The method is in the header `compression` as a content type (kombu/compression.py). Bodies are read only; what this
platform publishes is not compressed.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from mycelia.errors import UndecodableMessage

__all__ = ["COMPRESSION_HEADER", "decompress"]

COMPRESSION_HEADER = "compression"


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


_METHODS: dict[str, Callable[[], _Decompressor]] = {
    # kombu's name says gzip; what it writes is a zlib stream. 47 = the largest window, either header.
    "application/x-gzip": lambda: zlib.decompressobj(wbits=47),
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": lzma.LZMADecompressor,
}


def decompress(body: bytes, headers: Mapping[str, Any] | None, max_body_bytes: int) -> bytes:
    """The body as it was before compression; the body itself when no header says that it is compressed.

    Never makes more than `max_body_bytes` bytes, so that a small message cannot fill the memory.

    Raises:
        UndecodableMessage: unknown method, broken bytes, or too large.
    """
    method = headers.get(COMPRESSION_HEADER) if headers else None
    if not method:
        return body
    make = _METHODS.get(method) if isinstance(method, str) else None
    if make is None:
        known = ", ".join(_METHODS)
        raise UndecodableMessage(
            f'the body is compressed with "{method}", which is not known here; known: {known}. '
            "Publish without compression, or with one of these."
        )
    decompressor = make()
    try:
        plain = decompressor.decompress(body, max_body_bytes + 1)
    except (zlib.error, OSError, EOFError, lzma.LZMAError, ValueError) as exc:
        raise UndecodableMessage(f"the body of {len(body)} bytes is not {method}: {exc}.") from exc
    if len(plain) > max_body_bytes:
        raise UndecodableMessage(
            f"the body of {len(body)} bytes is more than {max_body_bytes} bytes once decompressed. "
            "Send less in one message, or raise the limit."
        )
    if not decompressor.eof:
        raise UndecodableMessage(f"the body of {len(body)} bytes is {method} that is cut off.")
    return plain
