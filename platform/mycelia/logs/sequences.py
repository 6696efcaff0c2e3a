"""Which batches of a partition are repetitions: by producer and sequence. Pure.

A writer that did not hear of a batch's confirm sends it again, and a batch that was sent again may lie behind later ones. So what
has been seen of a producer is its highest sequence and which of those below it have *not* come: never only the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mycelia.errors import ContractError

__all__ = ["MAX_PRODUCERS", "SEQUENCE_WINDOW", "SeenSequences"]

SEQUENCE_WINDOW: Final = 1024
"""How far below a producer's highest sequence a missing one is still waited for. The contract lets a writer have at most 64 batches
of a partition unconfirmed, so what is further below has come, or will never come."""

MAX_PRODUCERS: Final = 10_000
"""Remembered for a partition. A writer is one producer for as long as it runs, so this many have written since; the one silent
for longest is forgotten first."""

_WINDOW_MASK: Final = (1 << SEQUENCE_WINDOW) - 1


class SeenSequences:
    """What has been seen of each producer of one partition.

    Of a producer never heard of before nothing is known: the sequences below its first one count as missing, so that a
    reader that begins in the middle loses none.
    """

    __slots__ = ("_producers",)

    def __init__(self) -> None:
        # producer: (highest sequence, bits of the missing ones; bit 0 is highest - 1). Last heard of last.
        self._producers: dict[str, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._producers)

    def is_new(self, producer: str, sequence: int) -> bool:
        """Whether this batch has not come before; from now on it has."""
        seen = self._producers.pop(producer, None)
        if seen is None:
            if len(self._producers) >= MAX_PRODUCERS:
                del self._producers[next(iter(self._producers))]
            self._producers[producer] = (sequence, (1 << min(sequence, SEQUENCE_WINDOW)) - 1)
            return True
        highest, missing = seen
        ahead = sequence - highest
        if ahead == 1 and not missing:
            self._producers[producer] = (sequence, 0)
            return True
        if ahead > 0:
            skipped = min(ahead - 1, SEQUENCE_WINDOW)
            # The highest itself has come; it moves to bit `ahead - 1`, the ones between are missing.
            missing = (missing << ahead if ahead <= SEQUENCE_WINDOW else 0) | ((1 << skipped) - 1)
            self._producers[producer] = (sequence, missing & _WINDOW_MASK)
            return True
        bit = 1 << (-ahead - 1) if -SEQUENCE_WINDOW <= ahead < 0 else 0
        self._producers[producer] = (highest, missing & ~bit)
        return bool(missing & bit)

    def copy(self) -> SeenSequences:
        """What has been seen so far; it does not follow what comes."""
        copied = SeenSequences()
        copied._producers = self._producers.copy()
        return copied

    def to_plain(self) -> dict[str, list[Any]]:
        """As plain data, to be kept in a checkpoint: `{producer: [highest sequence, missing ones below it]}`."""
        return {
            producer: [
                highest,
                [highest - 1 - bit for bit in range(missing.bit_length()) if missing >> bit & 1],
            ]
            for producer, (highest, missing) in self._producers.items()
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> SeenSequences:
        """From what `to_plain()` gave.

        Raises:
            ContractError: it is not of that form.
        """
        made = cls()
        try:
            for producer, (highest, below) in plain.items():
                missing = 0
                for sequence in below:
                    if not 0 < highest - sequence <= SEQUENCE_WINDOW:
                        raise ValueError(f"{sequence} is not below {highest}")
                    missing |= 1 << (highest - 1 - sequence)
                made._producers[str(producer)] = (int(highest), missing)
        except (AttributeError, TypeError, ValueError) as exc:
            raise ContractError(
                f"the sequences in a checkpoint cannot be read: {exc}. Expected "
                "{producer: [highest sequence, [missing ones below it]]}."
            ) from exc
        return made
