"""What turns tracing on, and what keeps it off."""

from __future__ import annotations

from typing import Any

import pytest

from mycelia.errors import ConfigError
from mycelia.providers.tracing.switch import TracePlan, plan_of
from mycelia.runtime import Settings
from mycelia.runtime.settings import TracingSection

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
OTLP = TracePlan("otlp")


@pytest.mark.parametrize(
    ("section", "environment", "plan"),
    [
        (None, {}, None),
        (None, ENDPOINT, OTLP),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, OTLP),
        (None, {"OTEL_TRACES_EXPORTER": "otlp"}, OTLP),
        (None, {"OTEL_TRACES_EXPORTER": "console"}, TracePlan("console")),
        (None, {"OTEL_TRACES_EXPORTER": "none"}, None),
        (None, {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, None),
        (None, {**ENDPOINT, "OTEL_SDK_DISABLED": "TRUE"}, None),
        (None, {"OTEL_SERVICE_NAME": "shop"}, None),
        (True, {}, OTLP),
        (True, {"OTEL_SDK_DISABLED": "true"}, None),
        (True, {"OTEL_TRACES_EXPORTER": "none"}, TracePlan("none")),
        (False, ENDPOINT, None),
        (TracingSection(), {}, OTLP),
        (TracingSection(exporter="console"), ENDPOINT, TracePlan("console")),
        (
            TracingSection(endpoint="http://elsewhere", sample=0.25),
            ENDPOINT,
            TracePlan("otlp", endpoint="http://elsewhere", sample=0.25),
        ),
        (
            None,
            {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            TracePlan("otlp", protocol="grpc"),
        ),
    ],
)
def test_configuration_decides_else_the_variables(
    section: bool | TracingSection | None, environment: dict[str, str], plan: TracePlan | None
) -> None:
    assert plan_of(section, environment) == plan


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, 'OTEL_TRACES_EXPORTER: "zipkin"'),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, '"http/json" is not known'),
    ],
)
def test_what_is_not_known_is_named(environment: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        plan_of(None, environment)


@pytest.mark.parametrize(
    ("tracing", "told"),
    [
        ({"sample": 1.5}, "sample must be from 0 to 1"),
        ({"exporter": "zipkin"}, "exporter must be"),
        ({"sampl": 0.5}, 'Did you mean "sample"'),
        ("yes", "mycelia.tracing"),
    ],
)
def test_wrong_configuration_is_told_by_its_key(tracing: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Settings.from_config({"mycelia": {"tracing": tracing}})
