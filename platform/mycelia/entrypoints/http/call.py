"""A call that came by HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

from mycelia.call import Call, Outcome

__all__ = ["HttpCall"]


class HttpCall(Call):
    """A call that came by HTTP.

    Attributes:
        request: Starlette's `Request`, or the `BlockingRequest` of a `def` method.
        answer: who waits for the outcome.
    """

    __slots__ = ("answer", "request")

    def __init__(
        self, *args: Any, request: Any, answer: asyncio.Future[Outcome], **fields: Any
    ) -> None:
        """Takes what `Call` takes, and these."""
        super().__init__(*args, **fields)
        self.request = request
        self.answer = answer
