"""Which partition a key belongs to: CRC-32 of its bytes, modulo the number of partitions. Pure.

CRC-32 (ISO-HDLC: zlib's, PNG's, `crc32fast`, Go's `hash/crc32` IEEE) is in every language's standard library or nearly so, and C in
Python: 70 ns a key. Kafka's murmur2 and the murmur3 of RabbitMQ's stream clients are 4 µs in Python without another
dependency. What was measured, and how evenly keys fall: docs/decisions/0017.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from zlib import crc32

from mycelia.errors import ContractError
from mycelia.logs.record import RecordKey

__all__ = ["MAX_PARTITIONS", "key_bytes", "partition_of", "partitions_of"]

MAX_PARTITIONS = 1024
"""Each is a stream: a process at the broker, an open file, a channel for its reader."""


def key_bytes(key: str | bytes | int) -> bytes:
    """What of a key is hashed: text as UTF-8, a whole number as its decimal text, bytes as they are.

    Raises:
        ContractError: a key of another type, or text that UTF-8 does not have (half a surrogate pair).
    """
    kind = type(key)
    try:
        if kind is str:
            return key.encode()  # type: ignore[union-attr]
        if kind is bytes:
            return key  # type: ignore[return-value]
        if kind is int:
            return str(key).encode()
        if isinstance(key, str):
            return str.encode(key)
    except UnicodeEncodeError as exc:
        raise ContractError(f"key {key!r:.60} is no text that UTF-8 can carry: {exc}.") from exc
    raise ContractError(
        f"key {key!r:.60} is of type {kind.__name__}; a key is text, bytes or a whole number. "
        "Make one text of several parts."
    )


def partition_of(key: str | bytes | int, partitions: int) -> int:
    """The partition of a key in a log of so many, from 0.

    Raises:
        ContractError: no key.
    """
    return crc32(key_bytes(key)) % partitions


def partitions_of(
    keys: Sequence[RecordKey], partitions: int, keyless: Callable[[], int]
) -> list[int]:
    """The partition of each key.

    Args:
        keyless: gives the partition of a record without a key.

    Raises:
        ContractError: no key.
    """
    if set(map(type, keys)) == {str}:  # the usual case, in one pass
        try:
            return [crc32(key.encode()) % partitions for key in keys]  # type: ignore[union-attr]
        except UnicodeEncodeError:
            pass  # told below, with the key
    return [keyless() if key is None else partition_of(key, partitions) for key in keys]
