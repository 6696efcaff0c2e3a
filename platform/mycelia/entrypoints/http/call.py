"""A call that came by HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

from mycelia.call import Call, Outcome

__all__ = ["HttpCall"]


class HttpCall(Call, eq=False, kw_only=True):
    """A call that came by HTTP."""

    request: Any
    """Starlette's `Request`, or the `BlockingRequest` of a `def` method."""
    answer: asyncio.Future[Outcome]
    """Who waits for the outcome."""
