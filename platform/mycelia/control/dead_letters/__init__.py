"""Working with dead letters: the engine behind `mycelia dlq`, for programs as well.

letters     a dead letter as a record; which are meant (`LetterFilter`); what they have in common (`LetterGroups`). Pure
payloads    a body as text to read and edit, and back. Pure
walk        one after the other, each kept in its place unless it is taken away
routes      where a dead letter goes when it is sent again, and whether somebody is there
redrive     sends them again
listing     which dead-letter queues there are
"""

from mycelia.control.dead_letters.letters import Letter, LetterFilter, LetterGroup, LetterGroups
from mycelia.control.dead_letters.listing import (
    DeadLetterQueue,
    belongs_to,
    find_queues,
    management_of,
    named_queue,
)
from mycelia.control.dead_letters.payloads import Payload, changed_payload, with_changes
from mycelia.control.dead_letters.redrive import (
    IN_FLIGHT,
    AroundSending,
    RedriveReport,
    purge,
    redrive,
    send_changed,
)
from mycelia.control.dead_letters.routes import Destination, Router, Stranded
from mycelia.control.dead_letters.walk import Walk, WalkInterrupted

__all__ = [
    "IN_FLIGHT",
    "AroundSending",
    "DeadLetterQueue",
    "Destination",
    "Letter",
    "LetterFilter",
    "LetterGroup",
    "LetterGroups",
    "Payload",
    "RedriveReport",
    "Router",
    "Stranded",
    "Walk",
    "WalkInterrupted",
    "belongs_to",
    "changed_payload",
    "find_queues",
    "management_of",
    "named_queue",
    "purge",
    "redrive",
    "send_changed",
    "with_changes",
]
