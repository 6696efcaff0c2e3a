"""What leaves a flow for a log: ids as the contract has them, and batches as the log's writers make them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia import Log
from mycelia.flow.column_batch import ColumnBatch
from mycelia.flow.engine import Given
from mycelia.flow.outgoing import IdHeaders, Outgoing
from mycelia.flow.outputs import FlowOutput
from mycelia.logs.batch_format import decode_entry
from mycelia.wire import SerializerRegistry


@given(
    st.text(st.characters(codec="utf-8"), max_size=300),
    st.lists(st.integers(0, 2**70), max_size=30),
)
def test_ids_are_written_as_maps_of_one_text(prefix: str, numbers: list[int]) -> None:
    headers = [{"id": f"{prefix}{number}"} for number in numbers]

    assert IdHeaders(prefix, numbers).encoded() == msgspec.msgpack.encode(headers)


@pytest.mark.parametrize("size", [0, 31, 32, 255, 256, 65_535, 65_536])
def test_ids_of_any_length_are_written(size: int) -> None:
    prefix = "x" * max(size - 1, 0)

    assert IdHeaders(prefix, [7, 8]).encoded() == msgspec.msgpack.encode(
        [{"id": f"{prefix}7"}, {"id": f"{prefix}8"}]
    )


def outgoing(log: Log[Any]) -> tuple[Outgoing, FlowOutput]:
    port: Any = None
    output = FlowOutput("out", port, log=log)
    serializer = SerializerRegistry().by_name(None)
    return Outgoing([output], "producer", 0, {}, "svc.events", serializer), output


def batch_of(first: int, count: int) -> Given:
    numbers = range(first, first + count)
    columns = ColumnBatch([n * 10 for n in numbers], list(numbers), [f"k{n % 7}" for n in numbers])
    return Given("flow", "out", first, columns)


@pytest.mark.parametrize("partitions", [1, 3])
def test_each_record_is_in_a_batch_of_its_partition_with_its_id(partitions: int) -> None:
    log: Log[Any] = Log("out", partitions=partitions)
    makes, _ = outgoing(log)
    made = makes.messages([batch_of(5, 3_000), batch_of(3_005, 9_000)], 0)

    found = {}
    for message in made:
        entry = decode_entry(message.properties, message.body, log.shape.codec)
        assert not entry.faults
        for record in entry.records:
            found[record.value] = record.key, record.time, record.headers, message.routing_key
    assert sorted(found) == list(range(5, 12_005))
    for number, (key, time, headers, _) in found.items():
        assert (key, time) == (f"k{number % 7}", number * 10)
        assert headers == {"id": f"flow/out/{number}"}
    assert len({(key, to) for key, _, _, to in found.values()}) == 7
    assert len({to for *_, to in found.values()}) == partitions


@pytest.mark.parametrize("compression", ["zlib", None])
def test_batches_are_compressed_as_the_log_says(compression: str | None) -> None:
    makes, _ = outgoing(Log("out", partitions=1, compression=compression))
    (large,) = makes.messages([batch_of(0, 1_000)], 0)
    (small,) = makes.messages([batch_of(0, 2)], 0)

    assert ("compression" in (large.properties.headers or {})) == (compression is not None)
    assert "compression" not in (small.properties.headers or {})
