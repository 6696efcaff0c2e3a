"""Which serializers a service has, which it accepts, and what each content type means.

Reads the configuration keys that Nameko reads (nameko/serialization.py): `serializer`, `SERIALIZERS`, `ACCEPT`. Where
kombu has an opinion on a content type (kombu/serialization.py `SerializerRegistry.loads`), it is followed:
- no content type means `application/data`;
- `application/data` and `application/text` are always accepted: bytes, or text in their content encoding;
- any other type must be in `ACCEPT` (default: only the `serializer`);
- an empty body is given as it is, whatever its type.

Where a message may say what is to be done with it, what it says is bounded: encodings are a short list (`encodings.py`),
unpacking stops at `max_body_bytes` (`compression.py`), and so does what a body may become (`bounds.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from mycelia.errors import (
    ConfigError,
    UndecodableMessage,
    UnknownSerializer,
    UnserializableValueError,
)
from mycelia.wire.bounds import Bounds, bounds_for
from mycelia.wire.compression import COMPRESSION_HEADER, decompress
from mycelia.wire.encodings import BINARY, UTF_8, body_text, codec_of, recoded
from mycelia.wire.json_codec import (
    JSON_CONTENT_TYPE,
    decode_json,
    decode_json_within,
    encode_json,
)
from mycelia.wire.msgpack_codec import MSGPACK_CONTENT_TYPE, decode_msgpack, encode_msgpack
from mycelia.wire.unserializable import unserializable

__all__ = [
    "DEFAULT_MAX_BODY_BYTES",
    "JSON",
    "MSGPACK",
    "Serializer",
    "SerializerRegistry",
    "compressed",
    "raw_body",
]

DEFAULT_MAX_BODY_BYTES = 128 * 1024 * 1024
"""RabbitMQ's own default `max_message_size` up to 3.13 (134217728)."""

_BINARY = frozenset({BINARY, "ascii-8bit"})  # kombu's SKIP_DECODE
_NO_CONTENT_TYPE = "application/data"
_ALWAYS_ACCEPTED = frozenset({_NO_CONTENT_TYPE, "application/text"})


@dataclass(frozen=True, slots=True)
class Serializer:
    """One way to write values as bytes.

    `encode` raises `UnserializableValueError`, which names the path and type of what it refuses; `decode` raises
    `UndecodableMessage`, which says where the bytes break. Both may be used from any thread.
    """

    name: str
    content_type: str
    content_encoding: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    decode_within: Callable[[bytes, Bounds], Any] | None = None
    """`decode` that raises `UndecodableMessage` before more is made than the bounds allow, where there is one."""


# --- the serializers that are always there -------------------------------------------------------


def _guarded(
    name: str,
    content_type: str,
    content_encoding: str,
    encode: Callable[[Any], bytes | str],
    decode: Callable[[Any], Any],
) -> Serializer:
    """A serializer from plain functions, whose errors become ours.

    As in Nameko, `encode` may return text, and `decode` is given text unless the content encoding is binary
    (amqp/abstract_channel.py, `auto_decode`).
    """
    is_text = content_encoding.lower() not in _BINARY

    def encode_guarded(value: Any) -> bytes:
        try:
            body = encode(value)
            return body.encode(content_encoding) if isinstance(body, str) else body
        except Exception as exc:
            raise unserializable(value, content_type, encode, exc) from exc

    def decode_guarded(body: bytes) -> Any:
        try:
            return decode(_text_if_possible(body, content_encoding) if is_text else body)
        except Exception as exc:
            raise UndecodableMessage(
                f"a body of {len(body)} bytes is not {content_type}: {type(exc).__name__}: {exc}. "
                "It may be cut off, or be published with the wrong content type."
            ) from exc

    return Serializer(name, content_type, content_encoding, encode_guarded, decode_guarded)


def _text_if_possible(body: bytes, encoding: str) -> str | bytes:
    try:
        return body.decode(encoding)
    except (LookupError, UnicodeDecodeError):
        return body


