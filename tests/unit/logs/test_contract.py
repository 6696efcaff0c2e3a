"""contracts/logs: the vectors say what the code does, and another reader, of a dozen lines, reads what we write."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import msgpack
import pytest
from tests.docs.documents import ROOT, blocks_of
from tests.tools import not_run

from mycelia.amqp import Properties
from mycelia.errors import ConfigError
from mycelia.logs.batch_format import decode_entry, encode_columns, entry_properties
from mycelia.logs.partitioning import key_bytes, partition_of
from mycelia.logs.value_codec import ValueCodec
from mycelia.wire import compressor_of

FOLDER = ROOT / "contracts" / "logs"
VECTORS = json.loads((FOLDER / "vectors.json").read_text("utf-8"))
CODEC = ValueCodec[Any](None, "log")


def key_of(told: Any) -> Any:
    return bytes.fromhex(told["hex"]) if isinstance(told, dict) else told


@pytest.mark.parametrize("vector", VECTORS["partitioning"], ids=lambda vector: repr(vector["key"]))
def test_keys_have_their_partitions(vector: dict[str, Any]) -> None:
    key = key_of(vector["key"])

    assert zlib.crc32(key_bytes(key)) == vector["crc32"]
    for partitions, partition in vector["partition"].items():
        assert partition_of(key, int(partitions)) == partition


def needs(compression: str | None) -> None:
    try:
        compressor_of(compression or "gzip")
    except ConfigError:
        not_run(f"{compression} is not installed (backports.zstd)")


@pytest.mark.parametrize("vector", VECTORS["entries"], ids=lambda vector: vector["about"])
def test_entries_hold_their_records(vector: dict[str, Any]) -> None:
    needs(vector["headers"].get("compression"))
    properties = Properties(content_type=vector["content_type"], headers=vector["headers"])

    entry = decode_entry(properties, base64.b64decode(vector["body"]), CODEC)

    assert entry.faults == []
    assert [
        {"key": one.key, "time": one.time, "headers": one.headers, "value": one.value}
        for one in entry.records
    ] == vector["records"]


@pytest.mark.parametrize(
    "vector",
    [v for v in VECTORS["entries"] if "x-log-format" in v["headers"]],
    ids=lambda vector: vector["about"],
)
def test_entries_are_written_so(vector: dict[str, Any]) -> None:
    """Byte for byte where they are not compressed: how well that is done is each library's own."""
    records, headers = vector["records"], vector["headers"]
    properties = entry_properties(
        len(records),
        headers["x-log-producer"],
        headers["x-log-sequence"],
        headers.get("compression"),
    )
    own = [record["headers"] for record in records]
    body = encode_columns(
        [record["key"] for record in records],
        [record["time"] for record in records],
        own if any(own) else None,
        [CODEC.encode([record["value"] for record in records])],
    )

    assert properties.headers == headers
    assert properties.content_type == vector["content_type"]
    if "compression" not in headers:
        assert body == base64.b64decode(vector["body"])


@pytest.mark.parametrize(
    "vector",
    [v for v in VECTORS["entries"] if "x-log-format" in v["headers"]],
    ids=lambda vector: vector["about"],
)
def test_another_msgpack_reads_the_entries(vector: dict[str, Any]) -> None:
    body = base64.b64decode(vector["body"])
    compression = vector["headers"].get("compression")
    if compression == "application/x-gzip":
        body = zlib.decompress(body, 47)
    elif compression is not None:
        return  # Python 3.11 has no other zstd than ours

    keys, times, headers, values = msgpack.unpackb(body)

    records = vector["records"]
    nothing = [None] * len(values)
    assert values == [record["value"] for record in records]
    assert (keys or nothing) == [record["key"] for record in records]
    assert (times or nothing) == [record["time"] for record in records]
    assert (headers or nothing) == [record["headers"] for record in records]


def test_captured_bytes_in_the_document_are_an_entry_of_the_vectors() -> None:
    (block,) = [
        block for block in blocks_of(FOLDER / "README.md", "text") if "array of 4" in block.text
    ]
    shown = "".join(line[:54] for line in block.text.splitlines())  # what they mean stands behind
    (three,) = [v for v in VECTORS["entries"] if v["about"].startswith("three records")]

    assert bytes.fromhex(shown) == base64.b64decode(three["body"])
