"""The content encodings that are read: a short list, each decoded in time that grows with the body and no faster.

Python knows a hundred codecs, and a message may name any: `punycode` takes 19 s for 300 KB, and the interpreter remembers
every unknown name for good. So a name is looked up here and nowhere else. The list is what kombu and Nameko write (`utf-8`,
`binary`), what amqp clients in other languages write for the same, and the other encodings of Unicode.
"""

from __future__ import annotations

from typing import Final

from mycelia.errors import UndecodableMessage

__all__ = ["BINARY", "UTF_8", "body_text", "codec_of", "recoded"]

BINARY: Final = "binary"
"""Bytes as they are."""
UTF_8: Final = "utf-8"

_CODECS: Final = {
    "utf-8": UTF_8,
    "utf8": UTF_8,
    "utf_8": UTF_8,
    "us-ascii": UTF_8,  # of which it is a part
    "ascii": UTF_8,
    "binary": BINARY,  # kombu's SKIP_DECODE
    "ascii-8bit": BINARY,
    "iso-8859-1": "latin-1",
    "latin-1": "latin-1",
    "latin1": "latin-1",
    "utf-16": "utf-16",
    "utf-16le": "utf-16-le",
    "utf-16-le": "utf-16-le",
    "utf-16be": "utf-16-be",
    "utf-16-be": "utf-16-be",
    "utf-32": "utf-32",
    "utf-32le": "utf-32-le",
    "utf-32-le": "utf-32-le",
    "utf-32be": "utf-32-be",
    "utf-32-be": "utf-32-be",
}
_SHOWN = "utf-8, us-ascii, iso-8859-1, utf-16, utf-32, binary"


def codec_of(content_encoding: str) -> str:
    """Python's name for a content encoding.

    Raises:
        UndecodableMessage: it is none of the known ones.
    """
    codec = _CODECS.get(content_encoding)
    if codec is None:
        codec = _CODECS.get(content_encoding.lower())
        if codec is None:
            raise UndecodableMessage(
                f'content encoding "{content_encoding[:60]}" is not known here; known: {_SHOWN}. '
                "Publish in one of these."
            )
    return codec


def recoded(body: bytes, source: str, target: str) -> bytes:
    """Text in the encoding `source`, written in `target`; where either is binary, or both are the same, the body itself.

    Args:
        source: from the message.
        target: what the serializer reads; from the code or the configuration, so any codec of Python's.

    Raises:
        UndecodableMessage: unknown encoding, or bytes that are not in it.
    """
    codec = codec_of(source)
    wanted = _CODECS.get(target.lower(), target)
    if codec in (wanted, BINARY) or wanted == BINARY:
        return body
    return body_text(body, codec).encode(wanted, "surrogatepass")


def body_text(body: bytes, codec: str) -> str:
    """The text in a body, by a codec from `codec_of()`.

    Raises:
        UndecodableMessage: the bytes are not in it.
    """
    try:
        return body.decode(codec)
    except UnicodeDecodeError as exc:
        raise UndecodableMessage(
            f"a body of {len(body)} bytes is not {codec} text: {exc.reason} at byte {exc.start}. "
            'Publish bytes with content encoding "binary".'
        ) from exc
