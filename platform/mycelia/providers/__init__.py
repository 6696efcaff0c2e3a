"""The dependency-provider layer: what services have injected."""

from mycelia.providers.config import Config, ConfigView
from mycelia.providers.logger import Logger
from mycelia.providers.logging_setup import configure_logging
from mycelia.providers.nameko_context import AuthToken, ContextData, Language, UserAgent, UserId

__all__ = [
    "AuthToken",
    "Config",
    "ConfigView",
    "ContextData",
    "Language",
    "Logger",
    "UserAgent",
    "UserId",
    "configure_logging",
]
