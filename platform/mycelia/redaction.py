"""What may be printed of a URI, a configuration value, a command line, of arguments: one rule for all that Mycelia says.

A URI that can be read is shown with `***` for its password. One that cannot is not shown at all: where a password has a
bare `/`, `#` or `;` in it nobody can tell where it ends. Of a configuration value only what cannot be a secret is shown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from mycelia.errors import class_name_of

__all__ = [
    "HIDDEN",
    "URI_PART",
    "SensitivePaths",
    "brokers_in",
    "is_secret_name",
    "redact",
    "redact_words",
    "redacted",
    "scheme_of",
    "shown_value",
    "without_secrets",
]

HIDDEN: Final = "***"

URI_PART: Final = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://"
    r"(?:(?P<user>[^:@/?#\s]*)(?P<password>:[^/?#\t\r\n]*)?@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:@/?#\[\]\s]*)(?::(?P<port>[0-9]*))?"
    r"(?P<path>/[^?#@]*)?"
    r"(?:\?(?P<query>[^#@]*))?"
)
"""One broker of a URI. Stricter than RFC 3986 where something would be left over that may belong to a password."""

_HOST = re.compile(r"[^:@/?#\[\]\s]+(?::[0-9]+)?")

_KNOWN_SCHEMES = frozenset(
    [
        "amqp",
        "amqps",
        "pyamqp",
        "py-amqp",
        "librabbitmq",
        "memory",
        "http",
        "https",
        "redis",
        "rediss",
        "kafka",
        "postgres",
        "postgresql",
        "mqtt",
        "mqtts",
        "stomp",
        "sqs",
        "tcp",
        "ws",
        "wss",
    ]
)


def scheme_of(uri: str) -> str | None:
    """What stands before `://`, where it is the name of a protocol and so fit to be shown; else `None`."""
    scheme, separator, _ = uri.partition("://")
    return scheme if separator and scheme.lower() in _KNOWN_SCHEMES else None


def brokers_in(uri: str) -> list[str]:
    """The brokers that a URI names, separated by `;`: not by one in a password, nor by nothing."""
    parts: list[str] = []
    start = 0
    for match in re.finditer(";", uri):
        before, after = uri[start : match.start()], uri[match.end() :]
        authority = before.rpartition("://")[2]
        at, scheme = after.find("@"), after.find("://")
        may_be_password = ":" in authority and not re.search("[@/?#]", authority)
        if may_be_password and at >= 0 and (scheme < 0 or at < scheme):
            continue
        parts.append(before)
        start = match.end()
    parts.append(uri[start:])
    return [part for part in map(str.strip, parts) if part]


def redact(uri: str) -> str:
    """`uri` with `***` for each password, and without its options; where it cannot be read, no more than its scheme."""
    shown: list[str] = []
    for part in brokers_in(uri):
        match = URI_PART.fullmatch(part)
        if match is not None and scheme_of(part) is not None:
            shown.append(_shown(match))
        elif shown and _HOST.fullmatch(part):
            shown.append(part)
        else:
            scheme = scheme_of(uri)
            return HIDDEN if scheme is None else f"{scheme}://{HIDDEN}"
    return ";".join(shown)


def _shown(match: re.Match[str]) -> str:
    scheme, user, password, host, port, path = match.group(
        "scheme", "user", "password", "host", "port", "path"
    )
    credentials = "" if user is None else f"{user}:{HIDDEN}@" if password else f"{user}@"
    return f"{scheme}://{credentials}{host}{f':{port}' if port else ''}{path or ''}"


def redact_words(text: str) -> str:
    """A line of prose with what may be a URI with a password in it hidden, quoted or bare."""
    text = re.sub(r"(['\"])(?:(?!\1).)*(?:@|://)(?:(?!\1).)*\1", rf"\1{HIDDEN}\1", text)
    return re.sub(r"[^\s'\"]*(?:@|://)[^\s'\"]*", HIDDEN, text)


# --- configuration values --------------------------------------------------------------------------

_SECRET_KEY = (
    "pass|pwd|secret|token|credential|auth|login|key$|uri|url|dsn|ssl|tls|transport_options"
)
_MAX_CHARS = 80


def shown_value(key: str, value: object) -> str:
    """What an error may say of the value of a configuration key: enough to find the fault, nothing that must stay secret.

    Args:
        key: dotted, in the whole configuration.
    """
    if isinstance(value, Mapping):
        keys = ", ".join(map(str, value))
        return f"a mapping with the keys {keys}" if value else "an empty mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = repr(value)
    if value is not None and (
        re.search(_SECRET_KEY, key, re.IGNORECASE) or "@" in text or "://" in text
    ):
        return "not shown here"
    return text if len(text) <= _MAX_CHARS else f"{text[: _MAX_CHARS - 1]}…"


# --- arguments and fields ----------------------------------------------------------------------------

_SECRET_NAMES: Final = frozenset(
    {
        *("authtoken", "authorization", "proxyauthorization", "cookie", "setcookie", "sessionid"),
        *("password", "passwd", "passphrase", "pwd", "secret", "clientsecret", "credentials"),
        *("accesstoken", "refreshtoken", "idtoken", "bearertoken", "apikey", "privatekey"),
    }
)
_SECRET_ENDS: Final = ("password", "passphrase", "secret")


def is_secret_name(name: object) -> bool:
    """Whether what has this name is never shown: `auth_token`, `password`, `client_secret`, `Set-Cookie`, …; exactly these words,
    so that `token_count` and `page_token` are. Case, `_`, `-` and the prefix `nameko.` make no difference."""
    if not isinstance(name, str) or len(name) > _MAX_NAME:
        return False
    plain = name.lower().removeprefix("nameko.").replace("_", "").replace("-", "")
    return plain in _SECRET_NAMES or plain.endswith(_SECRET_ENDS)


def without_secrets(value: Any, name: object = None, depth: int = 4) -> Any:
    """`value` with `***` for what is secret by its name, in maps within it as well; as it is where nothing is."""
    if is_secret_name(name) and value is not None and type(value) is not bool:
        return HIDDEN
    if depth > 0 and type(value) is dict:
        return {key: without_secrets(part, key, depth - 1) for key, part in value.items()}
    if depth > 0 and type(value) in (list, tuple):
        return [without_secrets(part, None, depth - 1) for part in value]
    return value


_MAX_NAME: Final = 100
_EACH: Final = "[]"
_PATH_PART: Final = r"\[(\d*)\]|[^.\[\]]+"

Path = tuple["str | int", ...]


class SensitivePaths:
    """What `sensitive_arguments` names: arguments and parts of them.

    `password` is an argument, `user.password` a key in one, `cards[0].number` of an item, `cards[].number` of each item; the
    last is Mycelia's own, the rest as in `nameko.utils.get_redacted_args`. A path that leads nowhere hides nothing.

    Args:
        given: one path or several.
    """

    __slots__ = ("paths",)

    def __init__(self, given: str | Iterable[str]) -> None:
        given = (given,) if isinstance(given, str) else given
        self.paths: tuple[Path, ...] = tuple(path for path in map(_parsed, given) if path)

    @property
    def names(self) -> set[str]:
        """The arguments that they begin with."""
        return {str(path[0]) for path in self.paths}

    def __bool__(self) -> bool:
        return bool(self.paths)

    def __repr__(self) -> str:
        return f"SensitivePaths({list(self.paths)})"


def _parsed(path: object) -> Path:
    return tuple(
        part[0] if not part[0].startswith("[") else int(part[1]) if part[1] else _EACH
        for part in re.finditer(_PATH_PART, str(path))
    )


MAX_SHOWN_VALUES: Final = 200
MAX_SHOWN_CHARS: Final = 2000
MAX_SHOWN_TEXT: Final = 200
MAX_SHOWN_DEPTH: Final = 6
LEFT_OUT: Final = "…"


def redacted(values: Mapping[str, Any], sensitive: SensitivePaths) -> dict[str, Any]:
    """`values` as plain data of a bounded size, with `***` for what is sensitive. Copies; never raises.

    What a path leads into and cannot be looked into (text, an object) is hidden whole.
    """
    shown = _Redaction().map_of(values, sensitive.paths, MAX_SHOWN_DEPTH)
    return {str(key): value for key, value in shown.items()}


class _Redaction:
    """One walk over values, with what is left of its bounds."""

    def __init__(self) -> None:
        self._values = MAX_SHOWN_VALUES
        self._chars = MAX_SHOWN_CHARS

    def map_of(
        self, values: Mapping[Any, Any], paths: Sequence[Path], depth: int
    ) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        for key, value in values.items():
            if self._values <= 0 or self._chars <= 0:
                shown[LEFT_OUT] = LEFT_OUT
                break
            name = self._cut(_text_of(key))
            if is_secret_name(key) and value is not None and type(value) is not bool:
                shown[name] = HIDDEN
            else:
                within = [path[1:] for path in paths if _leads_to(path[0], key)]
                shown[name] = self._of(value, within, depth - 1)
        return shown

    def _of(self, value: Any, paths: Sequence[Path], depth: int) -> Any:
        self._values -= 1
        if any(not path for path in paths):
            return HIDDEN
        if value is None or isinstance(value, bool | float):
            return value if value is None or math.isfinite(value) else str(value)
        if isinstance(value, int):
            return int(value) if value.bit_length() < 64 else self._cut(_text_of(value))
        try:
            inside = _inside_of(value)
        except Exception:  # noqa: BLE001  properties are the application's
            inside = None
        if inside is None:
            if paths:
                return HIDDEN
            if isinstance(value, bytes | bytearray | memoryview):
                return f"<{type(value).__name__} of {len(value)}>"
            return self._cut(_text_of(value))
        if depth <= 0:
            return LEFT_OUT
        try:
            if isinstance(inside, Mapping):
                return self.map_of(inside, paths, depth)
            return self._list_of(inside, paths, depth)
        except Exception as exc:  # noqa: BLE001  so are the methods of a map or a list of their own
            return f"<{type(value).__name__} (not shown: {class_name_of(exc)})>"

    def _list_of(self, items: Iterable[Any], paths: Sequence[Path], depth: int) -> list[Any]:
        shown: list[Any] = []
        for index, item in enumerate(items):
            if self._values <= 0 or self._chars <= 0:
                shown.append(LEFT_OUT)
                break
            within = [path[1:] for path in paths if path[0] == _EACH or path[0] == index]
            shown.append(self._of(item, within, depth - 1))
        return shown

    def _cut(self, text: str) -> str:
        room = max(min(MAX_SHOWN_TEXT, self._chars), 0)
        self._chars -= min(len(text), room)
        return text if len(text) <= room else text[:room] + LEFT_OUT


def _leads_to(part: str | int, key: object) -> bool:
    return part == key if isinstance(part, int) else isinstance(key, str) and part == key


def _inside_of(value: Any) -> Mapping[Any, Any] | Iterable[Any] | None:
    """What a value consists of: a map by name, or items; `None` for what is shown as it is."""
    if isinstance(value, str | bytes | bytearray | memoryview | type):
        return None
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        fields = getattr(value, "_fields", None)  # a named tuple's
        return dict(zip(fields, value, strict=True)) if isinstance(fields, tuple) else value
    # Records: `dataclass`, `msgspec.Struct`, `attrs`, pydantic's models.
    for names in ("__dataclass_fields__", "__struct_fields__", "__attrs_attrs__", "model_fields"):
        fields = getattr(type(value), names, None)
        if fields is not None:
            found = [getattr(field, "name", field) for field in fields]
            return {name: getattr(value, name) for name in found if hasattr(value, name)}
    return None


def _text_of(value: object) -> str:
    try:
        text = str.__str__(value) if isinstance(value, str) else str(value)
        return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
    except Exception as exc:  # noqa: BLE001  `__str__` is the application's
        return f"<{type(value).__name__} (no text: {class_name_of(exc)})>"
