"""Errors that resist being looked at, as user code and its libraries make them, and worse."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn

__all__ = ["HOSTILE_ERRORS"]


class NotAnException(BaseException):
    """As eventlet.Timeout is."""


class NoText(Exception):
    def __str__(self) -> str:
        order: dict[str, str] = {}
        return f"order {order['id']}"

    __repr__ = __str__


class TextStopsTheWorld(Exception):
    def __str__(self) -> str:
        raise NotAnException("no text")

    __repr__ = __str__


class TextIsNoText(Exception):
    def __str__(self) -> Any:
        return 7


class EvilText(str):
    __slots__ = ()

    def encode(self, *_: Any, **__: Any) -> NoReturn:
        raise RuntimeError("not encoded")

    def __getitem__(self, _: Any) -> NoReturn:
        raise RuntimeError("not cut")

    def __len__(self) -> int:
        return -1


class EvilStr(Exception):
    def __str__(self) -> str:
        return EvilText("evil")


class NoArguments(Exception):
    @property
    def args(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no args")


class NoNotes(Exception):
    @property
    def __notes__(self) -> Any:
        raise RuntimeError("no notes")


class NoClass(Exception):
    @property
    def __class__(self) -> Any:
        raise RuntimeError("no class")


class Nameless(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no name")

    @property
    def __module__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no module")


class OfNamelessClass(Exception, metaclass=Nameless):
    pass


class Endless:
    def __iter__(self) -> Any:
        while True:
            yield "x" * 100


def _caused_by_itself() -> BaseException:
    error = ValueError("it is its own cause")
    other = ValueError("or the other's")
    error.__cause__, other.__cause__ = other, error
    return error


def _of_itself() -> BaseException:
    many: list[Any] = []
    many.extend([many] * 1000)
    return ValueError(many)


def _deep_group() -> BaseException:
    error: Exception = ValueError("at the bottom")
    for level in range(30):
        error = ExceptionGroup(f"level {level}", [error])
    return error


def _unicode() -> BaseException:
    return UnicodeDecodeError("utf-8", b"\xff" * 10, 0, 1, "broken \ud83d")


HOSTILE_ERRORS: dict[str, Callable[[], BaseException]] = {
    "no text": NoText,
    "its text stops the world": TextStopsTheWorld,
    "its text is no text": TextIsNoText,
    "its text is evil": EvilStr,
    "no arguments": NoArguments,
    "no notes": NoNotes,
    "no class": NoClass,
    "a class without a name": OfNamelessClass,
    "half an emoji": lambda: ValueError("unknown name Ann \ud83d"),
    "a name of 100 KB": type("N" * 100_000, (ValueError,), {}),
    "a text of 5 MB": lambda: ValueError("é" * 2_500_000),
    "bytes": lambda: ValueError(b"\xff\xfe", "\x00\n\r"),
    "arguments of themselves": _of_itself,
    "endless arguments": lambda: ValueError(Endless()),
    "caused by itself": _caused_by_itself,
    "a deep group": _deep_group,
    "unicode": _unicode,
    "syntax": lambda: SyntaxError("bad", ("file\ud83d", 10**9, -5, "text\ud83d")),
    "SystemExit": lambda: SystemExit(1),
    "KeyboardInterrupt": KeyboardInterrupt,
    "CancelledError": asyncio.CancelledError,
    "GeneratorExit": GeneratorExit,
    "StopIteration": StopIteration,
    "not an Exception": NotAnException,
}
