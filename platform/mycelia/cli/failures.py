"""What is printed of an error in a user's code that keeps services from starting: a line, and the user's own frames.

module "shop" cannot be imported: NameError: name 'rcp' is not defined
  File "/srv/shop.py", line 7, in Shop
    @rcp
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

from mycelia.errors import BrokerUnavailable, MyceliaError, class_name_of, text_of
from mycelia.redaction import redact, redact_words
from mycelia.runtime.settings import DEFAULT_BROKER

__all__ = ["FailedImport", "describe_failure", "user_frames", "words_of"]

PACKAGE = str(Path(__file__).parents[1])
STANDARD_LIBRARY = str(Path(sysconfig.get_paths()["stdlib"]))
MAX_CHAIN = 5
"""Errors that are shown of one chain. Arbitrary."""


def words_of(error: MyceliaError) -> str:
    """An error as the line that a command ends with; with what is missing where nobody has named a broker."""
    words = f"{type(error).__name__}: {error}"
    if isinstance(error, BrokerUnavailable) and redact(DEFAULT_BROKER) in words:
        words += (
            " That is the default, for AMQP_URI is not set: name your broker there, or by --broker."
        )
    return words


class FailedImport(MyceliaError):
    """A module of services cannot be imported: it raised `error`."""

    def __init__(self, module: str, error: Exception) -> None:
        super().__init__(f'module "{module}" cannot be imported')
        self.module = module
        self.error = error


def describe_failure(what: str, error: BaseException) -> str:
    """`what`, the error, and the frames of the user's code; the errors behind it in the same way.

    Without what is not the user's: our frames, the import system's, and those of libraries before the first of theirs.
    """
    lines: list[str] = []
    for number, one in enumerate(_chain(error)):
        head = what if not number else "  because of"
        lines += _lines(head, one)
    return "\n".join(lines)


def _lines(head: str, error: BaseException) -> list[str]:
    if isinstance(error, SyntaxError) and error.filename:
        text = traceback.format_exception_only(error)
        place = [line.rstrip("\n") for line in text[:-1]]
        frames = user_frames(error)
        shown = [*_shown(frames), *place] if frames else place
    else:
        shown = _shown(user_frames(error))
    text_of_error = redact_words(text_of(error))
    if isinstance(error, SyntaxError):
        text_of_error = str(error.msg)
    first = f"{head}: {class_name_of(error)}: {text_of_error}".rstrip(": ")
    notes = [f"  {note}" for note in getattr(error, "__notes__", ()) if isinstance(note, str)]
    return [first, *notes, *shown]


def _shown(frames: traceback.StackSummary) -> list[str]:
    """Two lines each, the same on every Python: where, and the first line of what stands there."""
    lines = []
    for frame in frames:
        lines.append(f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}')
        if frame.line:
            lines.append(f"    {frame.line}")
    return lines


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen and len(seen) < MAX_CHAIN:
        seen.add(id(following))
        yield following
        hidden = following.__suppress_context__
        following = following.__cause__ or (None if hidden else following.__context__)


def user_frames(error: BaseException) -> traceback.StackSummary:
    """The frames of `error` from the first that is the user's on, without ours and the import system's."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_ours(f.filename)]
    first = next((n for n, f in enumerate(frames) if not _is_library(f.filename)), None)
    return traceback.StackSummary.from_list([] if first is None else frames[first:])


def _is_ours(filename: str) -> bool:
    return filename.startswith((PACKAGE, "<frozen ", f"{STANDARD_LIBRARY}/importlib/"))


def _is_library(filename: str) -> bool:
    return (
        filename.startswith(STANDARD_LIBRARY)
        or "site-packages" in filename
        or filename.endswith(".pyx")
    )
