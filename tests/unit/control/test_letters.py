"""What a dead letter is read as, which are meant, how they are counted: whatever its headers hold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.control.letters import HANDLER_QUEUE, fate

from mycelia.amqp import Delivery, Properties
from mycelia.control.dead_letters import Letter, LetterFilter, LetterGroups


class _Unsettled:
    is_lost = False

    def ack(self, delivery_tag: int) -> None:
        raise AssertionError

    def nack(self, delivery_tag: int, requeue: bool) -> None:
        raise AssertionError


def letter(body: bytes = b"1", position: int = 1, **properties: Any) -> Letter:
    made = Properties(**{"headers": fate(), **properties})
    delivery = Delivery(_Unsettled(), "c", 1, False, "", "q", made, body)
    return Letter.of(delivery, f"{HANDLER_QUEUE}.dead", position)


def test_all_that_it_tells_is_read() -> None:
    one = letter(message_id="m")

    assert (one.handler, one.error_type, one.attempts) == ("enrich.departed", "KeyError", 5)
    assert (one.queue, one.exchange, one.routing_key) == (HANDLER_QUEUE, "feed.events", "departed")
    assert (one.first_failed_at_ms, one.failed_at_ms) == (1_700_000_000_000, 1_700_000_060_000)
    assert one.is_ours


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(),
    st.binary(),
    st.lists(st.text()),
    st.floats(),
)


@given(st.dictionaries(st.sampled_from(sorted(fate())), values), values)
def test_no_headers_keep_it_from_being_read(headers: dict[str, Any], other: Any) -> None:
    one = letter(headers={**headers, "x-other": other})
    groups = LetterGroups()

    groups.add(one)
    for meant in (
        LetterFilter(error="KeyError", handler="enrich.departed", reason="x", text="y"),
        LetterFilter(older_than_s=1, newer_than_s=2, message_ids=("m",)),
    ):
        assert not meant.accepts(one, 1_800_000_000.0)

    assert sum(group.count for group in groups.ranked()) == 1


NOW = 1_700_000_120.0  # a minute after it failed last


@pytest.mark.parametrize(
    ("meant", "accepts"),
    [
        (LetterFilter(), True),
        (LetterFilter(error="KeyError"), True),
        (LetterFilter(error="Key"), False),
        (LetterFilter(handler="enrich.departed"), True),
        (LetterFilter(handler="departed"), True),
        (LetterFilter(handler="enrich"), False),
        (LetterFilter(reason="handler_error"), True),
        (LetterFilter(reason="expired"), False),
        (LetterFilter(older_than_s=60), True),
        (LetterFilter(older_than_s=61), False),
        (LetterFilter(newer_than_s=60), True),
        (LetterFilter(newer_than_s=59), False),
        (LetterFilter(text="N142"), True),
        (LetterFilter(text="who"), True),
        (LetterFilter(text="Traceback"), True),
        (LetterFilter(text="other"), False),
        (LetterFilter(message_ids=("m", "n")), True),
        (LetterFilter(message_ids=("n",)), False),
        (LetterFilter(error="KeyError", text="other"), False),
    ],
)
def test_all_that_is_asked_for_must_be_true(meant: LetterFilter, accepts: bool) -> None:
    assert meant.accepts(letter(b'"N14228"', message_id="m"), NOW) is accepts


def test_error_s_class_may_be_given_without_its_module() -> None:
    one = letter(headers=fate(error_type="shop.errors.SoldOut"))

    assert LetterFilter(error="SoldOut").accepts(one, NOW)
    assert LetterFilter(error="shop.errors.SoldOut").accepts(one, NOW)
    assert not LetterFilter(error="errors.SoldOut").accepts(one, NOW)


def test_groups_are_few_however_many_kinds_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mycelia.control.dead_letters.letters.MAX_GROUPS", 3)
    groups = LetterGroups()

    for kind in (1, 2, 2, 3, 4, 5, 2):
        groups.add(letter(headers=fate(error_type=f"E{kind}")))

    assert [(one.error_type, one.count) for one in groups.ranked()] == [
        ("E2", 3),
        ("E1", 1),
        ("E3", 1),
    ]
    assert groups.others == 2


def test_letter_without_room_for_its_story_came_from_the_queue_s_namesake() -> None:
    one = letter(headers={"x-mycelia-left-out": "everything but the body"})

    assert (one.queue, one.is_ours) == (HANDLER_QUEUE, True)
    assert not letter(headers=None).is_ours
