"""`@log_handler`, as type checkers see it: the method's records are of what its log is of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, Unpack, cast

from mycelia.durations import Duration
from mycelia.logs.log import Log
from mycelia.logs.log_handler import LogHandler
from mycelia.logs.position import StartAt
from mycelia.logs.record import Record
from mycelia.policies.retry import Retry
from mycelia.runtime import EntrypointArguments
from mycelia.runtime.decorators import decorator_of

__all__ = ["LogHandlerArguments", "LogHandlerDecorator", "log_handler"]

T = TypeVar("T")
R = TypeVar("R")


class LogHandlerArguments(EntrypointArguments, total=False):
    """What `@log_handler` takes beside its log, as keyword arguments (`LogHandler`)."""

    group: str | None
    start: StartAt
    retry: Retry | None
    ahead: Duration | None


class LogHandlerDecorator(Protocol):
    """`@log_handler(LOG, …)`."""

    def __call__(
        self, source: Log[T], **options: Unpack[LogHandlerArguments]
    ) -> Callable[[Callable[[Any, list[Record[T]]], R]], Callable[[Any, list[Record[T]]], R]]: ...


log_handler = cast(
    LogHandlerDecorator,
    decorator_of(
        "log_handler",
        LogHandler,
        "Run a method for the records of a log: `@log_handler(DEPARTED)`, "
        '`@log_handler(DEPARTED, group="audit", start="next")`.',
    ),
)
