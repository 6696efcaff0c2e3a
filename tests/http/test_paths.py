"""Paths of `@http`: werkzeug's form translated, the order in which they are tried."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia import http
from mycelia.entrypoints.http.paths import parameters_of, shape_of, specificity, translate_path
from mycelia.errors import ConfigError


@pytest.mark.parametrize(
    ("path", "translated", "parameters"),
    [
        ("/", "/", []),
        ("/delays/{origin}", "/delays/{origin}", ["origin"]),
        ("/n/{n:int}/{rest:path}", "/n/{n:int}/{rest:path}", ["n", "rest"]),
        ("/<value>", "/{value}", ["value"]),
        ("/<int:a>/<string:b>", "/{a:int}/{b:str}", ["a", "b"]),
        ("/<path:p>", "/{p:path}", ["p"]),
        ("/<uuid:u>.<float:f>", "/{u:uuid}.{f:float}", ["u", "f"]),
    ],
)
def test_a_path_is_translated(path: str, translated: str, parameters: list[str]) -> None:
    assert translate_path(path) == translated
    assert parameters_of(translated) == parameters


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("", 'begins with "/"'),
        ("delays", 'begins with "/"'),
        ("/{a}/{a}", "two parameters have the same name"),
        ("/<a>/{a}", "two parameters have the same name"),
        ("/{a", "a bracket that is no parameter"),
        ("/{a b}", "a bracket that is no parameter"),
        ("/<int:>", "a bracket that is no parameter"),
        ("/<int(min=1):n>", "options of werkzeug's converters are not supported"),
        ("/<any(a,b):n>", "options of werkzeug's converters are not supported"),
    ],
)
def test_a_path_that_cannot_be_is_refused_where_it_is_written(path: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"page: @http.*{said}"):
        http("GET", path)(page)


@pytest.mark.parametrize("method", ["", "GET;POST", "GET,", "G T"])
def test_a_method_that_cannot_be_is_refused_where_it_is_written(method: str) -> None:
    with pytest.raises(ConfigError, match=r"page: @http.*expected HTTP methods"):
        http(method, "/")(page)


def page(self: object, request: object) -> None: ...


def test_the_particular_path_is_tried_first() -> None:
    paths = ["/{rest:path}", "/{x}/b", "/a/{x}", "/a/b", "/a/{n:int}", "/a/x{n}", "/a/{x}/c"]

    assert sorted(paths, key=specificity) == [
        "/a/b",
        "/a/{n:int}",
        "/a/x{n}",
        "/a/{x}",
        "/a/{x}/c",
        "/{x}/b",
        "/{rest:path}",
    ]


segments = st.sampled_from(["a", "b", "{x}", "{y}", "{n:int}", "{p:path}", "v{x}"])


@given(
    st.lists(st.lists(segments, max_size=3).map(lambda s: "/" + "/".join(s)), max_size=8),
    st.randoms(),
)
def test_the_order_does_not_depend_on_the_order_of_the_methods(
    paths: list[str], random: Any
) -> None:
    shuffled = list(paths)
    random.shuffle(shuffled)

    assert sorted(paths, key=specificity) == sorted(shuffled, key=specificity)


def test_paths_that_match_the_same_requests_have_one_shape() -> None:
    assert shape_of("/a/{x}") == shape_of("/a/{y}") == shape_of("/a/{z:str}")
    assert shape_of("/a/{x}") != shape_of("/a/{x:int}")
