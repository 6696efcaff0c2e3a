"""`Config()`: the configuration, whole and read-only, or one typed value of it, checked when the service starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import msgspec

from mycelia.errors import ConfigError
from mycelia.redaction import shown_value
from mycelia.runtime import Container, SharedDependency
from mycelia.runtime.settings import half_a_character

__all__ = ["Config", "ConfigView"]

T = TypeVar("T")


class _Required:
    """Stands for "no default": the key must be there."""

    def __repr__(self) -> str:
        return "required"


REQUIRED: Any = _Required()


class ConfigView(Mapping[str, Any]):
    """A read-only view of a section of the configuration. Sections inside it come as views too.

    Args:
        section: the mapping to show; not copied.
        path: its dotted path in the whole configuration; empty for the whole.
        needed_by: whose view it is, for error messages.
    """

    __slots__ = ("_needed_by", "_path", "_section")

    def __init__(self, section: Mapping[str, Any], path: str = "", needed_by: str = "") -> None:
        self._section = section
        self._path = path
        self._needed_by = needed_by

    def __getitem__(self, key: str) -> Any:
        value = self._section[key]
        if isinstance(value, Mapping):
            return ConfigView(value, self._full(key), self._needed_by)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._section)

    def __len__(self) -> int:
        return len(self._section)

    @overload
    def typed(self, key: str, type: type[T], *, default: T = ...) -> T: ...

    @overload
    def typed(self, key: str, type: Any, *, default: Any = ...) -> Any: ...

    def typed(self, key: str, type: Any, *, default: Any = REQUIRED) -> Any:
        """The value at a dotted path, converted to `type`.

        `type` is anything msgspec can convert to: `float`, `list[str]`, `int | None`, a `msgspec.Struct`, a dataclass.
        Numbers and booleans may come as text, as they do from environment variables.

        Raises:
            ConfigError: there is no such key and no default, or its value is not of the type. Names the key, what
                was expected, what was found, and who needs it.
        """
        value = self._find(key)
        if value is _MISSING:
            if default is REQUIRED:
                raise ConfigError(
                    f'configuration key "{self._full(key)}" is missing; expected {_name(type)}{self._for_whom()}. '
                    "Set it in the configuration file, or give the code a default=."
                )
            return default
        try:
            return msgspec.convert(value, type, strict=False)
        except msgspec.ValidationError as exc:
            raise ConfigError(self._explain(str(exc), key, value, type)) from None
        except UnicodeEncodeError:
            raise half_a_character(f'configuration key "{self._full(key)}"') from None

    def _find(self, key: str) -> Any:
        value: Any = self._section
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return _MISSING
            value = value[part]
        return value

    def _full(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def _for_whom(self) -> str:
        return f" (needed by {self._needed_by})" if self._needed_by else ""

    def _explain(self, text: str, key: str, value: Any, type: Any) -> str:
        """msgspec's "Expected `int`, got `str` - at `$.window`", as a sentence about a configuration key."""
        problem, _, place = text.partition(" - at `$")
        inner = place.rstrip("`").lstrip(".")
        full = self._full(key) + ("" if not inner else inner if inner[0] == "[" else f".{inner}")
        if inner:
            found = f"in {self._full(key)}, which is to be {_name(type)}"
        else:
            found = f"the value is {shown_value(self._full(key), value)}"
        return f'configuration key "{full}": {problem[0].lower()}{problem[1:]}; {found}{self._for_whom()}.'

    def __repr__(self) -> str:
        # Values may be secrets: only the keys are shown.
        return f"ConfigView({self._path or 'whole'}: {', '.join(map(str, self._section))})"


_MISSING: Any = object()


def _name(type: Any) -> str:
    return type.__name__ if isinstance(type, _TYPE) else str(type)


_TYPE = type


class Config(SharedDependency, Generic[T]):
    """Injects the configuration.

        config = Config()                                    # all of it: a read-only mapping
        speed = Config("feed.speed", float, default=0.0)     # one typed value
        feed = Config("feed", FeedSettings)                  # a section as a msgspec.Struct or dataclass

    A typed value is read and checked when the service starts: a missing key without a default, or a value of another
    type, stops the start.

    Args:
        key: dotted path of the value; nothing for the whole.
        type: what the value is converted to (`ConfigView.typed()`); nothing leaves it as it is.
        default: what to inject where the key is absent; not converted.
    """

    container: Container

    @overload
    def __init__(self: Config[ConfigView]) -> None: ...

    @overload
    def __init__(self: Config[Any], key: str, *, default: Any = ...) -> None: ...

    @overload
    def __init__(self: Config[T], key: str, type: type[T], *, default: T = ...) -> None: ...

    @overload
    def __init__(self: Config[Any], key: str, type: Any, *, default: Any = ...) -> None: ...

    def __init__(self, key: str | None = None, type: Any = Any, *, default: Any = REQUIRED) -> None:
        if key is not None and not all(key.split(".")):
            raise ValueError(
                f'Config({key!r}): expected the dotted path of a key, for instance "feed.speed".'
            )
        self.key = key
        self.type = type
        self.default = default
        self._value: Any = None

    if TYPE_CHECKING:
        # In a worker the attribute holds what is injected.
        def __get__(self, instance: object, owner: Any = None) -> T: ...

    def setup(self) -> None:
        container = self.container
        owner = f"{container.service_cls.__qualname__}.{self.attr_name}"
        view = ConfigView(
            container.config, needed_by=f"{owner} of service {container.service_name!r}"
        )
        if self.key is None:
            self._value = view
        else:
            self._value = view.typed(self.key, self.type, default=self.default)

    def shared_dependency(self, is_async: bool) -> Any:
        """What every worker gets."""
        return self._value
