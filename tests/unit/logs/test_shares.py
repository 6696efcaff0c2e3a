"""How partitions are shared: evenly in the end, whatever instances come and go, and then nothing moves any more."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.logs.shares import Share, share_of


@pytest.mark.parametrize(
    ("partitions", "members", "mine", "others_need", "share"),
    [
        (8, 1, 0, False, Share(8, 0, 0, True)),
        (8, 2, 8, False, Share(0, 0, 4, False)),
        (8, 3, 2, False, Share(0, 1, 0, False)),
        (8, 3, 3, False, Share(0, 0, 0, False)),
        (4, 3, 2, True, Share(0, 0, 1, False)),
        (4, 3, 1, True, Share(0, 1, 0, False)),
        (2, 3, 0, False, Share(0, 1, 0, False)),
        (8, 0, 8, False, Share(0, 0, 0, False)),
    ],
)
def test_share(partitions: int, members: int, mine: int, others_need: bool, share: Share) -> None:
    assert share_of(partitions, members, mine, others_need) == share


class Group:
    """Instances that look in turns, as `Membership` does, without a broker."""

    def __init__(self, partitions: int, random: Random) -> None:
        self.partitions = partitions
        self.random = random
        self.owned: dict[int, set[int]] = {}
        self.needs: set[int] = set()
        self.seen_free: dict[int, set[int]] = {}
        self.moves = 0

    def look(self, member: int) -> None:
        mine = self.owned[member]
        others_need = bool(self.needs - {member})
        share = share_of(self.partitions, len(self.owned), len(mine), others_need)
        for partition in self.random.sample(sorted(mine), share.give):
            mine.discard(partition)
            self.moves += 1
        free = set(range(self.partitions)).difference(*self.owned.values())
        spare = free & self.seen_free.get(member, set())
        taken = sorted(free)[: share.take] if share.take else sorted(spare)[: share.take_spare]
        self.seen_free[member] = free if share.take or share.take_spare else set()
        mine |= set(taken)
        self.moves += len(taken)
        if share_of(self.partitions, len(self.owned), len(mine), others_need).needs:
            self.needs.add(member)
        else:
            self.needs.discard(member)

    def rounds(self, count: int) -> None:
        for _ in range(count):
            members = list(self.owned)
            self.random.shuffle(members)
            for member in members:
                self.look(member)


@given(
    st.integers(1, 24),
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
def test_partitions_are_even_after_some_looks_and_rest_then(
    partitions: int, sizes: list[int], random: Random
) -> None:
    group = Group(partitions, random)
    for size in sizes:
        for member in list(group.owned)[size:]:
            del group.owned[member]
            group.needs.discard(member)
        for member in range(size):
            group.owned.setdefault(member, set())

        group.rounds(2 * partitions + 8)

        counts = sorted(map(len, group.owned.values()))
        assert sum(counts) == partitions
        assert counts[-1] - counts[0] <= 1
        before = group.moves
        group.rounds(5)
        assert group.moves == before
