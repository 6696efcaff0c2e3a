"""What may be printed of a URI, a configuration value, a command line: one rule for all that Mycelia says.

A URI that can be read is shown with `***` for its password. One that cannot is not shown at all: where a password has a
bare `/`, `#` or `;` in it nobody can tell where it ends. Of a configuration value only what cannot be a secret is shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

__all__ = ["HIDDEN", "URI_PART", "brokers_in", "redact", "redact_words", "scheme_of", "shown_value"]

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

_SECRET_KEY = re.compile(
    r"pass|pwd|secret|token|credential|auth|login|key$|uri|url|dsn|ssl|tls|transport_options",
    re.IGNORECASE,
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
    if value is not None and (_SECRET_KEY.search(key) or "@" in text or "://" in text):
        return "not shown here"
    return text if len(text) <= _MAX_CHARS else f"{text[: _MAX_CHARS - 1]}…"
