"""From a URI to the link that serves it."""

from __future__ import annotations

from mycelia.amqp.link import LINK_DEFAULTS, Link, LinkOptions
from mycelia.amqp.rabbit.link import RabbitLink
from mycelia.amqp.uri import unknown_scheme
from mycelia.errors import ConfigError

__all__ = ["connect"]


def connect(uri: str, options: LinkOptions = LINK_DEFAULTS) -> Link:
    """The link for `uri`, not open yet: `RabbitLink` for `amqp`, `amqps` and `pyamqp`, `MemoryLink` for `memory`.

    Raises:
        ConfigError: another scheme.
    """
    scheme = uri.partition("://")[0]
    if scheme in ("amqp", "amqps", "pyamqp"):
        return RabbitLink(uri, options)
    if scheme == "memory":
        from mycelia.amqp.memory.link import (
            MemoryLink,
        )  # a third of this package, and seldom in production

        return MemoryLink(uri, options)
    raise ConfigError(unknown_scheme(uri))
