"""Messages and the user's database transaction: `Outbox` publishes what has been committed, `Inbox` runs a message once."""

from mycelia.providers.transactions.inbox import BlockingInboxCheck, Inbox, InboxCheck
from mycelia.providers.transactions.outbox import Outbox, OutboxOfService, OutboxOfSession

__all__ = [
    "BlockingInboxCheck",
    "Inbox",
    "InboxCheck",
    "Outbox",
    "OutboxOfService",
    "OutboxOfSession",
]
