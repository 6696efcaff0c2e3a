"""JSON, as Nameko's peers read and write it (kombu/utils/json.py), at msgspec's speed.

Written:
- numbers, text, lists, dicts; tuples and sets as lists; records (`msgspec.Struct`, dataclasses, attrs) as
  objects; enums as their values;
- `datetime`, `date`, `time`, `Decimal`, `UUID` and `bytes` as kombu's tagged objects (`tagged.py`), so that they arrive
  as the types they were, at a stock Nameko peer (kombu 5.3 and later) as well. Inside a *record* they are text, as the
  record's JSON Schema says: ISO 8601, `str()`, base64. As keys of a dict they are text, as all keys are;
- NaN and the infinities as `NaN`, `Infinity`, `-Infinity`, as Python's `json` does;
- an object with a `__json__()` method as what that returns, as kombu does.

Read: all of this, and kombu's tagged values as the types they were. `-0` is read as `0`, as Python's `json` does.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Mapping, Set
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import msgspec

from mycelia.errors import UndecodableMessage
from mycelia.wire.bounds import Bounds, check_json
from mycelia.wire.plain import plain_value
from mycelia.wire.tagged import TAG_MARK, tag_bytes, tag_value, untag
from mycelia.wire.unserializable import unserializable

__all__ = ["JSON_CONTENT_TYPE", "decode_json", "decode_json_within", "encode_json"]

JSON_CONTENT_TYPE = "application/json"


_encode = msgspec.json.Encoder(enc_hook=plain_value).encode
_decode = msgspec.json.Decoder().decode
_probe = msgspec.msgpack.Encoder(enc_hook=plain_value).encode

# A msgpack float64 (0xcb) whose exponent bits are all ones: NaN or an infinity. The bytes 0xcb 0x7f and 0xcb 0xff
# cannot occur in UTF-8 text.
_NON_FINITE = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")

_QUOTED_TAG_MARK = b'"' + TAG_MARK + b'"'

_LEAVES = frozenset({str, int, float, bool, type(None)})
_TAGGED_AS_THEY_ARE = frozenset({datetime, date, time, Decimal, UUID})
_TAGGED = (bytes, bytearray, memoryview, datetime, date, time, Decimal, UUID)


def encode_json(value: Any) -> bytes:
    """Encode to UTF-8 JSON: one msgspec call, then checks for what msgspec would write as something else.

    Raises:
        UnserializableValueError: naming the path and type of the part that has no JSON form.
    """
    try:
        body = _encode(value)
        # msgspec writes NaN and the infinities as `null`; a body without that word holds none.
        if body.find(b"null") >= 0 and _may_hold_non_finite(value):
            body = _encode_slowly(value)
        elif _needs_tags(value):
            body = _encode(lowered := _lowered(value))
            if body.find(b"null") >= 0 and _may_hold_non_finite(lowered):  # of a `__json__()`
                body = _encode_slowly(lowered)
    except Exception:  # noqa: BLE001  # the application's hooks may raise anything
        try:
            return _encode_slowly(value)
        except Exception as exc:
            raise unserializable(value, JSON_CONTENT_TYPE, _encode_slowly, exc) from exc
    return body


def _may_hold_non_finite(value: Any) -> bool:
    """May `value` hold a NaN or an infinity? A wrong yes costs time only."""
    try:
        return _NON_FINITE.search(_probe(value)) is not None
    except OverflowError:  # an integer beyond 64 bits, which JSON has and msgpack has not
        return True


def _needs_tags(value: Any) -> bool:
    """Is something in `value`, outside records, written with a tag, or may be? In the hot path, hence flat."""
    kind = type(value)
    if kind is dict:
        parts = value.values()
    elif kind is list or kind is tuple:
        parts = value
    elif kind in _LEAVES or isinstance(value, msgspec.Struct):
        return False
    elif isinstance(value, _TAGGED) or hasattr(value, "__json__"):
        return True
    elif isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, (list, tuple, deque, Set)):
        parts = value
    else:
        return False
    if _LEAVES.issuperset(map(type, parts)):
        return False
    for part in parts:  # noqa: SIM110  # a generator costs more than the loop
        if type(part) not in _LEAVES and _needs_tags(part):
            return True
    return False


def _encode_slowly(value: Any) -> bytes:
    return json.dumps(_lowered(value), separators=(",", ":")).encode()


def _lowered(value: Any) -> Any:
    """`value` in the types that Python's `json` knows."""
    kind = type(value)
    if kind is dict:
        return {
            key if type(key) is str else _key(key): part
            if type(part) in _LEAVES
            else _lowered(part)
            for key, part in value.items()
        }
    if kind is list or kind is tuple:
        return [part if type(part) in _LEAVES else _lowered(part) for part in value]
    if kind in _TAGGED_AS_THEY_ARE:
        return tag_value(value)
    if isinstance(value, Enum):
        return _lowered(value.value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Mapping):
        return {_key(key): _lowered(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, deque, Set)):
        return [_lowered(part) for part in value]
    if hasattr(value, "__json__"):
        return _lowered(plain_value(value))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return tag_bytes(value)
    if (tagged := tag_value(value)) is not None:
        return tagged
    return msgspec.to_builtins(value, str_keys=True, enc_hook=plain_value)


def _key(key: Any) -> Any:
    """A dict's key as `json` takes it; msgspec also takes dates, enums, UUIDs and decimals."""
    if key is None or (isinstance(key, (str, int, float)) and not isinstance(key, Enum)):
        return key
    (text,) = msgspec.to_builtins({key: None}, str_keys=True)
    return text


def decode_json(body: bytes) -> Any:
    """Decode UTF-8 JSON: one msgspec call, unless the body holds tagged values or NaN.

    Raises:
        UndecodableMessage: saying where the bytes stop being JSON.
    """
    # `find`, because `in` on bytes first tries its left side as a number, which costs 0.4 µs.
    if body.find(_QUOTED_TAG_MARK) < 0:
        try:
            return _decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass  # NaN, a lone surrogate: Python's `json` decides, and says where it breaks
    try:
        return json.loads(body.decode(), object_hook=untag)
    except json.JSONDecodeError as exc:
        where = f"{exc.msg} at line {exc.lineno} column {exc.colno} (character {exc.pos})"
        raise _undecodable(body, where) from exc
    except UnicodeDecodeError as exc:
        raise _undecodable(body, f"not UTF-8 at byte {exc.start} ({exc.reason})") from exc
    except RecursionError as exc:
        raise _undecodable(body, "nested too deeply") from exc
    except ValueError as exc:
        raise _undecodable(body, str(exc)) from exc


def decode_json_within(body: bytes, bounds: Bounds) -> Any:
    """`decode_json` for a body that may hold more than it should.

    Raises:
        UndecodableMessage: it is not JSON, or more than the bounds allow.
    """
    check_json(body, bounds)
    return decode_json(body)


def _undecodable(body: bytes, where: str) -> UndecodableMessage:
    return UndecodableMessage(
        f"a body of {len(body)} bytes is not {JSON_CONTENT_TYPE}: {where}. "
        "It may be cut off, or be published with the wrong content type."
    )
