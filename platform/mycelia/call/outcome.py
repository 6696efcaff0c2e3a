"""What came of a call, and what becomes of the message behind it. Both are data, and frozen."""

from __future__ import annotations

import math
from collections.abc import Awaitable
from typing import Any

import msgspec

__all__ = [
    "Ack",
    "DeadLetter",
    "GiveBack",
    "Outcome",
    "Redeliver",
    "Reply",
    "Requeue",
    "Settlement",
    "outcome_of",
]


class Ack(msgspec.Struct, frozen=True):
    """The message is done with; nobody is answered."""


class Reply(msgspec.Struct, frozen=True):
    """The caller gets the outcome's value or error; the message is done with."""


class Requeue(msgspec.Struct, frozen=True):
    """Another attempt, by whoever comes first: back to the queue after a delay that grows with each attempt.

    Counted like any attempt, so it ends at the limit of attempts; it cannot become a hot loop.
    """


class Redeliver(msgspec.Struct, frozen=True):
    """Another attempt `after` seconds from now, counted."""

    after: float

    @property
    def is_a_time(self) -> bool:
        """Whether `after` can be waited for. Who makes one may say anything."""
        after: object = self.after
        return isinstance(after, int) or (isinstance(after, float) and math.isfinite(after))


class GiveBack(msgspec.Struct, frozen=True):
    """The service stops before the method has ended: the message goes back untouched, for another instance."""


class DeadLetter(msgspec.Struct, frozen=True):
    """The message goes to the dead-letter queue, with a reason in snake case (`rejected`, `handler_error`, …)."""

    reason: str = "rejected"


Settlement = Ack | Reply | Requeue | Redeliver | DeadLetter | GiveBack


class Outcome(msgspec.Struct, frozen=True):
    """What came of a call: a value or an error, never both. Frozen: a middleware that changes it replaces it.

    Attributes:
        value: what the method returned; `None` with an error.
        error: what it raised. Any `BaseException`: a cancelled worker is an outcome too.
        settlement: how to settle the message; `None` leaves it to the entrypoint's own rule. A settlement that the
            kind of entrypoint cannot do is an error, logged and settled by the entrypoint's rule.
        body: the encoded result, where the entrypoint encodes in the worker; it belongs to `value` and goes with it.
        is_refused: the method has not begun: the call could not be read, did not fit, came too late or once too often.
    """

    value: Any = None
    error: BaseException | None = None
    settlement: Settlement | None = None
    body: bytes | None = None
    is_refused: bool = False

    def replace(self, **changes: Any) -> Outcome:
        """This outcome with `changes`.

        A new `value` drops the error and the encoded body, a new `error` drops the value and the body: whoever masks a
        result has masked what is sent.
        """
        if "value" in changes:
            changes = {"error": None, "body": None, **changes}
        elif changes.get("error") is not None:
            changes = {"value": None, "body": None, **changes}
        return msgspec.structs.replace(self, **changes)

    def unwrap(self) -> Any:
        """The value, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value

    def __repr__(self) -> str:
        said = f"error={self.error!r}" if self.error is not None else repr(self.value)
        settled = f", settlement={self.settlement!r}" if self.settlement is not None else ""
        return f"Outcome({said}{settled})"


async def outcome_of(value: Awaitable[Any]) -> Outcome:
    """What awaiting `value` comes to; for a task of its own. One that a SystemExit or KeyboardInterrupt left would end the event loop."""
    try:
        return Outcome(await value)
    except BaseException as exc:  # noqa: BLE001  whoever waits for the task gets it
        return Outcome(error=exc)
