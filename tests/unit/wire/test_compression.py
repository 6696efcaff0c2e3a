"""Compressed bodies, as kombu makes them. `test_bounds.py` has the hostile ones."""

from __future__ import annotations

import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.unit.wire import stock

from mycelia.errors import UndecodableMessage
from mycelia.wire.compression import decompress


@pytest.mark.parametrize("method", ["zlib", "gzip", "bzip2", "lzma"])
def test_body_that_kombu_compressed_is_read(method: str) -> None:
    compressed, content_type = stock.compress(b"payload" * 100, method)

    assert decompress(compressed, {"compression": content_type}, 700) == b"payload" * 100


@pytest.mark.parametrize("headers", [None, {}, {"other": 1}, {"compression": None}])
def test_body_that_is_not_compressed_is_left_alone(headers: dict[str, Any] | None) -> None:
    assert decompress(b"payload", headers, 1) == b"payload"


def test_compressed_body_cannot_fill_the_memory() -> None:
    bomb = zlib.compress(bytes(10_000_000))

    with pytest.raises(UndecodableMessage, match="more than 1000 bytes once decompressed"):
        decompress(bomb, {"compression": "application/x-gzip"}, 1000)


@pytest.mark.long_variants("lzma")
@pytest.mark.parametrize("method", ["zlib", "bzip2", "lzma"])
def test_many_bombs_at_once_do_not_fill_it_together(method: str) -> None:
    """Each in a thread of its own, as workers have them; and their errors may live on."""
    limit = 32_000_000
    bomb, content_type = stock.compress(bytes(2 * limit), method)

    def fail(_: int) -> UndecodableMessage:
        with pytest.raises(UndecodableMessage, match="once decompressed") as caught:
            decompress(bomb, {"compression": content_type}, limit)
        return caught.value

    tracemalloc.start()
    try:
        with ThreadPoolExecutor(8) as threads:
            errors = list(threads.map(fail, range(16)))
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(errors) == 16
    assert peak < 4 * limit
    assert left < limit


@pytest.mark.parametrize(
    ("body", "method", "message"),
    [
        (
            b"x",
            "application/x-brotli",
            'compressed with "application/x-brotli", which is not known',
        ),
        (b"x", 7, 'compressed with "7"'),
        (b"nonsense", "application/x-gzip", "is not application/x-gzip"),
        (b"nonsense", "application/x-bz2", "is not application/x-bz2"),
        (b"nonsense nonsense", "application/x-lzma", "is not application/x-lzma"),
        (zlib.compress(b"payload")[:-3], "application/x-gzip", "cut off"),
        (b"", "application/x-gzip", "cut off"),
    ],
)
def test_compressed_body_that_cannot_be_read_is_undecodable(
    body: bytes, method: Any, message: str
) -> None:
    with pytest.raises(UndecodableMessage, match=message):
        decompress(body, {"compression": method}, 1000)
