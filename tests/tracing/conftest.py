"""A collector of the test's own, and services that trace to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.runtime.conftest import client, invoke, serve, uri

from mycelia.testing import SpanReceiver

__all__ = ["client", "invoke", "serve", "uri"]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[SpanReceiver]:
    for name in ("OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")  # ms; 5 s by default
    with SpanReceiver() as receiver:
        yield receiver
