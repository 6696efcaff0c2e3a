"""What is known of messages whose channel is gone, and what their redelivery comes to."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.amqp import Delivery, Properties
from mycelia.entrypoints.remembered import (
    MAX_RECENT,
    MAX_RECENT_BYTES,
    RECENT_S,
    Remembered,
    event_key,
    request_key,
)


class Channel:
    """A channel incarnation: settles, until it is lost."""

    def __init__(self) -> None:
        self.is_lost = False
        self.settled: list[tuple[str, int]] = []

    def ack(self, delivery_tag: int) -> None:
        if not self.is_lost:
            self.settled.append(("ack", delivery_tag))

    def nack(self, delivery_tag: int, requeue: bool) -> None:
        if not self.is_lost:
            self.settled.append(("back" if requeue else "nack", delivery_tag))

    def deliver(
        self,
        tag: int,
        message_id: str | None,
        body: bytes = b"1",
        *,
        again: bool = False,
        **kw: Any,
    ) -> Delivery:
        properties = Properties(message_id=message_id, **kw)
        return Delivery(self, "c", tag, again, "x", "key", properties, body)


@pytest.fixture
def old() -> Channel:
    return Channel()


@pytest.fixture
def new() -> Channel:
    return Channel()


def lost(channel: Channel, *deliveries: Delivery, now: float = 0.0) -> Remembered:
    remembered = Remembered(event_key)
    channel.is_lost = True
    remembered.keep(deliveries, now)
    return remembered


def test_redelivery_of_what_is_being_worked_on_is_settled_by_its_end(
    old: Channel, new: Channel
) -> None:
    working = old.deliver(1, "m")
    remembered = lost(old, working)

    assert remembered.claim([new.deliver(7, "m", again=True)], 1.0) == []
    assert not working.is_lost
    working.ack()

    assert new.settled == [("ack", 7)]
    assert not remembered


def test_redelivery_of_what_has_been_done_meanwhile_is_settled_at_once(
    old: Channel, new: Channel
) -> None:
    working = old.deliver(1, "m")
    remembered = lost(old, working)

    working.ack()

    assert remembered.claim([new.deliver(7, "m", again=True)], 1.0) == []
    assert new.settled == [("ack", 7)]
    assert not remembered


def test_redelivery_of_what_had_just_been_done_is_settled_at_once(
    old: Channel, new: Channel
) -> None:
    """The acknowledgement was on its way when the channel went, or nobody had noticed yet that it had gone."""
    remembered = Remembered(event_key)
    for number in range(20):
        delivery = old.deliver(number, f"id-{number}")
        delivery.ack()
        remembered.acknowledged(delivery)

    old.is_lost = True
    remembered.keep([], now=0.0)
    again = [new.deliver(number, f"id-{number}", again=True) for number in range(21)]
    rest = remembered.claim(again, now=1.0)

    assert [one.properties.message_id for one in rest] == ["id-20"]
    assert new.settled == [("ack", number) for number in range(20)]
    new.is_lost = True  # before the broker hears of those
    remembered.keep([], now=1.0)
    newer = Channel()
    assert not remembered.claim([newer.deliver(1, "id-3", again=True)], now=2.0)
    assert newer.settled == [("ack", 1)]


def test_what_was_done_on_a_channel_that_lives_is_not_remembered_as_lost(
    old: Channel, new: Channel
) -> None:
    remembered = Remembered(event_key)
    remembered.acknowledged(old.deliver(1, "id"))

    remembered.keep([], now=0.0)

    assert not remembered
    assert len(remembered.claim([new.deliver(1, "id", again=True)], now=0.0)) == 1


def test_what_had_just_been_done_is_bounded_and_soon_forgotten(old: Channel) -> None:
    remembered = Remembered(event_key)
    for number in range(MAX_RECENT + 5):
        remembered.acknowledged(old.deliver(number, f"id-{number}"))
    remembered.acknowledged(old.deliver(1, "large", b"x" * (MAX_RECENT_BYTES + 1)))

    old.is_lost = True
    remembered.keep([], now=1000.0)
    assert len(remembered) == MAX_RECENT

    remembered.forget(1000.0 + RECENT_S + 1)
    assert not remembered


def test_what_was_to_go_back_is_run_by_whoever_gets_it(old: Channel, new: Channel) -> None:
    working = old.deliver(1, "m")
    remembered = lost(old, working)
    again = new.deliver(7, "m", again=True)

    working.nack(requeue=True)

    assert remembered.claim([again], 1.0) == [again]
    assert new.settled == []


def test_what_had_not_begun_is_run_and_not_counted_as_a_return(old: Channel, new: Channel) -> None:
    remembered = Remembered(event_key)
    remembered.drop([old.deliver(1, "m")], 0.0)
    again = new.deliver(7, "m", again=True)

    assert remembered.claim([again], 1.0) == [again]
    assert not again.redelivered
    assert not remembered


def test_as_many_as_were_on_their_way_are_not_counted_as_returns_either(new: Channel) -> None:
    remembered = Remembered(event_key)
    remembered.expect(2, 0.0)
    again = [new.deliver(tag, None, again=True) for tag in range(4)]
    late = new.deliver(9, None, again=True)

    assert remembered.claim(again[:1], 1.0) == again[:1]
    assert remembered.claim(again[1:], 2.0) == again[1:]
    remembered.expect(1, 3.0)
    assert remembered.claim([late], 34.0) == [late]

    assert [one.redelivered for one in again] == [False, False, True, True]
    assert late.redelivered
    assert not remembered


def test_channel_may_be_lost_again_and_again(old: Channel, new: Channel) -> None:
    working = old.deliver(1, "m")
    remembered = lost(old, working)
    for tag in range(2, 5):
        remembered.claim([new.deliver(tag, "m", again=True)], 1.0)
        new.is_lost = True
        remembered.keep([working], 1.0)
        remembered.keep([working], 1.0)  # told twice
        new = Channel()

    remembered.claim([new.deliver(9, "m", again=True)], 1.0)
    working.ack()

    assert new.settled == [("ack", 9)]
    assert not remembered


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"message_id": "n"}, id="another id"),
        pytest.param({"message_id": None}, id="no id"),
        pytest.param({"message_id": "m", "body": b"2"}, id="another body"),
        pytest.param(
            {"message_id": "m", "headers": {"x-mycelia-attempt": 2}}, id="another attempt"
        ),
        pytest.param({"message_id": "m", "headers": {"x-mycelia-returns": 1}}, id="counted anew"),
        pytest.param({"message_id": "m", "again": False}, id="not a redelivery"),
    ],
)
def test_another_message_is_run(old: Channel, new: Channel, other: dict[str, Any]) -> None:
    remembered = lost(old, old.deliver(1, "m"))
    delivery = new.deliver(7, **{"again": True, **other})

    assert remembered.claim([delivery], 1.0) == [delivery]
    assert len(remembered) == 1


def test_message_without_an_id_is_not_remembered(old: Channel) -> None:
    assert not lost(old, old.deliver(1, None))


def test_request_is_known_by_who_waits_for_its_reply(old: Channel) -> None:
    request = old.deliver(1, None, reply_to="r", correlation_id="c")

    assert request_key(request) is not None
    assert request_key(request) != request_key(
        old.deliver(1, None, reply_to="r", correlation_id="d")
    )
    assert request_key(old.deliver(1, None, reply_to="r")) is None
    assert request_key(old.deliver(1, "m")) == event_key(old.deliver(1, "m"))


def test_what_is_not_lost_is_not_kept(old: Channel) -> None:
    remembered = Remembered(event_key)

    remembered.keep([old.deliver(1, "m")], 0.0)

    assert not remembered


def test_what_is_done_with_is_forgotten_in_time_and_what_is_worked_on_is_not(
    old: Channel, new: Channel
) -> None:
    done, working = old.deliver(1, "done"), old.deliver(2, "working")
    remembered = lost(old, done, working)
    done.ack()

    remembered.forget(601.0)
    late = new.deliver(7, "done", again=True)

    assert len(remembered) == 1
    assert remembered.claim([late, new.deliver(8, "working", again=True)], 602.0) == [late]


def test_number_of_what_is_remembered_is_bounded_and_the_oldest_goes_first(old: Channel) -> None:
    remembered = Remembered(event_key, limit=3)
    old.is_lost = True

    remembered.keep([old.deliver(tag, f"m{tag}") for tag in range(10)], 0.0)

    new = Channel()
    again = [new.deliver(tag, f"m{tag}", again=True) for tag in range(10)]
    assert len(remembered) == 3
    assert remembered.claim(again, 1.0) == again[:7]


@given(
    running=st.lists(st.sampled_from("ab"), max_size=6),
    waiting=st.lists(st.sampled_from("ab"), max_size=6),
    done=st.data(),
)
def test_messages_of_one_id_are_settled_or_run_once_each(
    running: list[str], waiting: list[str], done: st.DataObject
) -> None:
    """Ids that are not unique are the publisher's fault; all the same no message may be lost."""
    old, new = Channel(), Channel()
    works = [old.deliver(tag, name) for tag, name in enumerate(running)]
    dropped = [old.deliver(100 + tag, name) for tag, name in enumerate(waiting)]
    remembered = lost(old, *works)
    remembered.drop(dropped, 0.0)
    early = done.draw(st.integers(0, len(works)))
    for work in works[:early]:
        work.ack()

    again = [
        new.deliver(tag, name, again=True) for tag, name in enumerate([*waiting, *running], start=1)
    ]
    rest = remembered.claim(again, 1.0)
    for work in works[early:]:
        work.ack()

    assert Counter(str(one.properties.message_id) for one in rest) == Counter(waiting)
    tags = {tag for _, tag in new.settled} | {one.delivery_tag for one in rest}
    assert tags == {one.delivery_tag for one in again}
    assert len(new.settled) == len(running)
    assert not remembered