def _encode_raw(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise UnserializableValueError(
        f"$: object of type {type(value).__name__} cannot be carried by {_NO_CONTENT_TYPE}, "
        "only text and bytes can. Use another serializer, such as json."
    )


def raw_body(payload: Any, content_type: str, encoding: str | None) -> tuple[str, str, bytes]:
    """Content type, content encoding and body of a payload that goes as it is (kombu/messaging.py `Producer._prepare`).

    Raises:
        UnserializableValueError: it is neither text nor bytes; or `encoding` is none, or has not all of its characters.
    """
    if isinstance(payload, (bytes, bytearray, memoryview)):
        return content_type, encoding or BINARY, bytes(payload)
    if not isinstance(payload, str):
        raise UnserializableValueError(
            f"$: object of type {type(payload).__name__} cannot go as {content_type}: with `content_type` a payload goes as "
            "it is, text or bytes. Write it yourself, or leave `content_type` out and name a serializer."
        )
    encoding = encoding or UTF_8
    try:
        return content_type, encoding, payload.encode(encoding)
    except (LookupError, UnicodeEncodeError) as exc:
        raise UnserializableValueError(f"$: the text cannot be encoded: {exc}.") from exc


def compressed(serializer: Serializer, compress: Callable[[bytes], bytes]) -> Serializer:
    """`serializer`, with what it writes compressed."""

    def encode(value: Any) -> bytes:
        return compress(serializer.encode(value))

    return replace(serializer, encode=encode)


JSON = Serializer("json", JSON_CONTENT_TYPE, UTF_8, encode_json, decode_json, decode_json_within)
MSGPACK = Serializer(
    "msgpack",
    MSGPACK_CONTENT_TYPE,
    BINARY,
    encode_msgpack,
    decode_msgpack,
    decode_msgpack,
)
_YAML = _guarded("yaml", "application/x-yaml", "utf-8", yaml.safe_dump, yaml.safe_load)
_RAW = Serializer("raw", _NO_CONTENT_TYPE, "binary", _encode_raw, bytes)


def _dump_pickle(value: Any) -> bytes:
    import pickle  # not at every start: hardly anybody asks for it

    return pickle.dumps(value, protocol=4)  # kombu's protocol


def _load_pickle(body: bytes) -> Any:
    import pickle

    return pickle.loads(body)


_PICKLE = _guarded("pickle", "application/x-python-serialize", "binary", _dump_pickle, _load_pickle)


class SerializerRegistry:
    """The serializers of one service: what it writes and what it accepts. Not changed once made."""

    __slots__ = (
        "_accepted",
        "_bounds",
        "_by_name",
        "_by_type",
        "_unchecked_bytes",
        "default",
        "max_body_bytes",
    )

    def __init__(
        self,
        *,
        default: str = "json",
        accept: Iterable[str] | None = None,
        custom: Iterable[Serializer] = (),
        max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
    ) -> None:
        """
        Args:
            default: name of the serializer to write with.
            accept: names or content types to read; `None` accepts the default serializer's alone.
            custom: further serializers; one of the same name replaces a built-in.
            max_body_bytes: larger bodies are not decoded.

        Raises:
            ConfigError: a name that no serializer has.
        """
        by_name = {s.name: s for s in (JSON, MSGPACK, _YAML, _RAW, _PICKLE)}
        by_name.update((s.name, s) for s in custom)
        by_type = {s.content_type: s for s in by_name.values()}
        accepted = [default] if accept is None else list(accept)
        # Unpickling runs whatever code the sender likes, so pickle exists only for those who ask for it by name.
        asked_for = [default, *accepted]
        pickle_is_ours = by_name["pickle"] is _PICKLE
        if pickle_is_ours and "pickle" not in asked_for and _PICKLE.content_type not in asked_for:
            del by_name["pickle"], by_type[_PICKLE.content_type]
        self._by_name = by_name
        self._by_type = by_type
        self.default = self.by_name(default)
        self._accepted = {s.content_type: s for s in map(self._named_or_typed, accepted)}
        self.set_max_body_bytes(max_body_bytes)

    def set_max_body_bytes(self, max_body_bytes: int) -> None:
        """Decode no larger bodies from now on."""
        self.max_body_bytes = max_body_bytes
        self._bounds = bounds_for(max_body_bytes)
        # Smaller ones cannot hold more than they may: each list and map takes a byte at least.
        self._unchecked_bytes = min(max_body_bytes, self._bounds.max_containers)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    ) -> SerializerRegistry:
        """Read `serializer`, `SERIALIZERS` and `ACCEPT` as Nameko does (nameko/serialization.py).

        Raises:
            ConfigError: an unknown name, a wrong type, or an encoder or decoder that cannot be imported.
        """
        accept = config.get("ACCEPT")
        if isinstance(accept, str) or not (accept is None or isinstance(accept, Iterable)):
            raise ConfigError(f"ACCEPT is {accept!r}; write a list of serializers, such as [json].")
        specs = config.get("SERIALIZERS") or {}
        if not isinstance(specs, Mapping):
            raise ConfigError(f"SERIALIZERS is {specs!r}; write a map of name to its parts.")
        return cls(
            default=config.get("serializer") or "json",
            accept=accept,
            custom=[_custom(name, spec) for name, spec in specs.items()],
            max_body_bytes=max_body_bytes,
        )

    @property
    def accepted_content_types(self) -> tuple[str, ...]:
        """What `decode` reads, besides `application/data` and `application/text`."""
        return tuple(self._accepted)

    def by_name(self, name: str | None) -> Serializer:
        """The serializer to *write* with; it need not be accepted for reading. `None` is the default one.

        Raises:
            UnknownSerializer: there is none of this name.
        """
        if name is None:
            return self.default
        try:
            return self._by_name[name]
        except (KeyError, TypeError):
            pass
        if name == "pickle":
            raise UnknownSerializer(
                "pickle is switched off, because reading it runs the sender's code. If you trust everyone who can "
                "publish to this broker, name it in ACCEPT."
            )
        raise UnknownSerializer(
            f'no serializer "{name}"; there are: {", ".join(self._by_name)}. '
            "Correct the name, or describe it under SERIALIZERS."
        )

    def for_reply(self, content_type: str | None) -> Serializer:
        """What to answer a request with: in its own format, as Nameko does, else in the default one."""
        found = self._by_type.get(content_type)  # type: ignore[arg-type]  # None finds nothing
        return found or self._find(self._by_type, content_type) or self.default

    def decode(
        self,
        body: bytes,
        content_type: str | None,
        content_encoding: str | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> Any:
        """Decode a message's body by its own properties.

        Args:
            headers: the message's, which say whether the body is compressed.

        Raises:
            UndecodableMessage: not accepted, too large, too much in it, or broken bytes.
        """
        bounds = None
        if headers is not None and COMPRESSION_HEADER in headers:
            sent_bytes = len(body)
            self._check_size(sent_bytes)
            body = decompress(body, headers, self.max_body_bytes)
            bounds = bounds_for(self.max_body_bytes, sent_bytes)
        elif len(body) > self._unchecked_bytes:
            self._check_size(len(body))
            bounds = self._bounds
        serializer = self._accepted.get(content_type)  # type: ignore[arg-type]  # None finds nothing
        if serializer is None:
            serializer = self._find(self._accepted, content_type)
        if serializer is None or serializer is _RAW:
            return self._decode_data(body, content_type, content_encoding)
        if not body:
            return body
        if content_encoding and content_encoding != serializer.content_encoding:
            body = recoded(body, content_encoding, serializer.content_encoding)
        if bounds is not None and serializer.decode_within is not None:
            return serializer.decode_within(body, bounds)
        return serializer.decode(body)

    def _check_size(self, size: int) -> None:
        if size > self.max_body_bytes:
            raise UndecodableMessage(
                f"the body has {size} bytes, more than the limit of {self.max_body_bytes}. "
                "Send less in one message, or raise the limit."
            )

    def _decode_data(
        self, body: bytes, content_type: str | None, content_encoding: str | None
    ) -> str | bytes:
        if (content_type or _NO_CONTENT_TYPE) not in _ALWAYS_ACCEPTED:
            raise self._not_accepted(content_type)
        codec = codec_of(content_encoding or UTF_8)
        return body if not body or codec == BINARY else body_text(body, codec)

    def _find(self, table: dict[str, Serializer], content_type: str | None) -> Serializer | None:
        if not content_type:
            return None
        found = table.get(content_type)
        if found is None:
            # Clients in other languages like `application/json; charset=utf-8`.
            found = table.get(content_type.partition(";")[0].strip().lower())
        return found

    def _named_or_typed(self, name: Any) -> Serializer:
        typed = self._by_type.get(name) if isinstance(name, str) and "/" in name else None
        return typed or self.by_name(name)

    def _not_accepted(self, content_type: str | None) -> UndecodableMessage:
        accepted = ", ".join(self._accepted)
        return UndecodableMessage(
            f'content type "{content_type or "(none)"}" is not accepted; accepted: {accepted}. '
            "Publish as one of these, or add it to ACCEPT."
        )


def _custom(name: str, spec: Any) -> Serializer:
    """A serializer as `SERIALIZERS` describes it."""
    allowed = {"encoder", "decoder", "content_type", "content_encoding"}
    if not isinstance(spec, Mapping) or not {"encoder", "decoder", "content_type"} <= set(spec):
        raise ConfigError(
            f"SERIALIZERS.{name} is {spec!r}; it needs encoder, decoder (dotted paths) and content_type."
        )
    if unknown := set(spec) - allowed:
        raise ConfigError(
            f"SERIALIZERS.{name} has unknown keys {sorted(unknown)}; known: {sorted(allowed)}."
        )
    return _guarded(
        name,
        spec["content_type"],
        spec.get("content_encoding", "utf-8"),
        _imported(name, "encoder", spec["encoder"]),
        _imported(name, "decoder", spec["decoder"]),
    )


def _imported(name: str, role: str, dotted_path: Any) -> Callable[[Any], Any]:
    from pydoc import locate  # at no start that does not need it

    found: object = locate(dotted_path) if isinstance(dotted_path, str) else dotted_path
    if callable(found):
        return found
    raise ConfigError(
        f'SERIALIZERS.{name}.{role}: "{dotted_path}" cannot be imported or called. '
        "Write a dotted path such as mypackage.module.function, and check that it is installed."
    )
