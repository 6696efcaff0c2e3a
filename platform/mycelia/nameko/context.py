"""`AuthToken`, `Language`, `UserId`, `UserAgent`: one item of the call's context data, injected.

Context data travels from call to call in headers (`nameko.auth_token`, …), set by whoever makes the first call. Names
and keys are Nameko's (nameko/contextdata.py, nameko/constants.py:27-31).
"""

from __future__ import annotations

from typing import Any

from mycelia.runtime import DependencyProvider, WorkerContext
from mycelia.wire import AUTH_TOKEN, LANGUAGE, USER_AGENT, USER_ID

__all__ = ["AuthToken", "ContextData", "Language", "UserAgent", "UserId"]


class ContextData(DependencyProvider):
    """Injects the item of the call's context data with a given key; `None` where the call has none.

    Args:
        key: which item, without the prefix `nameko.`.
    """

    def __init__(self, key: str) -> None:
        self.key = key

    def get_dependency(self, worker_ctx: WorkerContext) -> Any:
        return worker_ctx.data.get(self.key)


class _Known(ContextData):
    known_key: str

    def __init__(self) -> None:
        super().__init__(self.known_key)


class Language(_Known):
    """Injects the caller's language."""

    known_key = LANGUAGE


class UserId(_Known):
    """Injects the id of the user on whose behalf the call is made."""

    known_key = USER_ID


class UserAgent(_Known):
    """Injects the user's agent, such as a browser's name."""

    known_key = USER_AGENT


class AuthToken(_Known):
    """Injects the token that the caller proves itself with. Nobody has checked it yet."""

    known_key = AUTH_TOKEN
