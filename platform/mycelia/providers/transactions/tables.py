"""The two tables in the user's database, and the rows of the outbox as SQLAlchemy's sessions know them.

Imported when a service, a migration or a test first asks: SQLAlchemy is an extra. Times are seconds since the epoch, by the
database's clock where instances compare them (`free_at`), so that clocks of machines that differ do no harm.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)
from sqlalchemy.orm import registry

from mycelia.providers.transactions.outbox_message import OutboxMessage

__all__ = ["INBOX", "METADATA", "OUTBOX", "OutboxRow"]

METADATA = MetaData()

OUTBOX = Table(
    "mycelia_outbox",
    METADATA,
    # The order in which rows were written. SQLite gives no number twice only with AUTOINCREMENT.
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("service", Text, nullable=False, comment="whose relay publishes it"),
    Column("kind", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("key", Text, comment="rows of one key leave one after the other"),
    Column("message_id", Text, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("content_encoding", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("headers", LargeBinary, nullable=False),
    Column("options", LargeBinary, nullable=False),
    Column("written_at", Double, nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("free_at", Double, nullable=False, server_default=text("0"), comment="not before"),
    Column("claimed_by", Text, comment="the instance that publishes it until free_at"),
    Column("parked_at", Double, comment="not tried any more since then"),
    Column("reason", Text, comment="of the last failure"),
    sqlite_autoincrement=True,
    comment="messages of committed transactions, until the broker has them",
)
"""What is to be published. A row is there from the commit of its transaction until the broker has confirmed the message."""

IS_HELD_OR_WAS = OUTBOX.c.free_at > text("0")
"""Of a row that is claimed, put off, or was so: few of many. In these words, which is how both databases know their index."""

Index(
    "ix_mycelia_outbox_held",
    OUTBOX.c.service,
    OUTBOX.c.key,
    OUTBOX.c.id,
    postgresql_where=IS_HELD_OR_WAS,
    sqlite_where=IS_HELD_OR_WAS,
)

INBOX = Table(
    "mycelia_inbox",
    METADATA,
    Column("handler", Text, primary_key=True),
    Column("message_id", Text, primary_key=True),
    Column("handled_at", Double, nullable=False),
    Index("ix_mycelia_inbox_handled_at", "handled_at"),
    comment="messages whose handler's transaction has been committed",
)
"""What has been handled, for as long as it may come again."""


class OutboxRow:
    """A row that a session writes with its next flush, and forgets with its transaction or savepoint."""

    def __init__(
        self, service: str, message: OutboxMessage, key: str | None, written_at: float
    ) -> None:
        self.service = service
        self.kind = message.kind
        self.source = message.source
        self.name = message.name
        self.key = key
        self.message_id = message.message_id
        self.content_type = message.content_type
        self.content_encoding = message.content_encoding
        self.body = message.body
        self.headers = message.headers
        self.options = message.options
        self.written_at = written_at


registry(metadata=METADATA).map_imperatively(OutboxRow, OUTBOX)
