"""A message's body as text to read and to edit, and back. Pure.

JSON and msgpack are shown as JSON. What JSON has not (dates, decimals) stands there as it travels, tagged, so that it comes
back as it was. Other text is shown as it is; what is no text is shown in base64, and can only be replaced.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Literal

import msgspec

from mycelia.amqp import Properties
from mycelia.errors import ConfigError, ContractError
from mycelia.wire import COMPRESSION_HEADER, DEFAULT_MAX_BODY_BYTES, JSON, MSGPACK
from mycelia.wire.compression import decompress

__all__ = ["Payload", "changed_payload", "with_changes"]


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """A body that can be read."""

    form: Literal["json", "text", "base64"]
    text: str
    """The body in that form; JSON is laid out for people."""
    problem: str | None = None
    """Why it is not shown as what its content type says."""

    @classmethod
    def of(
        cls, body: bytes, properties: Properties, max_bytes: int = DEFAULT_MAX_BODY_BYTES
    ) -> Payload:
        """Read a body. Never raises; unpacks no more than `max_bytes`."""
        problem = None
        try:
            body = decompress(body, properties.headers, max_bytes)
            if (value := _value_of(body, properties)) is not _NO_VALUE:
                return cls(form="json", text=_laid_out(value))
        except (ContractError, ValueError, RecursionError) as exc:
            problem = str(exc) or type(exc).__name__
        try:
            return cls(form="text", text=body.decode(), problem=problem)
        except UnicodeDecodeError:
            return cls(form="base64", text=base64.b64encode(body).decode(), problem=problem)

    @property
    def value(self) -> Any:
        """What JSON says; the text of anything else."""
        return json.loads(self.text) if self.form == "json" else self.text


_NO_VALUE = object()


def _value_of(body: bytes, properties: Properties) -> Any:
    """The plain value of JSON or msgpack; `_NO_VALUE` for any other content type."""
    content_type = _type_of(properties)
    if content_type == JSON.content_type:
        return json.loads(body)
    if content_type == MSGPACK.content_type:
        return json.loads(JSON.encode(MSGPACK.decode(body)))
    return _NO_VALUE


def _type_of(properties: Properties) -> str:
    return (properties.content_type or "").partition(";")[0].strip().lower()


def _laid_out(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def changed_payload(text: str, properties: Properties) -> tuple[bytes, Properties]:
    """Body and properties of a message whose payload is to be `text`, in the message's own content type.

    It is not compressed any more.

    Raises:
        ConfigError: `text` cannot be that.
    """
    content_type = _type_of(properties)
    headers = dict(properties.headers or {})
    headers.pop(COMPRESSION_HEADER, None)
    changed = properties.republished(headers)
    if content_type in (JSON.content_type, MSGPACK.content_type):
        try:
            value = json.loads(text)
            changed.content_encoding = JSON.content_encoding
            body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
            if content_type == MSGPACK.content_type:
                changed.content_encoding = MSGPACK.content_encoding
                body = MSGPACK.encode(JSON.decode(body))
        except (ContractError, ValueError, RecursionError) as exc:
            problem = str(exc) or type(exc).__name__
            raise ConfigError(f"the payload is not JSON any more: {problem}.") from None
        return body, changed
    try:
        body = text.encode(properties.content_encoding or "utf-8")
    except (LookupError, UnicodeEncodeError) as exc:
        raise ConfigError(
            f"the payload cannot be {content_type or 'a body without a content type'}: {exc}."
        ) from None
    return body, changed


def with_changes(payload: Payload, changes: list[tuple[str, Any]]) -> str:
    """The payload's text with values set at dotted paths: `("flight.seats.0", 7)`.

    Raises:
        ConfigError: it is no JSON, or a path leads nowhere.
    """
    if payload.form != "json":
        raise ConfigError("the payload is not JSON: it has no parts to set. Replace it as a whole.")
    root = {"": payload.value}
    for path, value in changes:
        at: Any = root
        steps = ["", *path.split(".")] if path else [""]
        for step in steps[:-1]:
            at = at[_key_in(at, step, path, must_exist=True)]
        at[_key_in(at, steps[-1], path, must_exist=False)] = value
    return _laid_out(root[""])


def _key_in(at: Any, step: str, path: str, *, must_exist: bool) -> Any:
    if isinstance(at, dict):
        if must_exist and step not in at:
            raise ConfigError(
                f'{path}: there is no "{step}" in it, only {", ".join(map(str, at)) or "nothing"}.'
            )
        return step
    if isinstance(at, list):
        if step.isascii() and step.isdigit() and int(step) < len(at):
            return int(step)
        raise ConfigError(f'{path}: "{step}" is no place in a list of {len(at)}.')
    raise ConfigError(f'{path}: what "{step}" is to be set in is {json.dumps(at)}.')
