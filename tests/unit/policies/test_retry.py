"""When something that failed is tried again."""

from __future__ import annotations

import asyncio
import math
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.errors import ConfigError, LinkError, RetryLater, RpcTimeout
from mycelia.policies.retry import (
    DEFAULT_RETRY,
    Pauses,
    Retry,
    exponential,
    fixed,
    linear,
    retry_of,
)

RANDOM = Random(7)


def pauses(policy: Retry) -> list[float | None]:
    """What it answers after each attempt, up to the one after which it gives up."""
    return [policy.delay(attempt, RANDOM) for attempt in range(1, policy.attempts + 1)]


def test_by_default_it_waits_1_s_5_s_30_s_5_min_and_30_min_and_gives_up() -> None:
    assert pauses(DEFAULT_RETRY) == [1, 5, 30, 300, 1800, None]


def test_first_attempt_counts() -> None:
    assert pauses(Retry(attempts=1)) == [None]


def test_last_of_fixed_steps_stays() -> None:
    assert pauses(Retry(5, fixed("1s", "5s"))) == [1, 5, 5, 5, None]


def test_exponential_pauses_grow_up_to_their_limit() -> None:
    backoff = exponential("1s", max="1m", factor=3, jitter=False)

    grown = [backoff.pause(attempt, RANDOM) for attempt in range(1, 6)]

    assert grown == [pytest.approx(1), pytest.approx(3), pytest.approx(9), pytest.approx(27), 60]


def test_linear_pauses_grow_up_to_their_limit() -> None:
    assert pauses(Retry(5, linear("10s", max="25s"))) == [10, 20, 25, 25, None]


def test_full_jitter_spreads_over_the_whole_pause() -> None:
    backoff = exponential("8s", max="8s")

    drawn = [backoff.pause(1, RANDOM) for _ in range(1000)]

    assert min(drawn) < 0.5
    assert max(drawn) > 7.5
    assert sum(drawn) / len(drawn) == pytest.approx(4, abs=0.4)


durations = st.floats(min_value=0, max_value=1e7)
backoffs: st.SearchStrategy[Pauses] = st.one_of(
    st.lists(durations, min_size=1, max_size=9).map(lambda steps: fixed(*steps)),
    st.builds(
        lambda first, more, factor, jitter: exponential(
            first, max=first + more, factor=factor, jitter=jitter
        ),
        durations,
        st.floats(min_value=0.001, max_value=1e7),
        st.floats(min_value=1, max_value=1e9),
        st.booleans(),
    ),
    st.builds(lambda step, more: linear(step, max=step + more), durations, durations),
)


@given(backoffs, st.integers(min_value=1, max_value=10**12), st.integers())
def test_no_attempt_is_too_late_for_a_pause(backoff: Pauses, attempt: int, seed: int) -> None:
    policy = Retry(attempts=10**13, backoff=backoff)

    delay = policy.delay(attempt, Random(seed))

    assert delay is not None
    assert math.isfinite(delay)
    assert 0 <= delay <= 2.1e7


@given(backoffs, st.integers(min_value=1, max_value=40), st.integers(min_value=0, max_value=80))
def test_it_gives_up_at_its_limit_and_nowhere_else(
    backoff: Pauses, attempts: int, attempt: int
) -> None:
    delay = Retry(attempts, backoff).delay(attempt, RANDOM)

    assert (delay is None) == (attempt >= attempts)


@given(backoffs, st.integers(min_value=1, max_value=50), st.integers(min_value=1, max_value=50))
def test_pauses_without_jitter_never_shrink(backoff: Pauses, one: int, other: int) -> None:
    if getattr(backoff, "jitter", False) or hasattr(backoff, "steps"):
        return
    early, late = sorted((one, other))

    assert backoff.pause(early, RANDOM) <= backoff.pause(late, RANDOM) * (1 + 1e-9)


@given(st.integers())
def test_same_randomness_gives_the_same_pauses(seed: int) -> None:
    policy = Retry(9, exponential("1s"))

    first, second = (
        [policy.delay(n, random) for n in range(9)] for random in (Random(seed), Random(seed))
    )

    assert first == second


