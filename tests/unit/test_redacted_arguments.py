"""What is shown of arguments: named, without what is sensitive, bounded, whatever they are."""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.wire import stock

from mycelia import redacted_arguments
from mycelia.call import Call, CallKind, Declaration, Direction, Target
from mycelia.redaction import HIDDEN, SensitivePaths, is_secret_name, redacted


def shown(values: dict[str, Any], *paths: str) -> dict[str, Any]:
    return redacted(values, SensitivePaths(paths))


# --- paths -----------------------------------------------------------------------------------------


USER = {"name": "ada", "pin": 1, "cards": [{"number": "4711", "to": 27}, {"number": "0815"}]}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("user", HIDDEN),
        ("user.pin", USER | {"pin": HIDDEN}),
        ("user.cards", USER | {"cards": HIDDEN}),
        ("user.cards[0]", USER | {"cards": [HIDDEN, {"number": "0815"}]}),
        (
            "user.cards[0].number",
            USER | {"cards": [{"number": HIDDEN, "to": 27}, {"number": "0815"}]},
        ),
        (
            "user.cards[].number",
            USER | {"cards": [{"number": HIDDEN, "to": 27}, {"number": HIDDEN}]},
        ),
        ("user.cards[7].number", USER),
        ("user.nothing", USER),
        ("other", USER),
        ("", USER),
        ("user.pin.digit", USER),  # a number has no parts, and is none of them
        ("user.name.first", USER | {"name": HIDDEN}),  # text may hold them: JSON, a query string
    ],
)
def test_a_path_hides_what_it_leads_to(path: str, expected: Any) -> None:
    before = copy.deepcopy(USER)

    assert shown({"user": USER, "n": 1}, path) == {"user": expected, "n": 1}
    assert before == USER  # the method's own arguments stay as they are


def test_several_paths_hide_each_their_own() -> None:
    paths = ("user.pin", "user.cards[1]", "n")

    assert shown({"user": USER, "n": 1}, *paths) == {
        "user": USER | {"pin": HIDDEN, "cards": [USER["cards"][0], HIDDEN]},  # type: ignore[index]
        "n": HIDDEN,
    }


keys = st.sampled_from(["a", "b", "c"])
paths = st.lists(st.one_of(keys.map(lambda k: f".{k}"), st.sampled_from(["[0]", "[1]"]))).map(
    "".join
)
trees = st.recursive(
    st.integers(0, 9), lambda t: st.lists(t, max_size=3) | st.dictionaries(keys, t), max_leaves=10
)


@given(
    st.dictionaries(keys, trees, min_size=1),
    st.lists(keys.flatmap(lambda key: paths.map(lambda path: key + path)), max_size=3),
)
def test_whatever_nameko_would_hide_is_hidden(values: dict[str, Any], names: list[str]) -> None:
    """`nameko.utils.get_redacted_args` is the least; it passes over items of lists within something, and stops at numbers."""
    try:
        theirs = stock.redacted(values, tuple(names))
    except (TypeError, IndexError):  # stock raises of a path that leads beyond a list
        return

    assert _seen(shown(values, *names), values) <= _seen(theirs, values)


def _seen(shown: Any, values: Any, at: tuple[Any, ...] = ()) -> set[tuple[Any, ...]]:
    """Where each value is that can be seen."""
    if shown in (HIDDEN, stock.REDACTED):
        return set()
    if isinstance(values, dict):
        return set().union(*(_seen(shown[key], values[key], (*at, key)) for key in values))
    if isinstance(values, list):
        return set().union(*(_seen(shown[n], part, (*at, n)) for n, part in enumerate(values)))
    return {at}


# --- values ----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Login:
    user: str
    password: str


class Card(msgspec.Struct):
    number: str
    to: int


class Pair(NamedTuple):
    left: str
    secret: str


