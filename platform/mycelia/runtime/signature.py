"""Whether arguments fit a method, worked out once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from mycelia.errors import IncorrectSignature

__all__ = ["SignatureCheck"]


class SignatureCheck:
    """Whether arguments fit a method, compiled once: the common case is two comparisons.

    `inspect.signature().bind()` costs about 10 µs a call; a plain positional method needs only a count.
    """

    __slots__ = ("_maximum", "_minimum", "_plain", "_signature")

    def __init__(self, method: Callable[..., Any]) -> None:
        self._signature = inspect.signature(method)
        parameters = list(self._signature.parameters.values())[1:]  # without self
        self._plain = all(
            p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters
        )
        self._maximum = len(parameters)
        self._minimum = sum(p.default is p.empty for p in parameters)

    def check(self, args: Any, kwargs: dict[str, Any]) -> None:
        """Raises `IncorrectSignature`, with Python's own text, when the arguments do not fit."""
        if not kwargs and self._plain and self._minimum <= len(args) <= self._maximum:
            return
        try:
            self._signature.bind(None, *args, **kwargs)
        except TypeError as exc:
            raise IncorrectSignature(str(exc)) from None
