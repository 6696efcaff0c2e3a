from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tools import stable_id
from tests.unit.wire import stock

from mycelia.errors import (
    CallError,
    IncorrectSignature,
    MalformedRequest,
    MethodNotFound,
    Overloaded,
    RemoteError,
    RpcTimeout,
    UnserializableValueError,
)
from mycelia.wire import (
    JSON,
    MAX_TRACEBACK_BYTES,
    MSGPACK,
    deserialize_exception,
    nameko_twin,
    register_remote_error,
    serialize_exception,
)

theirs = stock.nameko.exceptions

shared = pytest.mark.parametrize(
    "cls", [MethodNotFound, IncorrectSignature, MalformedRequest], ids=lambda cls: cls.__name__
)


@pytest.fixture
def without_nameko(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not imported Nameko."""
    monkeypatch.delitem(sys.modules, "nameko.exceptions")


def raised(exc: Exception) -> Exception:
    try:
        raise exc
    except Exception as caught:  # noqa: BLE001  # only to give it a traceback
        return caught


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no words")


# --- out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "exc",
    [
        ValueError("no plane N1"),
        KeyError("tail"),
        ValueError(),
        ValueError(1, 2.5, None, True),
        ValueError({"a": [1, ("b", {"c": None})]}, {1: 2}),
        ValueError("é", "漢"),
        ValueError({3}),
        ValueError(Unspeakable()),
        OSError(2, "gone"),
    ],
    ids=stable_id,
)
def test_error_is_written_as_stock_nameko_writes_it(exc: Exception) -> None:
    assert serialize_exception(exc, traceback=False) == theirs.serialize(exc)


def test_bytes_are_written_as_text() -> None:
    """Stock Nameko writes them as a list of numbers in text, which no one can read."""
    assert theirs.serialize(ValueError(b"xy"))["exc_args"] == [["120", "121"]]

    assert serialize_exception(ValueError(b"xy\xff"), traceback=False)["exc_args"] == ["xy\\xff"]


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "argument",
    [
        cyclic(),
        itertools.count(),
        Unspeakable(),
        {Unspeakable(): Unspeakable()},
        "\ud800",
        {"\ud800": "\ud800"},
    ],
    ids=["cycle", "endless", "unspeakable", "unspeakable key", "surrogate", "surrogate key"],
)
def test_any_error_can_be_written_and_carried(argument: Any) -> None:
    error = serialize_exception(ValueError(argument), traceback=True)

    for serializer in (JSON, MSGPACK):
        assert serializer.decode(serializer.encode(error)) == error


def of_itself() -> list[Any]:
    many: list[Any] = []
    many.extend([many] * 1000)
    return many


@pytest.mark.parametrize(
    "argument",
    [of_itself(), "x" * 5_000_000, [["x" * 1000] * 100] * 100, {"x" * 5_000_000: {"y": 1}}],
    ids=["list of itself", "long text", "much text", "long key"],
)
def test_error_travels_small_however_large_its_arguments(argument: Any) -> None:
    error = serialize_exception(ValueError(argument), traceback=True)

    assert len(JSON.encode(error)) < 3_000_000
    assert "…" in str(error)


@pytest.mark.parametrize(
    "exc",
    [
        MethodNotFound("nope"),
        IncorrectSignature("missing a required argument: 'n'"),
        MalformedRequest("Message missing `args`"),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_stock_caller_gets_its_own_class(exc: Exception) -> None:
    rebuilt = theirs.deserialize(serialize_exception(exc, traceback=True))

    assert type(rebuilt) is getattr(theirs, type(exc).__name__)
    assert str(rebuilt) == str(exc)


def test_stock_caller_passes_over_the_traceback() -> None:
    error = serialize_exception(raised(ValueError("no")), traceback=True)
    assert "traceback" in error

    rebuilt = theirs.deserialize(error)

    assert (type(rebuilt), str(rebuilt)) == (theirs.RemoteError, "ValueError no")


def test_traceback_tells_where_and_why() -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError as exc:
            raise ValueError("outer") from exc
    except ValueError as exc:
        text = serialize_exception(exc, traceback=True)["traceback"]

    assert "KeyError: 'inner'" in text
    assert "direct cause" in text
    assert text.endswith("ValueError: outer\n")


def test_long_traceback_keeps_its_end() -> None:
    error = serialize_exception(raised(ValueError("é" * 40_000 + "the end")), traceback=True)

    assert MAX_TRACEBACK_BYTES - 4 <= len(error["traceback"].encode()) <= MAX_TRACEBACK_BYTES
    assert error["traceback"].startswith("[the beginning is left out]\n")
    assert error["traceback"].endswith("the end\n")


# --- in ------------------------------------------------------------------------------------------


def test_unknown_error_is_a_remote_error_that_reads_as_namekos() -> None:
    error = theirs.serialize(ValueError("no plane N1"))

    rebuilt = deserialize_exception(error)

    assert isinstance(rebuilt, RemoteError)
    assert (rebuilt.exc_type, rebuilt.value) == ("ValueError", "no plane N1")
    assert rebuilt.remote_traceback is None
    assert str(rebuilt) == str(theirs.deserialize(error)) == "ValueError no plane N1"


@shared
@pytest.mark.usefixtures("without_nameko")
def test_namekos_errors_arrive_as_ours(cls: type[Exception]) -> None:
    path = f"nameko.exceptions.{cls.__name__}"

    rebuilt = deserialize_exception({"exc_path": path, "exc_args": ["why"]})

    assert (type(rebuilt), str(rebuilt)) == (cls, "why")


@shared
def test_namekos_errors_can_be_caught_by_either_name(cls: type[Exception]) -> None:
    rebuilt = deserialize_exception(theirs.serialize(getattr(theirs, cls.__name__)("why")))

    assert isinstance(rebuilt, cls)
    assert isinstance(rebuilt, getattr(theirs, cls.__name__))
    assert str(rebuilt) == "why"


def test_remote_error_can_be_caught_by_either_name() -> None:
    rebuilt = deserialize_exception(
        {"exc_type": "ValueError", "value": "no", "traceback": "Traceback"}
    )

    assert isinstance(rebuilt, RemoteError)
    assert isinstance(rebuilt, theirs.RemoteError)
    assert (rebuilt.exc_type, rebuilt.value) == ("ValueError", "no")
    assert rebuilt.remote_traceback == "Traceback"
    assert str(rebuilt) == "ValueError no"
    assert rebuilt.args == ("ValueError no",)


@shared
def test_error_that_passes_through_a_service_keeps_its_name(cls: type[Exception]) -> None:
    error = serialize_exception(cls("why"), traceback=False)

    assert serialize_exception(deserialize_exception(error), traceback=False) == error


def test_unserializable_value_arrives_with_its_text() -> None:
    sent = UnserializableValueError("$.result[0]: object of type socket cannot be carried")

    rebuilt = deserialize_exception(serialize_exception(sent, traceback=False))

    assert isinstance(rebuilt, UnserializableValueError)
    assert str(rebuilt) == str(sent)


def test_overload_arrives_as_overload() -> None:
    """So that the caller's policies can see that it may be tried again."""
    rebuilt = deserialize_exception(serialize_exception(Overloaded("busy"), traceback=False))

    assert type(rebuilt) is Overloaded
    assert rebuilt.retryable


def test_timeout_inside_the_other_service_is_not_the_callers_own() -> None:
    error = serialize_exception(RpcTimeout("planes.get", 2.0), traceback=False)

    rebuilt = deserialize_exception(error)

    assert isinstance(rebuilt, RemoteError)
    assert rebuilt.exc_type == "RpcTimeout"
    assert not isinstance(rebuilt, RpcTimeout)


@register_remote_error
class NoSuchPlane(Exception):
    def __init__(self, tail_number: str, operator: str = "?") -> None:
        super().__init__(tail_number, operator)
        self.tail_number = tail_number


@pytest.mark.usefixtures("without_nameko")
def test_registered_class_is_rebuilt() -> None:
    rebuilt: Any = deserialize_exception(serialize_exception(NoSuchPlane("N1"), traceback=False))

    assert type(rebuilt) is NoSuchPlane
    assert rebuilt.tail_number == "N1"


def test_class_registered_with_nameko_is_rebuilt() -> None:
    @theirs.deserialize_to_instance
    class Grounded(Exception):
        pass

    error = serialize_exception(Grounded("fog"), traceback=False)

    rebuilt = deserialize_exception(error)

    assert (type(rebuilt), rebuilt.args) == (Grounded, ("fog",))
    assert type(theirs.deserialize(error)) is Grounded


@pytest.mark.parametrize("args", [[], ["a", "b", "c"], None, 7, {"a": 1}])
def test_registered_class_that_refuses_the_arguments_falls_back(args: Any) -> None:
    error = {**serialize_exception(NoSuchPlane("N1"), traceback=False), "exc_args": args}

    rebuilt = deserialize_exception(error)

    assert isinstance(rebuilt, RemoteError)
    assert rebuilt.exc_type == "NoSuchPlane"


def test_traceback_is_attached_to_rebuilt_errors() -> None:
    error = serialize_exception(raised(NoSuchPlane("N1")), traceback=True)

    rebuilt: Any = deserialize_exception(error)

    assert rebuilt.remote_traceback == error["traceback"]
    assert rebuilt.__notes__ == [f"Remote traceback:\n{error['traceback']}"]
    assert type(rebuilt) is NoSuchPlane


texts = st.none() | st.booleans() | st.integers() | st.text("aN.é") | st.lists(st.integers())


@given(
    st.dictionaries(
        st.sampled_from(["exc_type", "exc_path", "exc_args", "value", "traceback"]),
        texts | st.sampled_from(["nameko.exceptions.MethodNotFound", "builtins.ValueError"]),
    )
    | texts
)
def test_malformed_error_is_still_an_error_to_raise(error: Any) -> None:
    rebuilt = deserialize_exception(error)

    assert isinstance(rebuilt, CallError)
    assert isinstance(str(rebuilt), str)


# --- both names ----------------------------------------------------------------------------------


def test_twin_has_the_platforms_constructor_and_text() -> None:
    exc = nameko_twin(RpcTimeout)("planes.get", 2.0)

    assert isinstance(exc, theirs.RpcTimeout)
    assert (exc.target, exc.timeout, exc.retryable) == ("planes.get", 2.0, True)
    assert str(exc) == str(RpcTimeout("planes.get", 2.0))
    assert nameko_twin(RpcTimeout) is type(exc)


@pytest.mark.usefixtures("without_nameko")
def test_without_nameko_a_class_is_its_own_twin() -> None:
    assert nameko_twin(RpcTimeout) is RpcTimeout


def test_class_that_nameko_has_not_is_its_own_twin() -> None:
    assert nameko_twin(Overloaded) is Overloaded


@pytest.mark.parametrize("cls", [MethodNotFound, IncorrectSignature])
def test_explanation_travels_beside_the_arguments_that_stock_callers_read(
    cls: type[MethodNotFound | IncorrectSignature],
) -> None:
    sent = serialize_exception(cls("nock", explanation="did you mean knock?"), traceback=False)
    received = deserialize_exception(sent)

    assert sent["exc_args"] == ["nock"]
    assert isinstance(received, cls)
    assert received.args == ("nock",)
    assert str(received) == "did you mean knock?"
