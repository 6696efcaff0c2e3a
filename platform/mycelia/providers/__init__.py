"""The dependency-provider layer: what services have injected."""

from mycelia.providers.call_fields import CallFields
from mycelia.providers.config import Config, ConfigView
from mycelia.providers.logger import Logger
from mycelia.providers.logging_setup import configure_logging, follow_log_level
from mycelia.providers.metrics import MetricFactory, Metrics
from mycelia.providers.tracing import Tracer, links_of, trace_calls
from mycelia.providers.transactions import (
    BlockingInboxCheck,
    Inbox,
    InboxCheck,
    Outbox,
    OutboxOfService,
    OutboxOfSession,
)

__all__ = [
    "BlockingInboxCheck",
    "CallFields",
    "Config",
    "ConfigView",
    "Inbox",
    "InboxCheck",
    "Logger",
    "MetricFactory",
    "Metrics",
    "Outbox",
    "OutboxOfService",
    "OutboxOfSession",
    "Tracer",
    "configure_logging",
    "follow_log_level",
    "links_of",
    "trace_calls",
]