@pytest.mark.parametrize(
    ("policy", "error", "is_wanted"),
    [
        (Retry(), ValueError(), True),
        (Retry(), KeyboardInterrupt(), False),
        (Retry(on=OSError), ValueError(), False),
        (Retry(on=(OSError, LookupError)), KeyError(), True),
        (Retry(give_up_on=ValueError), UnicodeError(), False),
        (Retry(on=LinkError, give_up_on=(RpcTimeout,)), LinkError(), True),
        (Retry(on=()), ValueError(), False),
        (Retry(on=(), give_up_on=Exception), RetryLater("1s"), True),
    ],
)
def test_errors_are_tried_again_by_their_classes(
    policy: Retry, error: BaseException, is_wanted: bool
) -> None:
    assert policy.wants(error) is is_wanted
    assert (policy.delay_after(error, 1, RANDOM) is not None) is is_wanted


def test_handler_says_itself_when_the_next_attempt_is_due_within_the_limit() -> None:
    policy = Retry(attempts=3)

    assert policy.delay_after(RetryLater("2h"), 2, RANDOM) == 7200
    assert policy.delay_after(RetryLater(0.5), 1, RANDOM) == 0.5
    assert policy.delay_after(RetryLater("2h"), 3, RANDOM) is None
    with pytest.raises(ConfigError, match="RetryLater"):
        policy.delay_after(RetryLater("soon"), 1, RANDOM)


def test_policies_are_data() -> None:
    assert Retry(3, exponential("1s")) == Retry(3, exponential(1, max=1800.0))
    assert hash(Retry(3, fixed(1))) == hash(Retry(3, fixed("1s")))
    with pytest.raises(AttributeError):
        Retry().attempts = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Retry(attempts=0),
        lambda: Retry(attempts=True),
        lambda: Retry(attempts=2.0),  # type: ignore[arg-type]
        lambda: Retry(backoff="1s"),  # type: ignore[arg-type]
        lambda: Retry(on="ValueError"),  # type: ignore[arg-type]
        lambda: Retry(give_up_on=(ValueError(),)),  # type: ignore[arg-type]
        lambda: fixed(),
        lambda: fixed("soon"),
        lambda: exponential("1h", max="1m"),
        lambda: exponential("0s", max="0s"),
        lambda: exponential("1s", factor=0.5),
        lambda: exponential("1s", factor=math.inf),
        lambda: linear("1h", max="1m"),
    ],
)
def test_what_cannot_be_a_policy_is_refused_where_it_is_made(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize(
    ("written", "policy"),
    [
        (False, None),
        (True, DEFAULT_RETRY),
        (None, None),
        ({}, DEFAULT_RETRY),
        ({"attempts": 3}, Retry(3)),
        (["1s", "5s"], Retry(3, fixed(1, 5))),
        ({"backoff": ["1s", "5s"]}, Retry(3, fixed(1, 5))),
        ({"attempts": 9, "backoff": [0.5]}, Retry(9, fixed(0.5))),
        ({"exponential": "1s"}, Retry(6, exponential("1s"))),
        (
            {"attempts": 4, "exponential": "1s", "max": "1m", "factor": 3, "jitter": False},
            Retry(4, exponential(1, max=60, factor=3, jitter=False)),
        ),
        ({"linear": "10s", "max": "1m"}, Retry(6, linear(10, max=60))),
    ],
)
def test_policy_can_be_written_in_the_configuration(written: object, policy: Retry | None) -> None:
    assert retry_of(written, "mycelia.retry") == policy


@pytest.mark.parametrize(
    "written",
    [
        *(3, "1s", [], ["soon"], {"attempt": 3}, {"attempts": "3"}, {"attempts": 0}),
        *({"backoff": "1s"}, {"backoff": []}, {"backoff": ["1s"], "linear": "1s"}, {7: 8}),
        *({"max": "1m"}, {"linear": "1s", "jitter": True}, {"exponential": "1h", "max": "1s"}),
        *({"exponential": "1s", "factor": "2"}, {"backoff": ["1s"], "max": "1m"}),
    ],
)
def test_mistake_in_the_configuration_is_told_by_its_key(written: object) -> None:
    with pytest.raises(ConfigError, match=r'^configuration key "mycelia\.retry": .*\.$'):
        retry_of(written, "mycelia.retry")


@pytest.mark.parametrize(
    "error", [asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit]
)
def test_what_ends_the_task_or_the_process_is_never_kept_back(
    error: type[BaseException],
) -> None:
    """A service that is stopped would else go on trying."""
    tries = 0

    def fail() -> None:
        nonlocal tries
        tries += 1
        raise error

    with pytest.raises(error):
        Retry(5, fixed(0), on=BaseException).call(fail)

    assert tries == 1
