"""Fault rules: how they are written, and which calls they hit."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia import CallKind, Direction, Target
from mycelia.errors import ConfigError
from mycelia.policies.faults import (
    ArmedFault,
    ConfiguredFaults,
    InjectedFault,
    make_rule,
    rule_from,
)

REGISTRY_GET = Target(Direction.INBOUND, CallKind.RPC, "registry", "get")


def hits(armed: ArmedFault, count: int, target: Target = REGISTRY_GET) -> list[int]:
    return [number for number in range(1, count + 1) if armed.meet(target)]


def test_rule_without_limits_hits_every_call_of_its_target_and_no_other() -> None:
    armed = ArmedFault(make_rule("fail", "registry.*"))

    assert hits(armed, 3) == [1, 2, 3]
    assert hits(armed, 3, Target(Direction.INBOUND, CallKind.RPC, "prices", "get")) == []
    assert hits(armed, 3, Target(Direction.OUTBOUND, CallKind.RPC, "registry", "get")) == []
    assert (armed.met, armed.hit) == (3, 3)


def test_nth_counts_the_calls_that_came_by() -> None:
    assert hits(ArmedFault(make_rule("drop", "registry.get", nth=[2, 5])), 9) == [2, 5]
    assert hits(ArmedFault(make_rule("drop", "registry.get", nth=3)), 9) == [3]


def test_times_ends_a_rule() -> None:
    assert hits(ArmedFault(make_rule("fail", "registry.get", times=2)), 9) == [1, 2]


@given(st.integers(), st.floats(0, 1), st.integers(0, 300))
def test_same_seed_hits_the_same_calls_and_a_limit_moves_none(
    seed: int, rate: float, count: int
) -> None:
    free = hits(ArmedFault(make_rule("fail", "registry.get", rate=rate), seed), count)
    again = hits(ArmedFault(make_rule("fail", "registry.get", rate=rate), seed), count)
    few = hits(ArmedFault(make_rule("fail", "registry.get", rate=rate, times=3), seed), count)

    assert free == again
    assert few == free[:3]


def test_rate_is_how_often() -> None:
    assert 150 < len(hits(ArmedFault(make_rule("fail", "registry.get", rate=0.2), 1), 1000)) < 250


def test_rule_of_a_configuration_says_itself_in_short() -> None:
    rule = rule_from(
        {"delay": "registry.*", "by": ["100ms", "2s"], "rate": 0.5, "times": 7}, "rule 1"
    )

    assert rule.words == "delay registry.* rate=0.5 times=7 by=0.1..2s"
    assert (rule.least_s, rule.most_s) == (0.1, 2.0)


@pytest.mark.parametrize(
    ("given_rule", "complaint"),
    [
        ({"explode": "a.b"}, "expected one of fail, delay, drop"),
        ({"fail": "a.b", "drop": "a.b"}, "expected one of fail, delay, drop"),
        ({"fail": "a.b", "rat": 1}, "fail has no rat; it has after, direction, error"),
        ({"fail": "a.b", "rate": 20}, "expected a number from 0 to 1"),
        ({"fail": "a.b", "nth": 0}, "calls are counted from 1"),
        ({"fail": "a.b", "times": 0}, "expected a whole number of at least 1"),
        ({"fail": "a.b", "direction": "sideways"}, "'sideways' is not a valid Direction"),
        ({"fail": "a.b", "error": "NoSuchError"}, "cannot be found"),
        ({"fail": "a.b", "error": "os.path"}, "is no exception class"),
        ({"fail": "a.b", "error": 7}, "expected an exception, its class"),
        ({"fail": 7}, "expected text"),
        ({"fail": ""}, "no target"),
        ({"delay": "a.b"}, "how long?"),
        ({"delay": "a.b", "by": "soon"}, "is no duration"),
        ({"delay": "a.b", "by": ["2s", "1s"]}, "the least comes first"),
        ({"drop": "a.b", "lost": "all"}, 'expected "reply" or "request"'),
    ],
)
def test_wrong_rule_is_refused_by_its_name(given_rule: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        rule_from(given_rule, "fault rule 1")
    assert "fault rule 1" in str(caught.value) or "by" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message", "kind", "text"),
    [
        (None, None, None, None),
        (None, "no", InjectedFault, "no"),
        ("ConnectionError", None, ConnectionError, "injected on purpose"),
        ("mycelia.errors.Overloaded", "busy", None, "busy"),
        ("mycelia.errors:Overloaded", "busy", None, "busy"),
        (KeyError, "sku", KeyError, "'sku'"),
        (OSError("mine"), None, OSError, "mine"),
    ],
)
def test_error_is_a_class_its_name_or_an_instance(
    error: Any, message: str | None, kind: Any, text: str | None
) -> None:
    make = make_rule("fail", "a.b", error=error, message=message).error
    if text is None:
        assert make is None
    else:
        assert make is not None
        made = make()
        assert str(made) == text
        assert kind is None or type(made) is kind


def test_configured_faults_stand_around_what_they_name_only_and_say_so_loudly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = ConfiguredFaults([{"fail": "registry.get", "rate": 0.2}], seed=7)

    assert source.middleware(Direction.INBOUND, REGISTRY_GET) is not None
    other = Target(Direction.INBOUND, CallKind.RPC, "registry", "put")
    assert source.middleware(Direction.INBOUND, other) is None
    (line,) = caplog.records
    assert line.levelname == "WARNING"
    assert "faults_are_injected" in caplog.text
    assert "fail registry.get rate=0.2" in caplog.text
    assert "seed=7" in caplog.text


def test_configured_faults_without_rules_are_refused() -> None:
    with pytest.raises(ConfigError, match="no rules"):
        ConfiguredFaults([])
