"""What extensions tell of themselves, as samples."""

from __future__ import annotations

import msgspec
import pytest

from mycelia.entrypoints.statistics import ConsumerStatistics
from mycelia.policies.kill_switch import ConsumptionState
from mycelia.providers.metrics.told import samples_of
from mycelia.runtime import HostStatistics, ServiceStatistics

CONSUMER = ConsumerStatistics(
    queue="q",
    is_consuming=True,
    is_paused=False,
    prefetch=1,
    unsettled=0,
    put_back=0,
    retried=0,
    remembered=0,
)


def samples(consumer: ConsumerStatistics) -> dict[tuple[str, str | None], float]:
    """Those of the kill switch, by name and state."""
    service = ServiceStatistics(
        is_started=True,
        max_workers=None,
        active_workers=0,
        lanes={},
        threads=None,
        extensions={"EventHandler:m": consumer},
    )
    told = HostStatistics(link_state=None, link=None, services={"s": service})
    return {
        (sample.name, sample.labels.get("state")): sample.value
        for sample in samples_of(told)
        if "kill_switch" in sample.name
    }


@pytest.mark.parametrize("state", ConsumptionState)
def test_kill_switch_is_in_one_state_and_counts_its_stops(state: ConsumptionState) -> None:
    guarded = msgspec.structs.replace(CONSUMER, kill_switch=state.value, kill_switch_stops=3)

    assert samples(guarded) == {
        ("mycelia_kill_switch_stops", None): 3.0,
        **{
            ("mycelia_kill_switch_state", one.value): float(one is state)
            for one in ConsumptionState
        },
    }


def test_handler_without_a_kill_switch_has_no_series_of_one() -> None:
    assert samples(CONSUMER) == {}
