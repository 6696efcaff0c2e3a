"""The ledger against a model of the broker's side: RabbitMQ closes the channel for a tag it does not have outstanding."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mycelia.amqp.rabbit.ack_ledger import AckLedger, Settlements


class BrokerSide:
    """What a broker holds as unacknowledged on one channel."""

    def __init__(self) -> None:
        self.outstanding: list[int] = []
        self.acked: list[int] = []
        self.rejected: list[tuple[int, bool]] = []

    def take(self, news: Settlements) -> None:
        for tag, requeue in news.rejected:
            self.outstanding.remove(tag)  # ValueError: told twice, or never delivered
            self.rejected.append((tag, requeue))
        if news.acked_through:
            assert news.acked_through in self.outstanding, "unknown delivery tag"
            self.acked += [tag for tag in self.outstanding if tag <= news.acked_through]
            self.outstanding = [tag for tag in self.outstanding if tag > news.acked_through]
        for tag in news.acked_singly:
            self.outstanding.remove(tag)
            self.acked.append(tag)


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ledger = AckLedger()
        self.broker = BrokerSide()
        self.last = 0
        self.settled_ack: set[int] = set()
        self.settled_nack: dict[int, bool] = {}

    def _is_unsettled(self, tag: int) -> bool:
        return (
            1 <= tag <= self.last and tag not in self.settled_ack and tag not in self.settled_nack
        )

    @rule(count=st.integers(1, 6))
    def deliver(self, count: int) -> None:
        for _ in range(count):
            self.last += 1
            self.broker.outstanding.append(self.last)
        self.ledger.delivered_through(self.last)

    @precondition(lambda self: self.last)
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        tag = data.draw(st.integers(0, self.last + 1))
        was_unsettled = self._is_unsettled(tag)
        assert self.ledger.ack(tag) is was_unsettled
        if was_unsettled:
            self.settled_ack.add(tag)

    @precondition(lambda self: self.last)
    @rule(data=st.data(), requeue=st.booleans())
    def nack(self, data: st.DataObject, requeue: bool) -> None:
        tag = data.draw(st.integers(0, self.last + 1))
        was_unsettled = self._is_unsettled(tag)
        assert self.ledger.nack(tag, requeue) is was_unsettled
        if was_unsettled:
            self.settled_nack[tag] = requeue

    @rule()
    def flush(self) -> None:
        self.broker.take(self.ledger.take())
        # none told before it was settled, none forgotten, none twice, and a slow one delays nobody
        assert sorted(self.broker.acked) == sorted(self.settled_ack)
        assert dict(self.broker.rejected) == self.settled_nack
        assert len(self.broker.rejected) == len(self.settled_nack)

    @invariant()
    def counts_what_is_unsettled(self) -> None:
        assert self.ledger.unsettled == sum(self._is_unsettled(n) for n in range(1, self.last + 1))


LedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestLedgerAgainstBroker = LedgerMachine.TestCase


def _ledger(delivered: int) -> AckLedger:
    ledger = AckLedger()
    ledger.delivered_through(delivered)
    return ledger


def test_finished_in_order_is_one_ack() -> None:
    ledger = _ledger(100)
    for tag in range(1, 101):
        ledger.ack(tag)

    assert ledger.take() == Settlements([], 100, [])


def test_finished_in_reverse_is_one_ack() -> None:
    ledger = _ledger(5)
    for tag in (5, 4, 3, 2, 1):
        ledger.ack(tag)

    assert ledger.take() == Settlements([], 5, [])


def test_unfinished_delivery_holds_back_nobody() -> None:
    ledger = _ledger(6)
    for tag in (1, 2, 4, 6):
        ledger.ack(tag)

    assert ledger.take() == Settlements([], 2, [4, 6])


def test_late_finisher_is_told_alone_when_those_above_it_were_told() -> None:
    ledger = _ledger(3)
    ledger.ack(2)
    ledger.ack(3)
    ledger.take()
    ledger.ack(1)

    assert ledger.take() == Settlements([], 1, [])


def test_multiple_never_names_a_rejected_tag() -> None:
    ledger = _ledger(3)
    ledger.ack(1)
    ledger.ack(2)
    ledger.nack(3, requeue=True)

    assert ledger.take() == Settlements([(3, True)], 2, [])


def test_second_settling_does_nothing() -> None:
    ledger = _ledger(2)
    ledger.ack(1)
    ledger.take()

    assert not ledger.ack(1)
    assert not ledger.nack(1, requeue=True)
    assert not ledger.ack(3)
    assert ledger.take() == Settlements([], 0, [])
