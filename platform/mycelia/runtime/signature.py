"""Whether arguments fit a method, worked out once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from mycelia.errors import IncorrectSignature
from mycelia.nearest import nearest
from mycelia.runtime.mistakes import Hint

__all__ = ["SignatureCheck"]


class SignatureCheck:
    """Whether arguments fit a method, compiled once: the common case is two comparisons.

    Of what is called, not of what that wraps: a decorator may supply an argument itself, or take more than it passes on.

    `inspect.signature().bind()` costs about 10 µs a call; a plain positional method needs only a count.
    """

    __slots__ = ("_maximum", "_minimum", "_plain", "_signature")

    def __init__(self, method: Callable[..., Any]) -> None:
        self._signature = inspect.signature(method, follow_wrapped=False)
        parameters = list(self._signature.parameters.values())[1:]  # without self
        self._plain = all(
            p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters
        )
        self._maximum = len(parameters)
        self._minimum = sum(p.default is p.empty for p in parameters)

    def check(self, args: Any, kwargs: dict[str, Any]) -> None:
        """Raises `IncorrectSignature`, with Python's own text as its argument, when the arguments do not fit."""
        if not kwargs and self._plain and self._minimum <= len(args) <= self._maximum:
            return
        try:
            self._signature.bind(None, *args, **kwargs)
        except TypeError as exc:
            explanation = self._explain(str(exc), kwargs)
            raise IncorrectSignature(str(exc), explanation=explanation) from None

    def _explain(self, problem: str, kwargs: dict[str, Any]) -> str:
        """Python's word on it, the name that was meant, and what the method takes.

        Of a misspelt name Python says that the right one is missing; here it is the misspelt one that is told.
        """
        parameters = list(self._signature.parameters.values())[1:]
        by_name = {
            p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        }
        unknown = [name for name in kwargs if name not in by_name]
        if any(p.kind is p.VAR_KEYWORD for p in parameters) or not unknown:
            return f"{problem}. It takes {_shown(parameters)}."
        meant = nearest(unknown[0], by_name - set(kwargs))
        hint = f"; did you mean '{meant}'?" if meant else "."
        return f"got an unexpected keyword argument '{unknown[0]}'{hint} It takes {_shown(parameters)}."


MAX_SHOWN = 300
"""Characters of a signature in an error. Arbitrary."""


def _shown(parameters: list[inspect.Parameter]) -> str:
    try:
        hinted = [p.replace(annotation=Hint.of(p.annotation)) for p in parameters]
        text = str(inspect.Signature(hinted))
    except Exception:  # noqa: BLE001  a default's `__repr__` is the user's
        text = f"({', '.join(p.name for p in parameters)})"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"
