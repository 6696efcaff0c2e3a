"""Configuration files, read as Nameko reads them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.errors import ConfigError
from mycelia.runtime.config_file import expand, load_config, parse_config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("port: ${PORT:5672}", 5672),
        ("port: ${SET}", 4040),
        ("port: ${UNSET}", None),
        ("port: ${LIST:[A, B]}", ["A", "B"]),
        ("port: ${FLAG:yes}", True),
        ("port: amqp://${HOST:localhost}:${SET}/", "amqp://localhost:4040/"),
        ("port: ${A:${B:deep}}", "deep"),
        ("port: '${SET}'", "${SET}"),
        ('port: !env_var "${SET}"', 4040),
        ('port: !raw_env_var "${SET}"', "4040"),
        ("port: ${EMPTY:x}", None),
        ("port: plain", "plain"),
        ("port: a}b", "a}b"),
    ],
)
def test_variables_are_replaced_and_read_as_yaml(text: str, expected: object) -> None:
    environ = {"SET": "4040", "EMPTY": ""}

    assert parse_config(text, environ=environ)["port"] == expected


@pytest.mark.parametrize(
    "text",
    ["${", "a${b", "${:x}", "${}", "${ }", "${a b}", "${a:b", "{{ ${} }}", "$ {A}", "cost: $5 {A}"],
)
def test_text_that_is_no_variable_is_left_alone(text: str) -> None:
    environ = {"A": "1", "a": "2"}

    assert expand(text, environ) == text
    assert parse_config(f"t: !raw_env_var '{text}'", environ=environ)["t"] == text
    assert parse_config(f"t: '{text}'", environ=environ)["t"] == text


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("${ } and ${A}", "${ } and 1"),
        ("${A} and ${", "1 and ${"),
        ("${U:${ }}", "${ }"),
        ("${U:{}}", "{}"),
        ("${U:{a: {b: c}}}", "{a: {b: c}}"),
    ],
)
def test_variables_beside_such_text_are_replaced(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1"}) == expanded


def test_plain_scalar_that_is_no_variable_is_text() -> None:
    assert parse_config("t: ${ }", environ={}) == {"t": "${ }"}


@given(st.text() | st.text("${}: aA"))
def test_expanding_any_text_gives_text(text: str) -> None:
    assert isinstance(expand(text, {"A": "1"}), str)


def test_not_yaml_is_told_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("a: [1,\nb: }")

    with pytest.raises(ConfigError, match=r"broken.yaml.*line 2") as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing.yaml.*No such file"):
        load_config(tmp_path / "missing.yaml")


def test_a_list_at_the_top_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a mapping"):
        parse_config("- a")


def test_an_empty_file_is_an_empty_configuration() -> None:
    assert parse_config("") == {}
