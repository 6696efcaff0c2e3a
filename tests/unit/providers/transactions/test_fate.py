"""What becomes of a row that could not be published, and which rows wait for which: pure."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.errors import (
    AccessRefused,
    BrokerBlocked,
    BrokerUnavailable,
    MessageTooLarge,
    PublishRejected,
    RetryLater,
    TopologyError,
    Unroutable,
)
from mycelia.policies.retry import Retry, fixed
from mycelia.providers.transactions.fate import Fate, LeftFree, Park, PutOff, fate_of, lines_of

RETRY = Retry(attempts=3, backoff=fixed("1s", "5s"))


def fate(error: BaseException, attempt: int = 1) -> Fate:
    return fate_of(error, attempt, RETRY, Random(1))


@pytest.mark.parametrize("error", [BrokerUnavailable("away"), BrokerBlocked("alarm")])
def test_broker_that_is_away_is_no_attempt(error: Exception) -> None:
    assert fate(error, attempt=1000) == LeftFree()


@pytest.mark.parametrize(
    "error", [MessageTooLarge("x", 2, 1), TopologyError("no exchange"), AccessRefused("no")]
)
def test_what_is_the_same_tomorrow_is_parked_at_once(error: Exception) -> None:
    assert isinstance(fate(error), Park)


@pytest.mark.parametrize(
    "error", [PublishRejected("full"), Unroutable("", "q"), ValueError("a middleware's")]
)
def test_anything_else_is_put_off_and_then_parked(error: Exception) -> None:
    fates = [fate(error, attempt) for attempt in (1, 2, 3)]

    pauses = [one.pause for one in fates if isinstance(one, PutOff)]
    assert pauses == [1.0, 5.0]
    assert isinstance(fates[-1], Park)


def test_middleware_may_say_itself_when_it_is_tried_again() -> None:
    told = fate(RetryLater("2m"))

    assert isinstance(told, PutOff)
    assert told.pause == 120.0


def test_reason_is_one_that_any_text_column_holds() -> None:
    told = fate(TopologyError("a\0b\udc80" + "x" * 10_000))

    assert isinstance(told, Park)
    assert "\0" not in told.reason
    assert len(told.reason.encode()) < 3000


class Row:
    def __init__(self, id: int, key: str | None) -> None:
        self.id = id
        self.key = key


keys = st.lists(st.one_of(st.none(), st.sampled_from(["a", "b", ""])), max_size=20)


@given(keys, st.randoms())
def test_rows_are_lines_by_key_in_the_order_of_their_ids(
    given_keys: list[str | None], random: Random
) -> None:
    rows = [Row(id_, key) for id_, key in enumerate(given_keys)]
    shuffled = rows.copy()
    random.shuffle(shuffled)

    lines = lines_of(shuffled)

    assert sorted(row.id for line in lines for row in line) == [row.id for row in rows]
    for line in lines:
        assert len(line) == 1 or len({row.key for row in line}) == 1
        assert [row.id for row in line] == sorted(row.id for row in line)
    with_key = [line[0].key for line in lines if line[0].key is not None]
    assert len(with_key) == len(set(with_key))
    assert [line[0].id for line in lines] == sorted(line[0].id for line in lines)
