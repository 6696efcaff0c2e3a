"""What is read from a record: by a function, or by a field's name. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

from mycelia.errors import ConfigError

__all__ = ["getter_of"]


def getter_of(field: object, what: str) -> Callable[[Any], Any]:
    """The function that reads `field`: itself if it is one; a name is an attribute's, or a mapping's key.

    Args:
        what: who asks, for the error's text: `mean("delay")`.

    Raises:
        ConfigError: it is neither a function nor a name.
    """
    if isinstance(field, str):
        return _named(field)
    if callable(field):
        return field
    raise ConfigError(
        f"{what}: expected a function of a record, or the name of a field; got {field!r:.60}."
    )


def _named(name: str) -> Callable[[Any], Any]:
    of_attribute = attrgetter(name)

    def read(record: Any) -> Any:
        if isinstance(record, Mapping):
            return record[name]
        return of_attribute(record)

    read.__qualname__ = read.__name__ = name
    return read
