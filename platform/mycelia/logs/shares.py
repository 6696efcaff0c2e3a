"""How many partitions an instance of a group takes, keeps and gives away. Pure.

Every instance decides for itself, from what it can see at the broker: how many instances there are, which partitions nobody has, and
whether someone has less than its share. Partitions divide evenly when each has the whole part of `partitions / members`, and some
one more. Whoever has less takes what is free, and where nothing is, says that it needs one; whoever has more than the least then gives
one away. What is still free at a second look, nobody needs: whoever has the least may take it.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Share", "share_of"]


@dataclass(frozen=True, slots=True)
class Share:
    """What an instance is to do now."""

    take: int
    """Of the free partitions, at once."""
    take_spare: int
    """Of those that were free at the last look, too."""
    give: int
    """Of its own."""
    needs: bool
    """Whether it has too few, and the others are to know."""


def share_of(partitions: int, members: int, mine: int, others_need: bool) -> Share:
    """What an instance with `mine` partitions is to do.

    Args:
        members: instances of the group, this one included.
        others_need: whether one of them has too few.
    """
    members = max(members, 1)
    least = partitions // members
    most = -(-partitions // members)
    give = max(mine - most, 0)
    if not give and mine > least and others_need:
        give = 1
    return Share(
        take=max(least - mine, 0),
        take_spare=1 if least <= mine < most and not give else 0,
        give=give,
        needs=mine < least,
    )
