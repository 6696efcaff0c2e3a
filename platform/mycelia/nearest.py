"""The name that was meant, for error messages: one rule for what counts as a misspelling."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["ALIKE", "nearest"]

ALIKE = 0.6
"""From how alike on (0 to 1) a name is taken for another one misspelt: what `difflib` has found to be good."""


def nearest(name: str, known: Iterable[str], alike: float = ALIKE) -> str | None:
    """The one of `known` that `name` is likely to be a misspelling of, if there is one."""
    import difflib  # not at every start: nearly all names are right

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=alike)
    return close[0] if close else None
