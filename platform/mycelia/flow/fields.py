"""What is read from a record: by a function, or by a field's name. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import Any, Final, cast

from mycelia.errors import ConfigError
from mycelia.flow.user_code import expect_function

__all__ = ["getter_for", "getter_of"]


def getter_of(field: object, what: str) -> Callable[[Any], Any]:
    """The function that reads `field`: itself if it is one; a name is an attribute's, or a mapping's key.

    Args:
        what: who asks, for the error's text: `mean("delay")`.

    Raises:
        ConfigError: it is neither a function nor a name.
    """
    if isinstance(field, str):
        if not field:
            raise ConfigError(f'{what}: "" is no name of a field.')
        return _named(field)
    expect_function(field, what, "a function of a record, or the name of a field")
    return cast(Callable[[Any], Any], field)


def getter_for(function: Callable[[Any], Any], records: Sequence[Any]) -> Callable[[Any], Any]:
    """What does for all these records what `function` does: of a named field, where all are of one type, a function in C."""
    of_type: Callable[[type], Callable[[Any], Any]] | None = getattr(function, _OF_TYPE, None)
    if of_type is None or len(records) < _MANY:
        return function
    kinds = set(map(type, records))
    return of_type(kinds.pop()) if len(kinds) == 1 else function


_MANY: Final = 8
"""Records from which on asking for their types takes less time than it saves."""

_OF_TYPE: Final = "__mycelia_field_of_type__"


def _named(name: str) -> Callable[[Any], Any]:
    of_attribute, of_key = attrgetter(name), itemgetter(name)
    known: dict[type, Callable[[Any], Any]] = {}
    """By the type of a record: asking an abstract class each time would take longer than all else."""

    def of_type(kind: type) -> Callable[[Any], Any]:
        get = known[kind] = of_key if issubclass(kind, Mapping) else of_attribute
        return get

    def read(record: Any) -> Any:
        kind = type(record)
        return (known.get(kind) or of_type(kind))(record)

    read.__qualname__ = read.__name__ = name
    setattr(read, _OF_TYPE, of_type)
    return read
