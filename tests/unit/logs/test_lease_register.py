"""Whose a partition is: the rules of its queue, and that no two owners' checkpoints are ever followed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mycelia.logs.lease_register import (
    LeaseEntry,
    LeaseRegister,
    LeaseVerdict,
    read_lease_entry,
)
from mycelia.logs.position import LogPosition


def at(epoch: int, number: int, offset: int = 0) -> LeaseEntry:
    return LeaseEntry(kind="at", epoch=epoch, number=number, position=LogPosition(offset=offset))


def claim(name: str) -> LeaseEntry:
    return LeaseEntry(kind="claim", claim=name)


def test_own_claim_makes_the_owner_behind_all_checkpoints() -> None:
    register = LeaseRegister("me")

    verdicts = [
        register.read(entry)
        for entry in (at(1, 1, 10), at(1, 2, 20), claim("other"), at(1, 1, 10), claim("me"))
    ]

    assert verdicts == [
        *(LeaseVerdict.KEEP, LeaseVerdict.KEEP),
        *(LeaseVerdict.DROP, LeaseVerdict.DROP, LeaseVerdict.OWNED),
    ]
    assert register.epoch == 2
    assert register.position == LogPosition(offset=20)


def test_checkpoint_of_a_former_owner_that_woke_up_is_dropped() -> None:
    register = LeaseRegister("me")
    register.read(at(1, 1, 10))
    register.read(claim("me"))
    mine = register.next_checkpoint(LogPosition(offset=15), "me")
    register.read(mine)

    assert register.read(at(1, 99, 99)) is LeaseVerdict.DROP
    assert register.position == LogPosition(offset=15)


def test_owner_with_a_lower_epoch_learns_that_it_is_none() -> None:
    register = LeaseRegister("me")
    register.read(claim("me"))

    assert register.read(at(2, 1, 5)) is LeaseVerdict.FENCED
    assert register.epoch == 0


def test_garbage_is_no_entry() -> None:
    assert read_lease_entry(b"") is None
    assert read_lease_entry(b'{"kind": "at", "epoch": "x"}') is None
    assert read_lease_entry(b"[" * 100_000) is None


@given(st.data())
def test_position_never_goes_back_to_an_earlier_epoch(data: st.DataObject) -> None:
    """Owners come one after the other, each late checkpoints of those before in between: each begins where the last one was."""
    queue: list[LeaseEntry] = []
    last = 0
    stale: list[LeaseRegister] = []
    for number in range(data.draw(st.integers(1, 6))):
        register = LeaseRegister(f"owner {number}")
        kept = [entry for entry in queue if entry.kind == "at"]
        for entry in [*kept, claim(f"owner {number}")]:
            register.read(entry)
        began = 0 if register.position is None else register.position.offset
        assert began >= last
        queue = [] if register.latest is None else [register.latest]
        offset = began
        for _ in range(data.draw(st.integers(1, 4))):
            offset += data.draw(st.integers(0, 5))
            checkpoint = register.next_checkpoint(LogPosition(offset=offset), "")
            queue.append(checkpoint)
            register.read(checkpoint)
            if stale and data.draw(st.booleans()):
                late = data.draw(st.sampled_from(stale))
                queue.append(late.next_checkpoint(LogPosition(offset=10_000), "late"))
                assert register.read(queue[-1]) is LeaseVerdict.DROP
                queue.pop()
        last = offset
        stale.append(register)


def test_owner_leaves_when_another_takes_the_partition_and_nobody_else_does() -> None:
    taken = LeaseEntry(kind="leave", claim="other")
    owner, waiting, taker = LeaseRegister("me"), LeaseRegister("waiting"), LeaseRegister("other")
    owner.read(LeaseEntry(kind="claim", claim="me"))
    taker.read(LeaseEntry(kind="claim", claim="other"))

    assert owner.read(taken) is LeaseVerdict.TAKEN
    assert owner.epoch == 0
    assert owner.read(taken) is LeaseVerdict.DROP
    assert waiting.read(taken) is LeaseVerdict.DROP
    assert taker.read(taken) is LeaseVerdict.DROP
    assert taker.epoch == 1
