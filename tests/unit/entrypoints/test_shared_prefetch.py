"""The window of methods that share one queue."""

from hypothesis import given
from hypothesis import strategies as st

from mycelia.entrypoints.shared_prefetch import MAX_BYTES, SHRINK_AFTER, SharedPrefetch


def test_it_grows_while_a_method_is_idle_and_the_window_is_full() -> None:
    window = SharedPrefetch(40, 200)

    sizes = []
    for _ in range(5):
        window.look(unsettled=window.now, has_idle_method=True, waiting_bytes=0)
        sizes.append(window.now)

    assert sizes == [80, 160, 200, 200, 200]


def test_it_stays_where_no_method_is_idle_or_there_is_room_or_too_much_waits() -> None:
    window = SharedPrefetch(40, 200)

    assert not window.look(unsettled=40, has_idle_method=False, waiting_bytes=0)
    assert not window.look(unsettled=39, has_idle_method=True, waiting_bytes=0)
    assert not window.look(unsettled=40, has_idle_method=True, waiting_bytes=MAX_BYTES)
    assert window.now == 40


def test_it_shrinks_when_it_has_been_of_little_use_for_a_while() -> None:
    window = SharedPrefetch(40, 200)
    for _ in range(3):
        window.look(unsettled=window.now, has_idle_method=True, waiting_bytes=0)
    changes = sum(
        window.look(unsettled=10, has_idle_method=True, waiting_bytes=0)
        for _ in range(10 * SHRINK_AFTER)
    )

    assert window.now == 40
    assert changes == 3


@given(
    st.lists(st.tuples(st.integers(0, 70_000), st.booleans(), st.integers(0, 2**40)), max_size=300)
)
def test_it_never_leaves_its_bounds(looks: list[tuple[int, bool, int]]) -> None:
    window = SharedPrefetch(20, 5000)
    for unsettled, idle, size in looks:
        window.look(unsettled=unsettled, has_idle_method=idle, waiting_bytes=size)

        assert 20 <= window.now <= 5000


def test_a_window_that_has_not_grown_moves_with_its_base() -> None:
    window = SharedPrefetch(20, 100)

    window.rebase(40, 200)

    assert (window.now, window.base, window.most) == (40, 40, 200)


def test_a_window_that_has_grown_stays_within_the_new_bounds() -> None:
    window = SharedPrefetch(20, 100)
    for _ in range(5):
        window.look(unsettled=window.now, has_idle_method=True, waiting_bytes=0)
    assert window.now == 100

    window.rebase(10, 60)
    lowered = window.now
    window.rebase(80, 60)

    assert (lowered, window.now, window.most) == (60, 80, 80)
