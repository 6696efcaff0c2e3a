"""`Tracer()`: OpenTelemetry's tracer for the spans of a service's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mycelia.extras import require_extra
from mycelia.runtime import Container, SharedDependency

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer as OpenTelemetryTracer

__all__ = ["Tracer"]


class Tracer(SharedDependency):
    """Injects an OpenTelemetry tracer, for spans inside the one that the runtime makes around each worker.

        tracer = Tracer()
        ...
        with self.tracer.start_as_current_span("price", attributes={"currency": "EUR"}):

    `opentelemetry.trace.get_tracer(__name__)` does the same. Where nothing is traced its spans cost next to nothing and go
    nowhere.
    """

    container: Container

    if TYPE_CHECKING:

        def __get__(self, instance: object, owner: type | None = None) -> OpenTelemetryTracer: ...

    def setup(self) -> None:
        service = self.container.service_cls
        require_extra("tracing", f"{self.container.service_name}: Tracer()")
        from opentelemetry import trace

        self._tracer = trace.get_tracer(service.__module__)

    def shared_dependency(self, is_async: bool) -> Any:
        """One tracer for all workers; it is safe in threads."""
        return self._tracer
