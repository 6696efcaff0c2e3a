"""`@flow`, as type checkers see it: the method's streams are of what its sources are of, and it returns where they go."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Protocol, TypedDict, TypeVar, Unpack, cast, overload

from mycelia.durations import Duration
from mycelia.flow.described_flow import AnySource
from mycelia.flow.flow_handler import FlowHandler, OnError
from mycelia.flow.outputs import FlowOutput
from mycelia.flow.sources.single import SingleSource
from mycelia.flow.stream import Stream
from mycelia.logs import Log
from mycelia.logs.position import StartAt
from mycelia.policies.retry import Retry
from mycelia.runtime.decorators import decorator_of

__all__ = ["FlowArguments", "FlowDecorator", "flow"]

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
Given = TypeVar("Given", bound=FlowOutput | tuple[FlowOutput, ...] | list[FlowOutput])


class FlowArguments(TypedDict, total=False):
    """What `@flow` takes beside its sources, as keyword arguments (`FlowHandler`)."""

    group: str | None
    start: StartAt
    commit_every: Duration
    commit_records: int
    on_error: OnError
    retry: Retry | None
    dropped: Collection[str]
    retain_between: Duration
    retain_between_bytes: int | None


Source = Log[A] | SingleSource[A]


class FlowDecorator(Protocol):
    """`@flow(SOURCE, …)`. A method of more than four sources is not held against them."""

    @overload
    def __call__(
        self, a: Source[A], /, **options: Unpack[FlowArguments]
    ) -> Callable[[Callable[[Any, Stream[A]], Given]], Callable[[Any, Stream[A]], Given]]: ...
    @overload
    def __call__(
        self, a: Source[A], b: Source[B], /, **options: Unpack[FlowArguments]
    ) -> Callable[
        [Callable[[Any, Stream[A], Stream[B]], Given]], Callable[[Any, Stream[A], Stream[B]], Given]
    ]: ...
    @overload
    def __call__(
        self, a: Source[A], b: Source[B], c: Source[C], /, **options: Unpack[FlowArguments]
    ) -> Callable[
        [Callable[[Any, Stream[A], Stream[B], Stream[C]], Given]],
        Callable[[Any, Stream[A], Stream[B], Stream[C]], Given],
    ]: ...
    @overload
    def __call__(
        self,
        a: Source[A],
        b: Source[B],
        c: Source[C],
        d: Source[D],
        /,
        **options: Unpack[FlowArguments],
    ) -> Callable[
        [Callable[[Any, Stream[A], Stream[B], Stream[C], Stream[D]], Given]],
        Callable[[Any, Stream[A], Stream[B], Stream[C], Stream[D]], Given],
    ]: ...
    @overload
    def __call__(
        self, *sources: AnySource, **options: Unpack[FlowArguments]
    ) -> Callable[[Callable[..., Given]], Callable[..., Given]]: ...


flow = cast(
    FlowDecorator,
    decorator_of(
        "flow",
        FlowHandler,
        "Run the flow that a method describes, over logs: `@flow(DEPARTED)`, `@flow(DEPARTED, WEATHER)`, "
        '`@flow(DEPARTED, commit_every="50ms", on_error="dead-letter")`.',
    ),
)
