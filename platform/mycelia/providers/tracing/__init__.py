"""Tracing by OpenTelemetry. Nothing of it is imported into a process that asks for none of it, but this file and `provider`."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from mycelia.call import Call, Direction, Middleware, MiddlewareSource, Target
from mycelia.extras import install_command, is_installed, require_extra
from mycelia.log_event import event
from mycelia.providers.tracing.provider import Tracer
from mycelia.providers.tracing.switch import plan_of
from mycelia.runtime import Settings, register_process_part
from mycelia.runtime.settings import USED_BY_SOME

if TYPE_CHECKING:
    from opentelemetry.trace import Link as SpanLink

    from mycelia.providers.tracing.part import TracingPart

__all__ = ["Tracer", "links_of", "trace_calls", "traces_of_program"]

log = logging.getLogger("mycelia.tracing")


def _tracing(settings: Settings, config: Mapping[str, Any]) -> TracingPart | None:
    section = settings.mycelia.tracing
    plan = plan_of(section, os.environ)
    if plan is None:
        return None
    if section is not None:
        require_extra("tracing", "mycelia.tracing")
    elif not is_installed("tracing"):
        # The variables may be meant for others on this machine: no reason not to run.
        log.warning(
            event(
                "not_traced",
                detail=f"OTEL_… variables ask for traces, for which {install_command('tracing')} is needed",
            )
        )
        return None
    from mycelia.providers.tracing.part import TracingPart

    return TracingPart(plan)


register_process_part(_tracing)


class _CallsOfProgram:
    """A span around each call that a program makes."""

    def middleware(self, direction: Direction, target: Target) -> Middleware | None:
        from opentelemetry import trace

        from mycelia.providers.tracing.layer import span_layer

        return span_layer(lambda: trace.get_tracer("mycelia"), target)


def trace_calls() -> MiddlewareSource:
    """For programs that are no services and trace by OpenTelemetry: `Client(uri, middleware=[trace_calls()])`.

    The spans go to the tracer provider that the program has set up.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """
    require_extra("tracing", "trace_calls()")
    return _CallsOfProgram()


def links_of(calls: Iterable[Call]) -> list[SpanLink]:
    """Links to the spans of `calls`, for the span of a batch, which cannot have them all as its parent.

        with self.tracer.start_as_current_span("book", links=links_of(calls)):

    A call that brought no trace has no link. Calls of a process that is not traced link to whatever they came with.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """
    require_extra("tracing", "links_of()")
    from opentelemetry.trace import Link

    from mycelia.providers.tracing.layer import contexts_of

    return [Link(context) for context in contexts_of(calls)]


@asynccontextmanager
async def traces_of_program(
    name: str, config: Mapping[str, Any]
) -> AsyncIterator[list[MiddlewareSource]]:
    """For a program that sets up no tracing of its own: what to give its `Client` where the configuration or the variables ask
    for traces, and nothing where they do not. At the end the last spans leave, within two seconds.

    Args:
        name: of the program, as the `service.name` of its spans, where `OTEL_SERVICE_NAME` says nothing.

    Raises:
        ConfigError: what is asked for cannot be, or is not installed.
    """
    part = _tracing(Settings.from_config(config, unchecked=USED_BY_SOME), config)
    if part is None:
        yield []
        return
    part.set_default_service(name)
    try:
        yield [part]
    finally:
        await part.stop()
