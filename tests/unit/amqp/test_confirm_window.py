"""The confirm window."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mycelia.amqp.rabbit.confirm_window import ConfirmWindow


def _filled(count: int) -> ConfirmWindow[str]:
    window: ConfirmWindow[str] = ConfirmWindow(100, 10_000)
    for number in range(1, count + 1):
        assert window.add(f"m{number}", 10) == number
    return window


def test_single_confirm_takes_out_one() -> None:
    window = _filled(3)

    assert window.confirm(2, multiple=False) == ["m2"]
    assert len(window) == 2
    assert window.size_bytes == 20


def test_multiple_confirm_takes_out_all_up_to_its_tag_oldest_first() -> None:
    window = _filled(5)
    window.confirm(2, multiple=False)

    assert window.confirm(4, multiple=True) == ["m1", "m3", "m4"]
    assert window.confirm(5, multiple=True) == ["m5"]
    assert window.size_bytes == 0


def test_confirm_of_an_unknown_tag_takes_out_nothing() -> None:
    window = _filled(1)

    assert window.confirm(7, multiple=False) == []
    assert len(window) == 1


def test_window_is_full_by_messages() -> None:
    window: ConfirmWindow[str] = ConfirmWindow(2, 1000)
    window.add("a", 1)
    assert window.has_room()
    window.add("b", 1)

    assert not window.has_room()


def test_window_is_full_by_bytes_and_one_large_message_still_goes() -> None:
    window: ConfirmWindow[str] = ConfirmWindow(10, 100)
    assert window.has_room()
    window.add("large", 5000)

    assert not window.has_room()
    window.confirm(1, multiple=False)
    assert window.has_room()


def test_returned_message_is_known_by_its_id_until_confirmed() -> None:
    window: ConfirmWindow[str] = ConfirmWindow(10, 100)
    window.add("a", 1, "id-a")
    window.add("b", 1)

    assert window.find_returned("id-a") == "a"
    assert window.find_returned("id-b") is None
    assert window.find_returned(None) is None
    window.confirm(1, multiple=False)
    assert window.find_returned("id-a") is None


def test_messages_that_share_an_id_are_returned_in_their_order() -> None:
    window: ConfirmWindow[str] = ConfirmWindow(10, 100)
    window.add("first", 1, "id")
    window.add("second", 1, "id")

    assert window.find_returned("id") == "first"
    window.confirm(1, multiple=False)
    assert window.find_returned("id") == "second"


def test_reset_gives_back_the_unconfirmed_in_order_and_starts_numbering_anew() -> None:
    window = _filled(4)
    window.confirm(2, multiple=False)

    assert window.reset() == ["m1", "m3", "m4"]
    assert window.size_bytes == 0
    assert window.add("again", 10) == 1


@settings(max_examples=100)
@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(1, 30), st.booleans())), max_size=60))
def test_every_message_leaves_exactly_once(steps: list[tuple[int, bool] | None]) -> None:
    window: ConfirmWindow[int] = ConfirmWindow(1000, 1000)
    sent: list[int] = []
    left: list[int] = []
    for step in steps:
        if step is None:
            sent.append(window.add(len(sent) + 1, 1))
        else:
            tag, multiple = step
            confirmed = window.confirm(tag, multiple)
            assert all(number <= tag for number in confirmed)
            if multiple:
                assert not any(number <= tag for number in sent if number not in left + confirmed)
            left += confirmed

    assert len(window) == window.size_bytes
    assert sorted(left + window.reset()) == sent


def test_oldest_is_the_one_that_is_unconfirmed_for_longest() -> None:
    window = _filled(3)
    window.confirm(1, multiple=False)

    assert window.oldest == "m2"
    assert window.is_oldest(2)
    assert not window.is_oldest(3)
    assert window.find(3) == "m3"
    assert window.find(1) is None

    window.reset()

    assert window.oldest is None
