"""What was written without a confirm, until it is proven to have arrived."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mycelia.amqp import Message, Properties
from mycelia.amqp.rabbit.resend_ledger import ResendLedger

MAX_MESSAGES = 20
MAX_BYTES = 100


def _message(body: bytes) -> Message:
    return Message("", "q", body, Properties())


def test_answered_mark_proves_what_was_written_before_it_and_nothing_else() -> None:
    ledger = ResendLedger(MAX_MESSAGES, MAX_BYTES)
    ledger.add((_message(b"1"), None))
    mark = ledger.mark()
    ledger.add((_message(b"2"), 7.0))

    ledger.prove(mark)

    assert [(message.body, until) for message, until in ledger.take()] == [(b"2", 7.0)]
    assert len(ledger) == 0


def test_one_message_is_kept_however_large() -> None:
    ledger = ResendLedger(MAX_MESSAGES, MAX_BYTES)

    ledger.add((_message(b"small"), None))
    ledger.add((_message(bytes(10 * MAX_BYTES)), None))
    ledger.trim()

    assert len(ledger) == 1
    assert ledger.dropped == 1


class LedgerMachine(RuleBasedStateMachine):
    """Against a plain list: whatever is neither proven nor too old is there, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = ResendLedger(MAX_MESSAGES, MAX_BYTES)
        self.written: list[bytes] = []
        self.known_from = 0
        self.marks: list[int] = []

    @rule(size=st.integers(0, 60))
    def write(self, size: int) -> None:
        body = b"%d" % len(self.written) + bytes(size)
        self.written.append(body)
        self.ledger.add((_message(body), None))

    @rule()
    def trim(self) -> None:
        self.ledger.trim()
        kept = self.written[self.known_from :]
        while len(kept) > 1 and (len(kept) > MAX_MESSAGES or sum(map(len, kept)) > MAX_BYTES):
            kept.pop(0)
        self.known_from = len(self.written) - len(kept)

    @rule()
    def mark(self) -> None:
        self.marks.append(self.ledger.mark())

    @precondition(lambda self: self.marks)
    @rule()
    def answer(self) -> None:
        mark = self.marks.pop(0)
        self.ledger.prove(mark)
        self.known_from = max(self.known_from, mark)

    @rule()
    def take(self) -> None:
        assert [one.body for one, _ in self.ledger.take()] == self.written[self.known_from :]
        self.known_from = len(self.written)
        self.marks.clear()

    @invariant()
    def counts_agree(self) -> None:
        kept = self.written[self.known_from :]
        assert len(self.ledger) == len(kept)
        assert self.ledger.size_bytes == sum(map(len, kept))


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=60)
