"""Errors of ours are caught by the names that Nameko's and kombu's have: `except UndeliverableMessage:` goes on working.

For remote calls' errors see `wire.nameko_twin`, which needs no more than a name in common.
"""

from __future__ import annotations

import sys
from functools import cache

from mycelia.errors import (
    BrokerUnavailable,
    ConfigError,
    UnknownSerializer,
    Unroutable,
    UnserializableValueError,
)

__all__ = ["use_nameko_names"]

THEIRS: dict[type[Exception], tuple[tuple[str, str], ...]] = {
    ConfigError: (("nameko.exceptions", "ConfigurationError"),),
    UnknownSerializer: (("kombu.exceptions", "SerializerNotInstalled"),),
    Unroutable: (("nameko.amqp.publish", "UndeliverableMessage"),),
    BrokerUnavailable: (("kombu.exceptions", "OperationalError"),),
    UnserializableValueError: (("kombu.exceptions", "EncodeError"),),
}
"""Whose place an error of ours takes: module and class, of what is imported with Nameko."""


@cache
def use_nameko_names() -> None:
    """Make our errors theirs too. Once; where Nameko has been imported.

    As base classes, because `except` looks at nothing else. None of theirs has a constructor or anything else of its own.
    """
    for ours, names in THEIRS.items():
        theirs = [getattr(sys.modules.get(module), name, None) for module, name in names]
        found = tuple(cls for cls in theirs if isinstance(cls, type) and not issubclass(ours, cls))
        ours.__bases__ = (*ours.__bases__, *found)
