"""What a partition reads: whether it is behind decides if a flow that waits for its commit collects records or computes."""

from __future__ import annotations

from typing import Any

from mycelia.flow.inflow import BATCH_BYTES, BATCH_RECORDS, Inflow


class Entry:
    def __init__(self, records: int, size: int = 0) -> None:
        self.values = ["one"] * records
        self.size = size


class Reader:
    """Has entries of so many records."""

    def __init__(self, *records: int) -> None:
        self.entries: list[Any] = [Entry(number) for number in records]

    async def take(self, timeout: float | None = None) -> Any:
        return self.entries.pop(0) if self.entries else None


def inflow_of(*readers: Any) -> Inflow:
    return Inflow({str(number): reader for number, reader in enumerate(readers)})


async def test_half_a_batch_and_more_is_behind() -> None:
    inflow = inflow_of(Reader(BATCH_RECORDS, BATCH_RECORDS // 2, 1))

    seen = []
    for _ in range(3):
        await inflow.gather(0)
        seen.append(inflow.is_behind)

    assert seen == [True, True, False]


async def test_shares_of_several_sources_count_together() -> None:
    inflow = inflow_of(*(Reader(BATCH_RECORDS // 4) for _ in range(3)))

    taken = await inflow.gather(0)

    assert (len(taken), inflow.is_behind) == (3, True)


async def test_where_nothing_is_there_nothing_is_behind() -> None:
    inflow = inflow_of(Reader(10), Reader())

    assert not inflow.is_behind
    await inflow.gather(0)
    assert not inflow.is_behind
    assert await inflow.gather(0) == {}
    assert not inflow.is_behind


async def test_large_records_end_a_batch_before_their_number_does() -> None:
    reader = Reader()
    reader.entries = [Entry(1, BATCH_BYTES // 2) for _ in range(5)]
    inflow = inflow_of(reader)

    batches = [len((await inflow.gather(0))["0"]) for _ in range(3)]

    assert batches == [2, 2, 1]
