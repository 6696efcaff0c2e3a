"""Traces that are not kept: who decides it, and what is written where."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from mycelia.call import Call, CallKind, Direction, Target
from mycelia.providers.tracing.switch import plan_of
from mycelia.providers.tracing.unsampled import Roots, unsampled_span_of
from mycelia.wire import TRACEPARENT

KEPT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
DROPPED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


def a_call(headers: dict[str, Any] | None = None) -> Call:
    return Call(Target(Direction.INBOUND, CallKind.RPC, "s", "m"), headers=headers)


@pytest.mark.parametrize("sample", [0.0, 0.3, 0.999])
def test_provider_s_sampler_comes_to_the_same_as_the_roots(sample: float) -> None:
    roots = Roots(sample)
    sampler = ParentBased(TraceIdRatioBased(sample))
    tracer = TracerProvider(sampler=sampler, id_generator=roots).get_tracer("test")
    kept = 0
    for _ in range(1000):
        dropped = roots.drop()
        if dropped is None:
            kept += 1
            assert tracer.start_span("kept").is_recording()
        else:
            trace_id = int(dropped[3:35], 16)
            assert not sampler.should_sample(None, trace_id, "dropped").decision.is_sampled()

    assert abs(kept / 1000 - sample) < 0.1
    assert len({roots.generate_trace_id() for _ in range(100)}) == 100  # nothing is left over


@given(
    st.dictionaries(
        st.sampled_from(
            ["traceparent", "nameko.traceparent", "tracestate", "nameko.tracestate", "x"]
        ),
        st.sampled_from([KEPT, DROPPED, "a=b", "", "00-" + "0" * 32 + "-" + "0" * 16 + "-00", 7]),
    ),
    st.booleans(),
)
def test_what_is_read_from_the_headers_is_what_the_context_says(
    headers: dict[str, Any], is_read: bool
) -> None:
    call = a_call(dict(headers))
    if is_read:
        _ = call.context
    raw = a_call(dict(headers)).context.get(TRACEPARENT)

    span = unsampled_span_of(call, Roots(0.0))

    if raw is None:
        assert span is not None
        assert call.context[TRACEPARENT] == span.traceparent
        assert "tracestate" not in call.context
        assert a_call(headers).headers == headers
    else:
        assert (span is not None) == (raw == DROPPED)
    if span is not None:
        context = span.get_span_context()
        assert context.is_valid
        assert not context.trace_flags.sampled
        assert f"{context.trace_id:032x}" == span.traceparent[3:35]


@pytest.mark.parametrize(
    ("variables", "sample"),
    [
        ({}, None),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}, 1.0),
        (
            {"OTEL_TRACES_SAMPLER": "PARENTBASED_TRACEIDRATIO", "OTEL_TRACES_SAMPLER_ARG": "0.2"},
            0.2,
        ),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "x"}, None),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "7"}, None),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, 0.0),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.2"}, None),
    ],
)
def test_sampler_of_the_variables_is_known_where_it_only_looks_at_the_parent(
    variables: dict[str, str], sample: float | None
) -> None:
    plan = plan_of(True, variables)

    assert plan is not None
    assert plan.sample == sample
