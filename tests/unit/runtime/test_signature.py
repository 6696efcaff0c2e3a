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
