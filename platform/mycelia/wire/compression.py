"""Compressed bodies, as kombu's publishers make them (`compression=` of Nameko's `Publisher`).

The method is in the header `compression` as a content type (kombu/compression.py).
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import threading
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Final, Protocol

from mycelia.errors import ConfigError, UndecodableMessage

__all__ = ["COMPRESSION_HEADER", "compressor_of", "decompress"]

COMPRESSION_HEADER = "compression"

_INPUT_BYTES: Final = 64 * 1024  # given at once: what zlib does not take is copied and given again
_OUTPUT_BYTES: Final = 1024 * 1024  # made at once, so that a bomb is found out before it is large
_LZMA_MEMORY: Final = 100 * 1024 * 1024
"""An lzma body names the memory that it wants, up to 4 GiB. `xz -9`, the greediest preset, wants 65 MiB."""


_two_large = threading.Semaphore(2)
"""Held while more than `_OUTPUT_BYTES` are unpacked: every thread has one to itself otherwise, and a handful of bombs of 242
bytes takes gigabytes."""


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _zstd() -> Any:
    """Python's own module from 3.14 on, before that the package that kombu takes; `None` where neither is there."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


_METHODS: dict[str, Callable[[], _Decompressor]] = {
    # kombu's name says gzip; what it writes is a zlib stream. 47 = the largest window, either header.
    "application/x-gzip": lambda: zlib.decompressobj(wbits=47),
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": lambda: lzma.LZMADecompressor(memlimit=_LZMA_MEMORY),
}
_COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "application/x-gzip": zlib.compress,
    "application/x-bz2": bz2.compress,
    "application/x-lzma": lzma.compress,
}
_ALIASES = {
    "gzip": "application/x-gzip",
    "zlib": "application/x-gzip",
    "bzip2": "application/x-bz2",
    "bzip": "application/x-bz2",
    "lzma": "application/x-lzma",
    "xz": "application/x-lzma",
}
if (_zstd_module := _zstd()) is not None:
    _METHODS["application/zstd"] = _zstd_module.ZstdDecompressor
    _COMPRESSORS["application/zstd"] = _zstd_module.compress
    _ALIASES |= {"zstd": "application/zstd", "zstandard": "application/zstd"}


def compressor_of(name: object) -> tuple[str, Callable[[bytes], bytes]]:
    """What goes into the header, and what compresses a body.

    Args:
        name: one of kombu's names for the method, or its content type.

    Raises:
        ConfigError: there is no such method here.
    """
    content_type = _ALIASES.get(name, name) if isinstance(name, str) else name
    compress = _COMPRESSORS.get(content_type) if isinstance(content_type, str) else None
    if compress is None:
        raise ConfigError(f"no compression {name!r}; there are: {', '.join(_ALIASES)}.")
    return str(content_type), compress


def decompress(body: bytes, headers: Mapping[str, Any] | None, max_body_bytes: int) -> bytes:
    """The body as it was before compression; the body itself when no header says that it is compressed.

    Unpacks step by step and stops at `max_body_bytes`, so that a small message cannot fill the memory.

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
            f'the body is compressed with "{str(method)[:60]}", which is not known here; known: {known}. '
            "Publish without compression, or with one of these."
        )
    try:
        return _unpacked(make(), body, max_body_bytes)
    except _TooLargeError:
        problem = (
            f"more than {max_body_bytes} bytes once decompressed. "
            "Send less in one message, or raise the limit"
        )
    except _CutOffError:
        problem = f"{method} that is cut off"
    except Exception as exc:  # noqa: BLE001  each method has an error of its own; zstd's is not there to name
        problem = f"not {method}: {exc}"
    # Out here, because an error that knew of the first would keep all that was unpacked for as long as it lives.
    raise UndecodableMessage(f"the body of {len(body)} bytes is {problem}.")


class _TooLargeError(Exception):
    """The limit is passed."""


class _CutOffError(Exception):
    """The body ends before its end."""


def _unpacked(decompressor: _Decompressor, body: bytes, limit: int) -> bytes:
    """What the body unpacks to."""
    plain = bytearray()
    with ExitStack() as turn:
        has_turn = isinstance(decompressor, lzma.LZMADecompressor)  # takes memory at once
        if has_turn:
            turn.enter_context(_two_large)
        for at in range(0, len(body), _INPUT_BYTES):
            piece = body[at : at + _INPUT_BYTES]
            while True:
                part = decompressor.decompress(piece, _OUTPUT_BYTES)
                if len(plain) + len(part) > limit:
                    raise _TooLargeError
                plain += part
                if decompressor.eof:
                    return bytes(plain)
                if not has_turn and len(plain) >= _OUTPUT_BYTES:
                    has_turn = True
                    turn.enter_context(_two_large)
                # zlib gives back what it has not taken; the others keep it.
                piece = getattr(decompressor, "unconsumed_tail", b"")
                if not piece and len(part) < _OUTPUT_BYTES:
                    break
    raise _CutOffError
