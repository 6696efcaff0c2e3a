"""A message that waits in a row of the user's database: all that publishing it takes, decided when it was emitted. Pure.

| column | what |
|---|---|
| `kind`, `source`, `name` | `event`: the service that it is of, and its type; `message`: the exchange, and the routing key |
| `message_id` | that of the message, so that a repetition is known |
| `content_type`, `content_encoding`, `body` | the payload as it was written |
| `headers` | an AMQP field table: context data, call ids, the trace, and what the options named |
| `options` | the further `PublishOptions`, as MessagePack |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from mycelia.amqp.fields import decode_table, encode_table
from mycelia.call import CallKind, PublishOptions

__all__ = ["OutboxMessage"]

_to_msgpack = msgspec.msgpack.Encoder().encode
_options_from = msgspec.msgpack.Decoder(PublishOptions).decode

_APART = {
    "headers": None,
    "extra_headers": None,
    "context": None,
    "serializer": None,
    "use_confirms": True,  # a row goes when the broker has the message
    "timeout": None,
}
"""What has its own column, or is the relay's to decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxMessage:
    """The columns of one message, as in the table above."""

    kind: str
    source: str
    name: str
    message_id: str
    content_type: str
    content_encoding: str
    body: bytes
    headers: bytes
    options: bytes

    @classmethod
    def made(
        cls,
        kind: CallKind,
        source: str,
        name: str,
        written: tuple[str, str, bytes],
        headers: dict[str, Any],
        options: PublishOptions,
        *,
        message_id: str,
        now: float,
    ) -> OutboxMessage:
        """A message to be stored.

        Args:
            written: content type, content encoding and body.
            headers: all of them.
            message_id: its own, where the options have none.
            now: seconds since the epoch.

        Raises:
            ProtocolError: a header that AMQP cannot carry.
        """
        content_type, content_encoding, body = written
        message_id = options.message_id or message_id
        kept = msgspec.structs.replace(
            options,
            **_APART,
            message_id=message_id,
            timestamp=now if options.timestamp is None else options.timestamp,
            content_type=content_type,
            content_encoding=content_encoding,
        )
        return cls(
            kind=kind.value,
            source=source,
            name=name,
            message_id=message_id,
            content_type=content_type,
            content_encoding=content_encoding,
            body=body,
            headers=encode_table(headers),
            options=_to_msgpack(kept),
        )

    def publish_options(self) -> PublishOptions:
        """How it is published."""
        return _options_from(self.options)

    def all_headers(self) -> dict[str, Any]:
        """All of its headers."""
        headers, _ = decode_table(self.headers)
        return headers
