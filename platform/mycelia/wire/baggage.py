"""W3C baggage (Baggage, 2024-05-23) as text and as a map: `tenant=acme,plan=gold%20plus;secret`.

Limits and escapes are those of OpenTelemetry's `W3CBaggagePropagator` for Python, so that both read one header alike: a header
that is longer is none, members beyond the limits are left out, `+` and `%20` are both a space. What is written here has only
`%20`, which every implementation reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, unquote_plus

from mycelia.errors import UnserializableValueError

__all__ = [
    "BAGGAGE",
    "MAX_BAGGAGE_LENGTH",
    "MAX_BAGGAGE_MEMBERS",
    "format_baggage",
    "is_baggage",
    "parse_baggage",
]

BAGGAGE: Final = "baggage"
"""The header, and its key in the context; written without Nameko's prefix, read with and without."""

MAX_BAGGAGE_LENGTH: Final = 8192
"""Characters of the whole header."""
MAX_BAGGAGE_MEMBERS: Final = 180
MAX_MEMBER_LENGTH: Final = 4096

_HEADER: Final = re.compile(r"[\t -~]*")
_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_UNESCAPED: Final = "!#$&'()*/:<>?@[]^_`{|}~-."
"""What a value may hold as it is, of what `quote()` would escape."""


def is_baggage(value: object) -> bool:
    """Whether `value` may be sent on as baggage: text of the allowed length, of visible ASCII, blanks and tabs."""
    return (
        isinstance(value, str)
        and len(value) <= MAX_BAGGAGE_LENGTH
        and _HEADER.fullmatch(value) is not None
    )


def parse_baggage(value: object) -> dict[str, str]:
    """The members of a baggage header, without their properties; none where it is not baggage. Never raises."""
    if not is_baggage(value):
        return {}
    members: dict[str, str] = {}
    for member in str(value).split(","):
        name, equals, rest = member.partition("=")
        name = name.strip()
        if not equals or len(member) > MAX_MEMBER_LENGTH or _NAME.fullmatch(name) is None:
            continue
        if len(members) >= MAX_BAGGAGE_MEMBERS:
            break
        members[unquote_plus(name)] = unquote_plus(rest.partition(";")[0].strip())
    return members


def format_baggage(members: Mapping[Any, Any]) -> str:
    """The header for `members`; values are text, or what `str()` makes of them.

    Raises:
        UnserializableValueError: a name that is not text or is empty; more or longer members than a header holds.
    """
    for name in members:
        if not isinstance(name, str) or not name:
            raise UnserializableValueError(f"baggage: the name {name!r} is no text.")
    if len(members) > MAX_BAGGAGE_MEMBERS:
        raise UnserializableValueError(
            f"baggage: {len(members)} members; a header holds {MAX_BAGGAGE_MEMBERS}."
        )
    written = [
        f"{quote(name, safe='')}={quote(str(value), safe=_UNESCAPED, errors='replace')}"
        for name, value in members.items()
    ]
    longest = max(map(len, written), default=0)
    text = ",".join(written)
    if longest > MAX_MEMBER_LENGTH or len(text) > MAX_BAGGAGE_LENGTH:
        raise UnserializableValueError(
            f"baggage: {len(text)} characters, {longest} of them in one member; a header holds {MAX_BAGGAGE_LENGTH}, a "
            f"member {MAX_MEMBER_LENGTH}."
        )
    return text
