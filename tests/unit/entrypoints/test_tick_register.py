"""Which tick a fleet has come to: many instances, one queue, and failures between any two steps."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mycelia.entrypoints.tick_register import TickEntry, TickRegister, Verdict, read_tick_entry

NOW = 1_000_000


def read(register: TickRegister, kind: str, tick: int, claim: str = "", **how: bool) -> Verdict:
    entry = TickEntry(kind=kind, tick_ms=tick, claim=claim)  # type: ignore[arg-type]
    return register.read(entry, redelivered=how.get("redelivered", False), now_ms=NOW)


@pytest.fixture
def holder() -> TickRegister:
    register = TickRegister()
    assert read(register, "done", 100) is Verdict.KEEP
    return register


def test_a_claim_that_comes_back_to_its_writer_begins(holder: TickRegister) -> None:
    holder.claim("mine")

    assert read(holder, "claim", 200, "mine") is Verdict.RUN
    assert holder.last_ms == 200
    assert read(holder, "claim", 200, "mine") is Verdict.DROP  # published twice


def test_a_failed_tick_is_tried_again_by_its_holder_and_stays_done(holder: TickRegister) -> None:
    holder.claim("first")
    assert read(holder, "claim", 200, "first") is Verdict.RUN

    for claim in ("second", "third"):
        holder.claim(claim)
        assert read(holder, "again", 200, claim) is Verdict.RUN_AGAIN
        assert read(holder, "again", 200, claim) is Verdict.DROP  # published twice
    assert holder.last_ms == 200


@pytest.mark.parametrize(
    ("tick", "claim", "redelivered"),
    [(100, "another's", False), (100, "mine", True), (90, "mine", False), (200, "mine", False)],
    ids=["of another", "somebody had it", "a tick before the last", "not begun"],
)
def test_a_failed_tick_is_not_tried_again(
    holder: TickRegister, tick: int, claim: str, redelivered: bool
) -> None:
    holder.claim("mine")

    assert read(holder, "again", tick, claim, redelivered=redelivered) is Verdict.DROP
    assert holder.last_ms == 100


def test_who_has_lost_the_timer_tries_nothing_again(holder: TickRegister) -> None:
    holder.claim("mine")
    holder.lost()
    holder.claim("mine")

    assert read(holder, "again", 100, "mine") is Verdict.DROP


def test_a_claim_of_another_that_nobody_had_says_nothing(holder: TickRegister) -> None:
    holder.claim("mine")

    assert read(holder, "claim", 200, "another's") is Verdict.DROP
    assert read(holder, "claim", 200, "mine") is Verdict.RUN


def test_a_claim_that_somebody_had_before_may_have_begun(holder: TickRegister) -> None:
    holder.claim("mine")

    assert read(holder, "claim", 200, "another's", redelivered=True) is Verdict.KEEP
    assert read(holder, "claim", 200, "mine") is Verdict.DROP


def test_a_claim_of_before_the_loss_counts_no_more(holder: TickRegister) -> None:
    holder.claim("mine")
    holder.lost()

    assert not holder.is_holder
    assert read(holder, "claim", 200, "mine") is Verdict.DROP
    assert read(holder, "done", 100, redelivered=True) is Verdict.KEEP
    assert read(holder, "claim", 200, "mine") is Verdict.DROP


def test_who_knows_nothing_of_what_is_done_does_not_hold_the_timer() -> None:
    register = TickRegister()

    assert read(register, "since", 500) is Verdict.KEEP
    assert read(register, "since", 600) is Verdict.DROP
    assert not register.is_holder
    assert read(register, "done", 100, redelivered=True) is Verdict.KEEP  # it was on its way
    assert (register.is_holder, register.last_ms) == (True, 100)


def test_what_one_knows_himself_outlives_the_loss(holder: TickRegister) -> None:
    holder.claim("mine")
    assert read(holder, "claim", 200, "mine") is Verdict.RUN
    holder.lost()

    assert read(holder, "done", 100) is Verdict.KEEP
    assert holder.last_ms == 200


def test_an_entry_of_a_clock_that_was_wrong_does_not_silence_the_timer(
    holder: TickRegister,
) -> None:
    assert read(holder, "done", NOW + 4 * 3600 * 1000) is Verdict.DROP
    assert holder.last_ms == 100


@given(st.binary(max_size=60))
def test_anything_may_lie_in_the_queue(body: bytes) -> None:
    assert read_tick_entry(body) is None or isinstance(read_tick_entry(body), TickEntry)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"kind":"go","tick_ms":1}', b'{"kind":"done","tick_ms":"1"}', b"[" * 100_000],
)
def test_what_is_no_entry_is_told(body: bytes) -> None:
    assert read_tick_entry(body) is None


# --- a fleet, step by step ------------------------------------------------------------------------------


class Model:
    """The queue with its single active consumer, and instances that may be cut off, or believe what is no longer so."""

    def __init__(self, instances: int) -> None:
        self.queue: deque[tuple[TickEntry, bool]] = deque(
            [(TickEntry(kind="done", tick_ms=0), False)]
        )
        self.registers = [TickRegister() for _ in range(instances)]
        self.active = 0
        self.unacked: list[TickEntry] = []
        self.kept: list[TickEntry | None] = [None] * instances
        self.ran: list[int] = []
        self.begun: list[set[int]] = [set() for _ in range(instances)]
        self.tried_again = 0
        self.claims = 0

    def claim(self, who: int, tick: int) -> None:
        """Also by one who has been cut off and has not noticed; of a tick that it has begun, to try it again."""
        self.claims += 1
        name = f"{who}-{self.claims}"
        self.registers[who].claim(name)
        entry = TickEntry(
            kind="again" if tick in self.begun[who] else "claim", tick_ms=tick, claim=name
        )
        self.queue.append((entry, False))

    def deliver(self) -> None:
        if not self.queue:
            return
        entry, redelivered = self.queue.popleft()
        who, register = self.active, self.registers[self.active]
        self.unacked.append(entry)
        verdict = register.read(entry, redelivered=redelivered, now_ms=NOW)
        if verdict is Verdict.RUN_AGAIN:
            assert entry.tick_ms == self.ran[-1]  # no other has begun since
            assert entry.tick_ms in self.begun[who]
            self.tried_again += 1
        if verdict in (Verdict.DROP, Verdict.RUN_AGAIN):
            self.unacked.remove(entry)
            return
        kept, self.kept[who] = self.kept[who], entry
        if kept is not None and kept in self.unacked:
            self.unacked.remove(kept)
        if verdict is Verdict.RUN:
            self.ran.append(entry.tick_ms)
            self.begun[who].add(entry.tick_ms)

    def cut(self, following: int) -> None:
        """The broker gives up the active consumer; it may learn of it later, when it is active again."""
        self.queue.extendleft((entry, True) for entry in reversed(self.unacked))
        self.unacked.clear()
        self.active = following
        self.registers[following].lost()
        self.kept[following] = None


@settings(max_examples=300)
@given(st.data())
def test_no_tick_begins_twice_whatever_fails(data: st.DataObject) -> None:
    fleet = Model(3)
    for _ in range(data.draw(st.integers(1, 60))):
        step = data.draw(st.sampled_from(["claim", "deliver", "deliver", "cut"]))
        if step == "claim":
            fleet.claim(data.draw(st.integers(0, 2)), data.draw(st.integers(1, 6)))
        elif step == "deliver":
            fleet.deliver()
        else:
            fleet.cut(data.draw(st.integers(0, 2)))

    assert len(fleet.ran) == len(set(fleet.ran))
    assert fleet.ran == sorted(fleet.ran)
