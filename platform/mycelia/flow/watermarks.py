"""How far event time has come: of each partition of a source, and over all of them. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Final, Literal

from mycelia.flow.column_batch import BEGINNING_OF_TIME, END_OF_TIME

__all__ = ["PartitionWatermarks", "Silence"]

Silence = Literal["", "idle", "empty"]
"""Of what comes from partitions: it is not silent; it is, and is waited for no more; nothing has ever come, which by itself says nothing of
another log that it may be joined with."""

NOTHING_EVER_MS: Final = 10_000
"""Silence after which a partition in which nothing has ever come is left out, where nothing else is said. Keys do not fill all partitions."""


class PartitionWatermarks:
    """The watermark over the partitions of a source: the lowest of those that are not idle, and never back.

    A partition's own is its greatest event time less `disorder`: records up to it are expected to have come. One that has said
    nothing holds all others up, until it has been silent for `idle`; what comes from it then may be late. Of partitions that others
    watch (`relayed()`), those say it.

    Args:
        channels: the partitions, as the engine calls them. Without any, event time has come to its end.
        disorder_ms: how much earlier than the latest a record may be.
        idle_ms: silence, in processing time, after which a partition is left out. None: never.
        empty_ms: the same of a partition in which nothing has ever come, where `idle_ms` says nothing.
    """

    def __init__(
        self,
        channels: Iterable[Hashable],
        disorder_ms: int,
        idle_ms: int | None,
        empty_ms: int | None = None,
    ) -> None:
        self._greatest: dict[Hashable, int] = dict.fromkeys(channels, BEGINNING_OF_TIME)
        self._heard: dict[Hashable, int | None] = dict.fromkeys(self._greatest)
        """When each was last heard, in processing time; None before anything was."""
        self._told: dict[Hashable, Silence] = {}
        """Of those that are silent, as they were relayed."""
        self._disorder_ms = disorder_ms
        self._idle_ms = idle_ms
        self._empty_ms = empty_ms if idle_ms is None else idle_ms
        self.silence: Silence = ""
        """Of all of them, when it was last asked how far event time has come."""
        self.watermark = BEGINNING_OF_TIME if self._greatest else END_OF_TIME

    def heard(self, channel: Hashable, greatest: int, now_ms: int) -> None:
        """A batch came from `channel`; its latest event time is `greatest`."""
        if greatest > self._greatest[channel]:
            self._greatest[channel] = greatest
        self._heard[channel] = now_ms

    def greatest(self, channel: Hashable) -> int | None:
        """The latest event time of a partition; None before there was one."""
        found = self._greatest[channel]
        return None if found == BEGINNING_OF_TIME else found

    def relayed(self, channel: Hashable, watermark: int, silence: Silence = "") -> None:
        """The watermark of `channel`, and whether it is silent, as those say who know it. A lower one than before says nothing."""
        self._greatest[channel] = max(self._greatest[channel], watermark + self._disorder_ms)
        if silence:
            self._told[channel] = silence
        else:
            self._told.pop(channel, None)

    def ended(self, channel: Hashable) -> None:
        """Nothing more will come from `channel`."""
        self._greatest[channel] = END_OF_TIME + self._disorder_ms

    def advance(self, now_ms: int) -> int:
        """The watermark as of `now_ms`. With all partitions idle it comes as far as the one that is ahead: it had waited for the others alone."""
        if not self._greatest:
            return self.watermark
        active = self._active(now_ms)
        reached = (min if active else max)(
            map(self._greatest.__getitem__, active or self._greatest)
        )
        if reached > BEGINNING_OF_TIME:
            self.watermark = max(self.watermark, reached - self._disorder_ms)
        is_told = self._idle_ms is not None or "idle" in self._told.values()
        if active:
            self.silence = ""
        else:
            self.silence = "idle" if is_told or reached > BEGINNING_OF_TIME else "empty"
        return self.watermark

    def _active(self, now_ms: int) -> list[Hashable]:
        if self._idle_ms is None and self._empty_ms is None:
            return [one for one in self._greatest if one not in self._told]
        active = []
        for channel, heard in self._heard.items():
            if heard is None:  # its silence begins when somebody looks for the first time
                self._heard[channel] = heard = now_ms
            greatest = self._greatest[channel]
            patience = self._empty_ms if greatest == BEGINNING_OF_TIME else self._idle_ms
            if patience is None or now_ms - heard < patience or greatest >= END_OF_TIME:
                active.append(channel)
        return active

    def plain(self) -> list[object]:
        told: list[object] = [self.watermark, self._greatest]
        return [*told, self._told] if self._told else told

    def restore(self, plain: list[object]) -> None:
        """Go on from `plain()`. A partition that is new since then begins at the beginning; one that is gone holds nothing up."""
        watermark, greatest, *silent = plain
        assert isinstance(watermark, int)
        assert isinstance(greatest, dict)
        self.watermark = watermark
        known = list(self._greatest)
        for channel, time in greatest.items():
            if type(channel) is int and channel not in self._greatest and channel < len(known):
                channel = known[channel]  # as it was kept before partitions had names
            if channel in self._greatest:
                self._greatest[channel] = time
        for told in silent:
            assert isinstance(told, dict)
            self._told.update({one: told[one] for one in told if one in self._greatest})
