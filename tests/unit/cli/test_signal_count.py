"""What a signal means."""

from __future__ import annotations

import pytest

from mycelia.cli.signals import SignalCount, Step

NOTHING, STOP, KILL = Step.NOTHING, Step.STOP, Step.KILL


@pytest.mark.parametrize(
    ("times", "steps"),
    [
        ([0.0], [STOP]),
        ([0.0, 1.0], [STOP, KILL]),
        ([0.0, 1.0, 2.0], [STOP, KILL, KILL]),
        ([0.0, 0.1], [STOP, NOTHING]),  # the process, and then its group
        ([0.0, 0.1, 0.6], [STOP, NOTHING, KILL]),
        ([0.0, 0.2, 0.4, 0.6], [STOP, NOTHING, NOTHING, KILL]),  # somebody keeps pressing Ctrl-C
    ],
)
def test_first_signal_stops_and_the_second_kills_unless_it_is_an_echo(
    times: list[float], steps: list[Step]
) -> None:
    count = SignalCount()

    assert [count.next(1000.0 + time) for time in times] == steps
