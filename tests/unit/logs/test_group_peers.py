"""Of two methods in one group, which is to go: the same answer wherever it is asked."""

from __future__ import annotations

from itertools import permutations

import pytest

from mycelia.logs.group_peers import TOGETHER_S, GroupPeer, comes_before


def peer(method: str, taking_part_s: float | None) -> GroupPeer:
    return GroupPeer(id=method, method=method, owner="here:1", taking_part_s=taking_part_s)


def test_the_same_method_is_no_rival_whoever_came_first() -> None:
    old, new = peer("a.count", 100.0), peer("a.count", None)

    assert not comes_before(old, new)
    assert not comes_before(new, old)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (peer("b.count", 100.0), peer("a.count", None)),
        (peer("b.count", 0.1), peer("a.count", None)),
        (peer("b.count", 100.0), peer("a.count", 90.0)),
        (peer("a.count", 90.0), peer("b.count", 90.0 + TOGETHER_S / 2)),
        (peer("a.count", None), peer("b.count", None)),
    ],
)
def test_of_two_methods_one_goes_and_the_other_stays(first: GroupPeer, second: GroupPeer) -> None:
    assert comes_before(first, second)
    assert not comes_before(second, first)


def test_of_several_exactly_one_method_stays() -> None:
    """Where they did not come in a chain of moments: then all go, and the alphabet says who comes back."""
    for ages in permutations([None, 0.0, 3.0, 20.0], 3):
        peers = [peer(name, age) for name, age in zip("abc", ages, strict=True)]
        staying = [
            one
            for one in peers
            if not any(comes_before(other, one) for other in peers if other is not one)
        ]

        assert len(staying) == 1
