"""Durations as they are written."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.durations import duration_text, seconds_of
from mycelia.errors import ConfigError


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (0, 0.0),
        (2.5, 2.5),
        ("0s", 0.0),
        ("500ms", 0.5),
        ("1s", 1.0),
        ("1.5s", 1.5),
        ("5m", 300.0),
        ("2h", 7200.0),
        ("30d", 2592000.0),
    ],
)
def test_seconds_and_text_with_a_unit_are_durations(written: float | str, seconds: float) -> None:
    assert seconds_of(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written",
    [
        *(
            "",
            "5",
            "m",
            "5 m",
            "-1s",
            "5M",
            "1e3s",
            "1h30m",
            "\uff15s",
            "1s\n",
            "1.s",
            ".5s",
            "9" * 20 + "s",
        ),
        *(None, True, [], -1, -0.1, math.inf, math.nan, 10**400, b"1s"),
    ],
)
def test_anything_else_is_an_error_that_says_what_to_write(written: Any) -> None:
    with pytest.raises(ConfigError, match=r"^backoff: .*no duration\. Write seconds"):
        seconds_of(written, "backoff")


@given(st.one_of(st.text(), st.floats(), st.integers(), st.binary(), st.none(), st.booleans()))
def test_whatever_is_written_gives_seconds_or_a_config_error(written: object) -> None:
    try:
        seconds = seconds_of(written)
    except ConfigError:
        return
    assert math.isfinite(seconds)
    assert seconds >= 0


@given(st.integers(min_value=0, max_value=10**8))
def test_what_is_said_of_whole_seconds_can_be_written(seconds: int) -> None:
    assert seconds_of(duration_text(seconds)) == seconds


def test_durations_are_said_in_the_unit_that_fits() -> None:
    said = [duration_text(seconds) for seconds in (0, 0.25, 1, 1.5, 90, 300, 7200, 86400)]

    assert said == ["0s", "250ms", "1s", "1.5s", "90s", "5m", "2h", "1d"]
