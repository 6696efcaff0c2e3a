"""The compiled signature check agrees with Python's own."""

import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.errors import IncorrectSignature
from mycelia.runtime import SignatureCheck


class Service:
    def plain(self, a: int, b: int) -> None: ...
    def default(self, a: int, b: int = 2) -> None: ...
    def nothing(self) -> None: ...
    def star(self, a: int, *rest: int) -> None: ...
    def keyword(self, a: int, *, b: int) -> None: ...
    def anything(self, *args: int, **kwargs: int) -> None: ...
    def positional(self, a: int, /, b: int) -> None: ...


METHODS = [m for _, m in inspect.getmembers(Service, inspect.isfunction)]


@given(
    st.sampled_from(METHODS),
    st.lists(st.integers(), max_size=4),
    st.dictionaries(st.sampled_from(["a", "b", "c", "self"]), st.integers(), max_size=3),
)
def test_it_refuses_exactly_what_python_refuses(
    method: Any, args: list[int], kwargs: dict[str, int]
) -> None:
    try:
        method(None, *args, **kwargs)
    except TypeError:
        fits = False
    else:
        fits = True

    if fits:
        SignatureCheck(method).check(args, kwargs)
    else:
        with pytest.raises(IncorrectSignature):
            SignatureCheck(method).check(args, kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((), {"a": 1, "bb": 2}, "got an unexpected keyword argument 'bb'; did you mean 'b'? "),
        ((1,), {"bb": 2}, "got an unexpected keyword argument 'bb'; did you mean 'b'? "),
        ((), {"a": 1, "other": 2}, "got an unexpected keyword argument 'other'. "),
        ((), {"a": 1}, "missing a required argument: 'b'. "),
        ((1, 2), {"a": 1}, "multiple values for argument 'a'. "),
    ],
)
def test_a_misspelt_name_is_told_before_the_one_that_is_missing(
    args: tuple[int, ...], kwargs: dict[str, int], said: str
) -> None:
    with pytest.raises(IncorrectSignature) as error:
        SignatureCheck(Service.plain).check(args, kwargs)

    assert str(error.value) == f"{said}It takes (a: int, b: int)."
