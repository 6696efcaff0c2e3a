"""What is made of the records of a window: counts, sums, quantiles, and whatever a user can merge. Pure.

An aggregation is three functions over an *accumulator*, a plain value that is kept as state: `of(records)` makes one of a list,
`merge(a, b)` makes one of two, `result(a)` says what it came to. A batch costs one `of` and one `merge` for each key and window, however
many records it has.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable, Iterator
from copy import deepcopy
from math import nan
from operator import add, call
from typing import Any, Generic, Protocol, TypeVar, overload

from mycelia.errors import ConfigError
from mycelia.flow.fields import getter_for, getter_of
from mycelia.flow.quantile_sketch import merge_sketches, quantile_of, sketch_of
from mycelia.flow.user_code import apart_from, expect_function

__all__ = [
    "Aggregation",
    "Ordered",
    "aggregation",
    "all_of",
    "collect",
    "count",
    "distinct",
    "failing_records",
    "first",
    "last",
    "max_of",
    "mean",
    "min_of",
    "quantile",
    "sum_of",
    "together",
    "top",
]

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
A = TypeVar("A")


class Ordered(Protocol):
    """What can be compared with its like."""

    def __lt__(self, other: Any, /) -> bool: ...


O = TypeVar("O", bound=Ordered)  # noqa: E741
N = TypeVar("N", int, float)


def _same(value: Any) -> Any:
    return value


class Aggregation(Generic[T_contra, R_co]):
    """How records of type `T` become a result of type `R`. Made by the functions of this module.

    Attributes:
        name: as it is drawn: `mean(delay)`.
        of: the accumulator of a list of at least one record.
        merge: the accumulator of two; it may change and return the first, and does not keep or change the second.
        result: what an accumulator came to; it leaves it as it is.
        copy: another accumulator, equal and independent.
        empty: the accumulator of no records, for those that can say something of nothing.
    """

    __slots__ = ("copy", "empty", "merge", "name", "of", "result")

    def __init__(
        self,
        name: str,
        *,
        of: Callable[[list[T_contra]], Any],
        merge: Callable[[Any, Any], Any],
        result: Callable[[Any], R_co],
        copy: Callable[[Any], Any] = _same,
        empty: Callable[[], Any] | None = None,
    ) -> None:
        self.name = name
        self.of = of
        self.merge = merge
        self.result = result
        self.copy = copy
        self.empty = empty

    def __repr__(self) -> str:
        return self.name


def _extended(a: list[Any], b: list[Any]) -> list[Any]:
    a.extend(b)
    return a


def _comparable(values: list[Any]) -> list[Any]:
    """The same. One alone is compared with itself: None fails here, with its record, and not when the next is merged with it."""
    if len(values) == 1:
        (one,) = values
        one < one  # noqa: B015
    return values


def _name(field: object) -> str:
    return field if isinstance(field, str) else str(getattr(field, "__name__", field))


def count() -> Aggregation[object, int]:
    """How many records."""
    return Aggregation("count()", of=len, merge=add, result=_same, empty=int)


@overload
def sum_of(field: str) -> Aggregation[object, Any]: ...
@overload
def sum_of(field: Callable[[T], N]) -> Aggregation[T, N]: ...
def sum_of(field: Any) -> Aggregation[Any, Any]:
    """The sum of a number of each record. Floats are added in order of arrival; whole numbers are exact."""
    get = getter_of(field, "sum_of()")
    return Aggregation(
        f"sum_of({_name(field)})",
        of=lambda records: sum(map(getter_for(get, records), records)),
        merge=add,
        result=_same,
        empty=int,
    )


@overload
def mean(field: str) -> Aggregation[object, float]: ...
@overload
def mean(field: Callable[[T], float]) -> Aggregation[T, float]: ...
def mean(field: Any) -> Aggregation[Any, float]:
    """The arithmetic mean of a number of each record; the whole sum is kept, so that it is as exact as the sum is."""
    get = getter_of(field, "mean()")

    def merged(a: tuple[Any, int], b: tuple[Any, int]) -> tuple[Any, int]:
        return a[0] + b[0], a[1] + b[1]

    def result(a: tuple[Any, int]) -> float:
        return a[0] / a[1] if a[1] else nan

    return Aggregation(
        f"mean({_name(field)})",
        of=lambda records: (sum(map(getter_for(get, records), records)), len(records)),
        merge=merged,
        result=result,
    )


@overload
def min_of(field: str) -> Aggregation[object, Any]: ...
@overload
def min_of(field: Callable[[T], O]) -> Aggregation[T, O]: ...
def min_of(field: Any) -> Aggregation[Any, Any]:
    """The least value of a field."""
    get = getter_of(field, "min_of()")
    return Aggregation(
        f"min_of({_name(field)})",
        of=lambda records: min(_comparable(list(map(getter_for(get, records), records)))),
        merge=min,
        result=_same,
    )


@overload
def max_of(field: str) -> Aggregation[object, Any]: ...
@overload
def max_of(field: Callable[[T], O]) -> Aggregation[T, O]: ...
def max_of(field: Any) -> Aggregation[Any, Any]:
    """The greatest value of a field."""
    get = getter_of(field, "max_of()")
    return Aggregation(
        f"max_of({_name(field)})",
        of=lambda records: max(_comparable(list(map(getter_for(get, records), records)))),
        merge=max,
        result=_same,
    )


@overload
def top(k: int, *, by: str) -> Aggregation[T, list[T]]: ...
@overload
def top(k: int, *, by: Callable[[T], Ordered]) -> Aggregation[T, list[T]]: ...
def top(k: int, *, by: Any) -> Aggregation[Any, list[Any]]:
    """The `k` records with the greatest `by`, the greatest first; of equal ones those that arrived first."""
    get = getter_of(by, "top(by=)")
    if type(k) is not int or k < 1:
        raise ConfigError(f"top({k!r:.60}): expected a whole number of records, from 1.")

    def best(records: Iterable[Any]) -> list[Any]:
        return heapq.nlargest(k, records, key=get)

    def of(records: list[Any]) -> list[Any]:
        if len(records) == 1:
            _comparable([get(records[0])])
        return best(records)

    return Aggregation(
        f"top({k}, by={_name(by)})",
        of=of,
        merge=lambda a, b: best([*a, *b]),
        result=list,
        copy=list,
        empty=list,
    )


@overload
def distinct(field: str) -> Aggregation[object, int]: ...
@overload
def distinct(field: Callable[[T], Hashable]) -> Aggregation[T, int]: ...
def distinct(field: Any) -> Aggregation[Any, int]:
    """How many different values a field has. Exact: the values are kept."""
    get = getter_of(field, "distinct()")

    def merged(a: set[Any], b: set[Any]) -> set[Any]:
        a |= b
        return a

    return Aggregation(
        f"distinct({_name(field)})",
        of=lambda records: set(map(get, records)),
        merge=merged,
        result=len,
        copy=set,
        empty=set,
    )


@overload
def quantile(field: str, q: float, *, error: float = 0.01) -> Aggregation[object, float]: ...
@overload
def quantile(
    field: Callable[[T], float], q: float, *, error: float = 0.01
) -> Aggregation[T, float]: ...
def quantile(field: Any, q: float, *, error: float = 0.01) -> Aggregation[Any, float]:
    """The value of a field below which a share `q` of the records lies: 0.5 for the median, 0.99 for the 99th percentile.

    A sketch (`quantile_sketch`): at most a share `error` away from the exact value, in some hundred numbers for each key and window,
    and the same however the records were batched.
    """
    get = getter_of(field, "quantile()")
    if not 0 <= q <= 1:
        raise ConfigError(f"quantile(…, {q!r:.60}): expected a share from 0 to 1, such as 0.99.")
    if not 0 < error < 0.5:
        raise ConfigError(
            f"quantile(error={error!r:.60}): expected a share above 0 and below 0.5, such as 0.01."
        )
    return Aggregation(
        f"quantile({_name(field)}, {q:g})",
        of=lambda records: sketch_of(map(get, records), error),
        merge=merge_sketches,
        result=lambda sketch: quantile_of(sketch, q, error),
        copy=lambda sketch: {sign: dict(buckets) for sign, buckets in sketch.items()},
    )


def first() -> Aggregation[T, T]:
    """The record that arrived first."""
    return Aggregation("first()", of=lambda records: records[0], merge=lambda a, _: a, result=_same)


def last() -> Aggregation[T, T]:
    """The record that arrived last."""
    return Aggregation("last()", of=lambda records: records[-1], merge=lambda _, b: b, result=_same)


def collect() -> Aggregation[T, list[T]]:
    """All records, in order of arrival. They are all kept: an aggregation that says less needs less."""
    return Aggregation("collect()", of=list, merge=_extended, result=list, copy=list, empty=list)


def aggregation(
    *,
    of: Callable[[list[T]], A],
    merge: Callable[[A, A], A],
    result: Callable[[A], R],
    empty: Callable[[], A] | None = None,
    name: str = "aggregation",
) -> Aggregation[T, R]:
    """An aggregation of the user's own.

    Args:
        of: the accumulator of a list of at least one record. Plain data, or a record of a class at the top of its module.
        merge: the accumulator of two, the earlier first; it may change and return the first.
        result: what an accumulator came to; it leaves it as it is.
        empty: the accumulator of no records, if there is one.
        name: as it is drawn.
    """
    what = f"aggregation({name})"
    for part, function in (("of", of), ("merge", merge), ("result", result)):
        expect_function(function, f"{what}: {part}=", "a function")

    def apart(accumulator: A) -> R:
        return apart_from(accumulator, result(accumulator))

    return Aggregation(f"{name}()", of=of, merge=merge, result=apart, copy=deepcopy, empty=empty)


def together(*parts: Aggregation[Any, Any]) -> Aggregation[Any, Any]:
    """Several over the same records; the result is the tuple of theirs. One alone is itself."""
    if len(parts) == 1:
        return parts[0]
    # Each is asked for every key of every batch: loops in C.
    makers = [part.of for part in parts]
    mergers = [part.merge for part in parts]
    tellers = [part.result for part in parts]
    empties = [part.empty for part in parts if part.empty is not None]

    def result(a: list[Any]) -> tuple[Any, ...]:
        return tuple(map(call, tellers, a))

    return Aggregation(
        ", ".join(part.name for part in parts),
        of=lambda records: [of(records) for of in makers],
        merge=lambda a, b: list(map(call, mergers, a, b)),
        result=tuple if all(one is _same for one in tellers) else result,
        copy=lambda a: [part.copy(x) for part, x in zip(parts, a, strict=True)],
        empty=(lambda: [make() for make in empties]) if len(empties) == len(parts) else None,
    )


def all_of(aggregations: tuple[Aggregation[Any, Any], ...]) -> Aggregation[Any, Any]:
    """What `aggregate()` was given, as one.

    Raises:
        ConfigError: nothing, or something that is no aggregation.
    """
    for one in aggregations:
        if not isinstance(one, Aggregation):
            hint = " Call it: count()." if one is count else ""
            raise ConfigError(
                f"aggregate(): {one!r:.60} is no aggregation.{hint} Write count(), mean(…), or aggregation(of=…, merge=…, result=…)."
            )
    if not aggregations:
        raise ConfigError("aggregate(): of what? Write aggregate(count()), for instance.")
    return together(*aggregations)


def failing_records(
    aggregation: Aggregation[T, Any], records: Iterable[T], held: Iterable[Any] = ()
) -> Iterator[tuple[T, BaseException]]:
    """Those over which an aggregation raises, with what it raised: by themselves, merged with what is held, or with those before them.

    Args:
        held: accumulators that the records are merged with; they stay as they are.
    """
    of, merge, copy = aggregation.of, aggregation.merge, aggregation.copy
    accumulators = list(held)
    for record in records:
        try:
            part = of([record])
            merged = [merge(copy(one), copy(part)) for one in accumulators]
        except BaseException as exc:  # noqa: BLE001  # that it fails is all that is asked here
            yield record, exc
        else:
            accumulators = merged or [part]
