"""The dependency-provider layer: what services have injected."""

from mycelia.providers.call_fields import CallFields
from mycelia.providers.config import Config, ConfigView
from mycelia.providers.logger import Logger
from mycelia.providers.logging_setup import configure_logging, follow_log_level

__all__ = [
    "CallFields",
    "Config",
    "ConfigView",
    "Logger",
    "configure_logging",
    "follow_log_level",
]
