"""How far event time has come: of each partition of a source, and over all of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from mycelia.flow.column_batch import BEGINNING_OF_TIME, END_OF_TIME

__all__ = ["PartitionWatermarks"]


class PartitionWatermarks:
    """The watermark over the partitions of a source: the lowest of those that are not idle, and never back.

    A partition's own is its greatest event time less `disorder`: records up to it are expected to have come. One that has said
    nothing holds all others up, until it has been silent for `idle`; what comes from it then may be late.

    Args:
        channels: the numbers of the partitions.
        disorder_ms: how much earlier than the latest a record may be.
        idle_ms: silence, in processing time, after which a partition is left out. None: never.
    """

    def __init__(self, channels: Iterable[int], disorder_ms: int, idle_ms: int | None) -> None:
        self._greatest = dict.fromkeys(channels, BEGINNING_OF_TIME)
        self._heard: dict[int, int | None] = dict.fromkeys(self._greatest)
        """When each was last heard, in processing time; None before anything was."""
        self._disorder_ms = disorder_ms
        self._idle_ms = idle_ms
        self.watermark = BEGINNING_OF_TIME

    def heard(self, channel: int, greatest: int, now_ms: int) -> None:
        """A batch came from `channel`; its latest event time is `greatest`."""
        if greatest > self._greatest[channel]:
            self._greatest[channel] = greatest
        self._heard[channel] = now_ms

    def greatest(self, channel: int) -> int | None:
        """The latest event time of a partition; None before there was one."""
        found = self._greatest[channel]
        return None if found == BEGINNING_OF_TIME else found

    def relayed(self, channel: int, watermark: int) -> None:
        """The watermark of `channel`, as those say who know it. One that is lower than before says nothing."""
        self._greatest[channel] = max(self._greatest[channel], watermark + self._disorder_ms)

    def ended(self, channel: int) -> None:
        """Nothing more will come from `channel`."""
        self._greatest[channel] = END_OF_TIME + self._disorder_ms

    def advance(self, now_ms: int) -> int:
        """The watermark as of `now_ms`. With all partitions idle it stays where it was: their silence says nothing of time."""
        lowest = min((self._greatest[one] for one in self._active(now_ms)), default=None)
        if lowest is not None:
            self.watermark = max(self.watermark, lowest - self._disorder_ms)
        return self.watermark

    def _active(self, now_ms: int) -> list[int]:
        idle_ms = self._idle_ms
        if idle_ms is None:
            return list(self._greatest)
        active = []
        for channel, heard in self._heard.items():
            if heard is None:  # its silence begins when somebody looks for the first time
                self._heard[channel] = heard = now_ms
            if now_ms - heard < idle_ms or self._greatest[channel] >= END_OF_TIME:
                active.append(channel)
        return active

    def plain(self) -> list[object]:
        return [self.watermark, self._greatest]

    def restore(self, plain: list[object]) -> None:
        """Go on from `plain()`. A partition that is new since then begins at the beginning; one that is gone holds nothing up."""
        watermark, greatest = plain
        assert isinstance(watermark, int)
        assert isinstance(greatest, dict)
        self.watermark = watermark
        self._greatest.update(
            {one: time for one, time in greatest.items() if one in self._greatest}
        )