class Unspeakable:
    def __str__(self) -> str:
        raise OSError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Login("ada", "hunter2"), {"user": "ada", "password": HIDDEN}),
        ([Card("4711", 27)], [{"number": HIDDEN, "to": 27}]),
        (Pair("a", "b"), {"left": "a", "secret": HIDDEN}),
        (UserDict(number=1), {"number": HIDDEN}),
        (SimpleNamespace(number=4711), HIDDEN),  # its text would show the number
        (b"number", HIDDEN),
    ],
)
def test_records_are_looked_into_and_what_cannot_be_is_hidden_whole(
    value: Any, expected: Any
) -> None:
    found = shown({"v": value}, "v.number", "v[].number")

    assert found == {"v": expected}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (1.5, 1.5),
        (float("nan"), "nan"),
        (2**80, str(2**80)),
        (b"12345", "<bytes of 5>"),
        ("half \ud83d", "half \\ud83d"),
        ({1: 2}, {"1": 2}),
        ((1, 2), [1, 2]),
        (Unspeakable(), "<Unspeakable (no text: OSError)>"),
        (int, "<class 'int'>"),
    ],
)
def test_values_are_plain_data(value: Any, expected: Any) -> None:
    assert shown({"v": value}) == {"v": expected}


@pytest.mark.parametrize(
    "value",
    [
        "x" * 1_000_000,
        ["x" * 1000] * 10_000,
        {str(n): n for n in range(10_000)},
        {"x" * 100_000: 1},
        [[[[[[[[[["deep"]]]]]]]]]],
        [Unspeakable()] * 10_000,
    ],
    ids=["text", "texts", "map", "key", "deep", "unspeakable"],
)
def test_what_is_shown_is_small_however_much_there_is(value: Any) -> None:
    found = shown({"v": value, "w": value})

    assert len(msgspec.json.encode(found)) < 12_000
    assert "…" in str(found) or "no text" in str(found)


def test_a_list_that_contains_itself_has_an_end() -> None:
    endless: list[Any] = []
    endless.append(endless)

    assert "…" in str(shown({"v": endless}))


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        *((name, True) for name in ("password", "auth_token", "nameko.auth_token", "Set-Cookie")),
        *((name, True) for name in ("db_password", "API-Key", "clientSecret", "Authorization")),
        *((name, False) for name in ("tokens", "page_token", "passage", "key", "user_id", "", 5)),
    ],
)
def test_what_is_secret_by_its_name_is_never_shown(name: Any, is_secret: bool) -> None:
    assert is_secret_name(name) is is_secret
    assert (shown({"v": {name: "x"}}) == {"v": {str(name): HIDDEN}}) is is_secret


# --- of a call ---------------------------------------------------------------------------------------


def call(method: Any, *args: Any, sensitive: Any = (), **kwargs: Any) -> Call:
    declared = Declaration(lambda: method, sensitive_arguments=sensitive)
    target = Target(Direction.INBOUND, CallKind.RPC, "s", "m", declared=declared)
    return Call(target, (args, kwargs))


def login(self: Any, user: str, password: str = "none", *rest: Any, **more: Any) -> None: ...


def test_arguments_have_their_names_however_they_came() -> None:
    assert redacted_arguments(call(login, "ada", sensitive="user")) == {
        "user": HIDDEN,
        "password": HIDDEN,
        "rest": [],
    }
    assert redacted_arguments(call(login, "ada", "x", 1, n=2, pin=3, sensitive=("pin",))) == {
        "user": "ada",
        "password": HIDDEN,
        "rest": [1],
        "n": 2,
        "pin": HIDDEN,
    }


def test_arguments_that_do_not_fit_are_hidden_where_their_place_would_have_to_tell() -> None:
    def one(self: Any, pin: int) -> None: ...

    assert redacted_arguments(call(one, 1, 2, sensitive="pin")) == {"args": HIDDEN}
    assert redacted_arguments(call(one, 1, 2)) == {"args": [1, 2]}
    assert redacted_arguments(call(one, pin=1, nip=2, sensitive="pin")) == {"pin": HIDDEN, "nip": 2}


def test_arguments_nobody_has_read_are_not_read_for_this() -> None:
    def read(call: Call) -> Any:
        raise AssertionError

    declared = Declaration(lambda: login)
    target = Target(Direction.INBOUND, CallKind.RPC, "s", "m", declared=declared)

    assert redacted_arguments(Call(target, read=read)) == {}


def test_where_nothing_says_what_is_sensitive_nothing_is_shown() -> None:
    leaving = Call(Target(Direction.OUTBOUND, CallKind.RPC, "s", "m"), (("secret",), {}))

    assert redacted_arguments(leaving) == {}


def test_a_name_that_is_no_argument_is_known_as_a_typo() -> None:
    def one(self: Any, pin: int) -> None: ...

    assert Declaration(lambda: one, (), ("pni.a", "pin")).unknown_arguments() == ["pni"]
    assert Declaration(lambda: login, (), "anything").unknown_arguments() == []
