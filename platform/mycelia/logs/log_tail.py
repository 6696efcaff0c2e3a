"""All that a log has, read to where it ends now, and on from there as often as one likes: for tools that compare."""

from __future__ import annotations

from typing import Any, Final

from mycelia.amqp import Link
from mycelia.errors import BrokerUnavailable
from mycelia.logs.group_places import count_partitions
from mycelia.logs.layout import LogLayout, stream_name
from mycelia.logs.log_diff import DiffRoom, LogComparison, PackedRecord, is_compared
from mycelia.logs.reader import LogReader
from mycelia.logs.record_shape import RecordShape
from mycelia.logs.stream_ends import end_of, first_offset

__all__ = ["LogTail"]

_SILENCE_S: Final = 15.0
"""After which what should be there will not come any more."""


class LogTail:
    """Keeps the records of a log in memory, as they are compared.

    Args:
        link: an open link.
        log: its name.
        comparison: that they are for.
        room: how many there may be.

    Attributes:
        records: in the order of each partition.
        from_ms, until_ms: records of other times are not kept. To be set before they are read.
    """

    def __init__(self, link: Link, log: str, comparison: LogComparison, room: DiffRoom) -> None:
        self.log = log
        self.records: list[PackedRecord] = []
        self.from_ms: int | None = None
        self.until_ms: int | None = None
        self._comparison = comparison
        self._room = room
        self._link = link
        self._readers: dict[int, LogReader[Any]] = {}
        self._partitions: int | None = None

    async def find(self) -> int:
        """How many partitions the log has.

        Raises:
            TopologyError: there is no such log.
        """
        if self._partitions is None:
            self._partitions = await count_partitions(self._link, self.log)
        return self._partitions

    async def read(self) -> None:
        """Take what there is by now.

        Raises:
            TopologyError: there is no such log.
            BrokerUnavailable: the broker does not give what it has.
            ConfigError: it is more than may be kept.
        """
        partitions = await self.find()
        for partition in range(partitions):
            await self._read_partition(partition, partitions)

    async def _read_partition(self, partition: int, partitions: int) -> None:
        end = await end_of(self._link, self.log, partition)
        reader = self._readers.get(partition)
        if reader is None:
            if end <= (await first_offset(self._link, stream_name(self.log, partition)) or 0):
                return
            layout = LogLayout(self.log, partitions, None, None)
            shape = RecordShape[Any](f'log "{self.log}"', None, None, None)
            reader = LogReader(self._link, layout, shape, partition, "first")
            await reader.open()
            self._readers[partition] = reader
        while reader.offset is None or reader.offset < end:
            entry = await reader.take(timeout=_SILENCE_S)
            if entry is None:
                if reader.offset is not None and reader.offset >= end:
                    return  # what stood there last had come before
                raise BrokerUnavailable(
                    f'log "{self.log}", partition {partition}: nothing came for {_SILENCE_S:g} s before its end at {end}.'
                )
            for record in entry.records:
                if is_compared(record.time, self.from_ms, self.until_ms):
                    packed = self._comparison.packed(record)
                    self._room.take(packed)
                    self.records.append(packed)

    async def aclose(self) -> None:
        """Idempotent."""
        readers, self._readers = self._readers, {}
        for reader in readers.values():
            await reader.aclose()
