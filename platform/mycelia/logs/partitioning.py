"""Which partition a key belongs to: CRC-32 of its bytes, modulo the number of partitions. Pure.

CRC-32 (ISO-HDLC: zlib's, PNG's, `crc32fast`, Go's `hash/crc32` IEEE) is in every language's standard library or nearly so, and C in
Python: 70 ns a key. Kafka's murmur2 and the murmur3 of RabbitMQ's stream clients are 4 µs in Python without another
dependency. What was measured, and how evenly keys fall: docs/decisions/0017.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from zlib import crc32

from mycelia.errors import ContractError
from mycelia.logs.record import RecordKey

__all__ = ["MAX_PARTITIONS", "checked_key", "key_bytes", "partition_of", "partitions_of"]

MAX_PARTITIONS = 1024
"""Each is a stream: a process at the broker, an open file, a channel for its reader."""


def checked_key(key: object) -> RecordKey:
    """A key as a batch can carry it.

    Raises:
        ContractError: a key of another type, text that UTF-8 does not have (half a surrogate pair), a number beyond 64 bits.
    """
    if isinstance(key, str):
        plain = str.__str__(key)
        try:
            plain.encode()
        except UnicodeEncodeError as exc:
            raise ContractError(f"key {key!r:.60} is no text that UTF-8 can carry: {exc}.") from exc
        return plain
    if key is None or type(key) is bytes:
        return key
    if isinstance(key, int) and type(key) is not bool and -(2**63) <= key < 2**64:
        return int(key)
    raise ContractError(
        f"key {key!r:.60} is of type {type(key).__name__}; a key is text, bytes or a whole number of 64 bits. "
        "Make one text of several parts."
    )


def key_bytes(key: str | bytes | int) -> bytes:
    """What of a key is hashed: text as UTF-8, a whole number as its decimal text, bytes as they are.

    Raises:
        ContractError: no key.
    """
    plain = checked_key(key)
    if type(plain) is bytes:
        return plain
    return str(plain).encode()


def partition_of(key: str | bytes | int, partitions: int) -> int:
    """The partition of a key in a log of so many, from 0.

    Raises:
        ContractError: no key.
    """
    if type(key) is str:  # the usual case
        with contextlib.suppress(UnicodeEncodeError):  # told below
            return crc32(key.encode()) % partitions
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
        with contextlib.suppress(UnicodeEncodeError):  # told below, with the key
            if partitions == 1:
                "".join(keys).encode()  # type: ignore[arg-type]  # all are text
                return [0] * len(keys)
            return [crc32(key.encode()) % partitions for key in keys]  # type: ignore[union-attr]
    return [keyless() if key is None else partition_of(key, partitions) for key in keys]
