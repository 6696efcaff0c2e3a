"""What `mycelia top` makes of answers: rates between two of the same process, quantiles, sums over processes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.providers.metrics.answers import ProcessAnswer
from mycelia.providers.metrics.cells import Reading, Series
from mycelia.providers.metrics.figures import figures_of, histogram_quantile
from mycelia.providers.metrics.health import Health

BOUNDS = (0.1, 1.0)


def answer(id: str, at: float, ok: float = 0, bad: float = 0, **more: Any) -> ProcessAnswer:
    its = {"service": "shop", "method": "sell"}
    call = {**its, "direction": "inbound", "kind": "rpc"}

    def one(name: str, kind: str, labels: dict[str, str], *values: float) -> Reading:
        bounds = BOUNDS if kind == "histogram" else ()
        return Reading(Series(name, labels, kind, 0, len(values), bounds), values)

    readings = [one("mycelia_calls", "counter", {**call, "outcome": "ok"}, ok)]
    if bad:
        readings.append(one("mycelia_calls", "counter", {**call, "outcome": "error"}, bad))
    readings += [
        one("mycelia_call_duration_seconds", "histogram", call, ok, bad, 0.0, ok * 0.05),
        one("mycelia_workers", "sum", its, more.get("running", 0)),
        one("mycelia_dead_letters", "counter", {"service": "shop"}, more.get("dead", 0)),
        one("mycelia_consumers", "sum", {"service": "shop", "queue": "rpc-shop"}, 1.0),
        one("mycelia_consumer_unsettled", "sum", {"service": "shop", "queue": "rpc-shop"}, 2.0),
    ]
    health = Health(ready=True, phase="running", link="connected", services=["shop"], not_ready=[])
    return ProcessAnswer(
        id=id, host="here", pid=1, at=at, up_s=at, health=health, readings=readings
    )


def test_first_answers_have_no_rates() -> None:
    figures = figures_of([answer("a", 10, ok=5)], {}, {})

    (method,) = figures.methods
    assert (method.calls_per_s, method.p50_s, method.calls) == (None, None, 5)
    assert figures.instances[0].is_new


def test_rates_are_between_two_answers_of_the_same_process() -> None:
    before = {"a": answer("a", 10, ok=100), "gone": answer("gone", 10, ok=1000)}
    now = [answer("a", 12, ok=120, bad=4, running=3, dead=2), answer("new", 1, ok=50, running=1)]
    figures = figures_of(now, before, {"rpc-shop": 7})

    (method,) = figures.methods
    assert (method.calls_per_s, method.errors_per_s) == (12.0, 2.0)
    assert (method.calls, method.errors, method.in_flight) == (174, 4, 4)
    assert method.p50_s == pytest.approx(0.06)
    assert 0.1 < (method.p99_s or 0) <= 1.0
    (queue,) = figures.queues
    assert (queue.ready, queue.consumers, queue.unsettled) == (7, 2, 4)
    assert figures.dead_letters == {"shop": 2}


def test_nothing_is_nothing() -> None:
    figures = figures_of([], {}, {})

    assert (figures.instances, figures.methods, figures.queues) == ([], [], [])


@given(st.lists(st.integers(0, 50), min_size=3, max_size=3), st.floats(0.01, 1.0))
def test_quantile_lies_in_the_bucket_that_holds_it(counts: list[int], share: float) -> None:
    found = histogram_quantile(share, BOUNDS, [float(count) for count in counts])
    total = sum(counts)

    if not total:
        assert found is None
        return
    assert found is not None
    if share * total <= counts[0]:
        assert 0 <= found <= 0.1
    elif share * total <= counts[0] + counts[1]:
        assert 0.1 <= found <= 1.0
    else:
        assert found == 1.0
