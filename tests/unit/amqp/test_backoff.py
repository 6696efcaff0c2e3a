"""The delays between attempts."""

from __future__ import annotations

from random import Random

from mycelia.amqp.rabbit.backoff import Backoff


def test_delays_grow_within_their_bounds_and_stop_at_the_cap() -> None:
    backoff = Backoff(Random(1), first=0.2, cap=5.0)

    delays = [backoff.next_delay() for _ in range(2000)]

    for attempt, delay in enumerate(delays):
        bound = min(5.0, 0.2 * 2.0 ** min(attempt, 32))
        assert bound / 2 <= delay <= bound


def test_delays_are_spread() -> None:
    backoffs = [Backoff(Random(seed)) for seed in range(50)]

    assert len({round(one.next_delay(), 4) for one in backoffs}) > 40


def test_reset_starts_small_again() -> None:
    backoff = Backoff(Random(1), first=0.2, cap=5.0)
    for _ in range(10):
        backoff.next_delay()

    backoff.reset()

    assert backoff.next_delay() <= 0.2
