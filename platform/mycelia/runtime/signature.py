"""Whether arguments fit a method, worked out once."""

from __future__ import annotations

import inspect
import re
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
            raise IncorrectSignature(str(exc), explanation=self._explain(str(exc))) from None

    def _explain(self, problem: str) -> str:
        """Python's word on it, the name that was meant, and what the method takes."""
        parameters = list(self._signature.parameters.values())[1:]
        hint = ""
        unknown = UNKNOWN.search(problem)
        if unknown is not None:
            meant = nearest(unknown[1], [p.name for p in parameters])
            hint = f"; did you mean '{meant}'?" if meant else ""
        return f"{problem}{hint or '.'} It takes {_shown(parameters)}."


UNKNOWN = re.compile(r"unexpected keyword argument '(\w+)'")

MAX_SHOWN = 300
"""Characters of a signature in an error. Arbitrary."""


def _shown(parameters: list[inspect.Parameter]) -> str:
    try:
        hinted = [p.replace(annotation=Hint.of(p.annotation)) for p in parameters]
        text = str(inspect.Signature(hinted))
    except Exception:  # noqa: BLE001  a default's `__repr__` is the user's
        text = f"({', '.join(p.name for p in parameters)})"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"
