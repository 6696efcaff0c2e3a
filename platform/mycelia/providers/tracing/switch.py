"""Whether this process traces, and how: what the configuration says, else OpenTelemetry's own variables. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from mycelia.errors import ConfigError
from mycelia.runtime.settings import TracingSection

__all__ = ["EXPORTERS", "TracePlan", "plan_of"]

EXPORTERS = ("otlp", "console", "none")

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
HTTP = "http/protobuf"


class TracePlan(msgspec.Struct, frozen=True):
    """How a process traces. What stands here as `None` the exporter and the SDK read from their own variables."""

    exporter: str
    """"otlp", "console" or "none": the last makes spans, for a processor that the application adds, and sends none."""
    protocol: str = HTTP
    """Of "otlp": "http/protobuf" or "grpc"."""
    endpoint: str | None = None
    """Where "otlp" sends to: a base URL, to which `/v1/traces` is added."""
    sample: float | None = None
    """The share of traces that begin here and are kept, from 0 to 1. A trace that came along is kept where its sender keeps it."""


def plan_of(
    section: bool | TracingSection | None, environment: Mapping[str, str]
) -> TracePlan | None:
    """What to do; `None` for not tracing.

    `mycelia: tracing:` decides where it is there. Where it is not, one of the variables that say where traces go is enough:
    `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, `OTEL_TRACES_EXPORTER`. `OTEL_SDK_DISABLED=true` turns
    it off in any case.

    Raises:
        ConfigError: an exporter or a protocol that there is none of.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or section is False:
        return None
    said = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if section is None:
        if said == "none" or not (said or any(environment.get(name) for name in _ENDPOINTS)):
            return None
        section = TracingSection()
    elif section is True:
        section = TracingSection()
    exporter = section.exporter or said or "otlp"
    if exporter not in EXPORTERS:
        where = "mycelia.tracing.exporter" if section.exporter else "OTEL_TRACES_EXPORTER"
        raise ConfigError(
            f'{where}: "{exporter}" is no exporter that is known here. Known: {", ".join(EXPORTERS)}.'
        )
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), HTTP)
    if exporter == "otlp" and protocol not in (HTTP, "grpc"):
        raise ConfigError(
            f'OTEL_EXPORTER_OTLP_PROTOCOL: "{protocol}" is not known here. Known: {HTTP}, grpc.'
        )
    sample = _sample_of(environment) if section.sample is None else section.sample
    return TracePlan(exporter, protocol, section.endpoint, sample)


def _sample_of(environment: Mapping[str, str]) -> float | None:
    """The share that `OTEL_TRACES_SAMPLER` keeps of the traces that begin here, where it is one of those that are about nothing else."""
    name = environment.get("OTEL_TRACES_SAMPLER", "").strip().lower()
    if name == "parentbased_always_off":
        return 0.0
    if name != "parentbased_traceidratio":
        return None
    try:
        share = float(environment.get("OTEL_TRACES_SAMPLER_ARG", "1"))
    except ValueError:
        return None  # OpenTelemetry itself says what is wrong with it
    return share if 0.0 <= share <= 1.0 else None
