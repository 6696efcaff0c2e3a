"""The key of a message, by which a handler keeps its order. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from mycelia.call import Call
from mycelia.errors import ConfigError, UndecodableMessage, describe

__all__ = ["MessageKey", "check_key", "key_reader"]

MessageKey = str | Callable[[Any], Hashable]
"""A field of the payload, or a function of it."""


def check_key(key: object) -> None:
    """
    Raises:
        ConfigError: this is no `MessageKey`.
    """
    if not ((isinstance(key, str) and key) or callable(key)):
        raise ConfigError(
            f'key={key!r:.60}: expected the name of a field of the payload, or a function of it: key="tail_number".'
        )


def key_reader(key: MessageKey) -> Callable[[Call], Hashable]:
    """What reads a call's key from its first argument: by name from a mapping, else from an attribute of that name.

    It raises `UndecodableMessage` where there is no key: the payload cannot be read or lacks the field, the function raises,
    or what they come to is `None` or unhashable.
    """
    read = _field_reader(key) if isinstance(key, str) else key

    def key_of(call: Call) -> Hashable:
        arguments = call.decode()[0]
        if not arguments:
            raise UndecodableMessage(f"{call.target.name}: no key: there is no payload.")
        try:
            found = read(arguments[0])
            hash(found)
        except (
            BaseException
        ) as exc:  # a `SystemExit` would end the connection that it was read from
            named = f"{key!r}" if isinstance(key, str) else "what key= gives"
            raise UndecodableMessage(
                f"{call.target.name}: no key: {named} of a payload of type {type(arguments[0]).__name__}: {describe(exc)}"
            ) from exc
        if found is None:
            raise UndecodableMessage(f"{call.target.name}: no key: it is None.")
        return found

    return key_of


def _field_reader(name: str) -> Callable[[Any], Any]:
    def read(payload: Any) -> Any:
        if isinstance(payload, Mapping):
            return payload[name]
        return getattr(payload, name)

    return read
