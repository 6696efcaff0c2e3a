"""`Config`: the whole, one typed value, and what it says when the configuration is wrong."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from typing import Any, assert_type

import msgspec
import pytest

from mycelia import Client, Config, ConfigView, Runner, rpc
from mycelia.errors import ConfigError

URI = "memory://config"


class FeedSettings(msgspec.Struct, forbid_unknown_fields=True):
    speed: float
    airports: list[str] = []
    in_flight: int = 512


@dataclass
class Window:
    size: float
    step: float = 1.0


FILE: dict[str, Any] = {
    "AMQP_URI": URI,
    "feed": {"speed": "2.5", "airports": ["JFK", "LGA"], "debug": "true"},
    "window": {"size": 60},
    "empty": None,
}


# --- the view -------------------------------------------------------------------------------------------


def test_a_view_reads_like_the_mapping_it_shows() -> None:
    view = ConfigView(FILE)

    assert dict(view["feed"]) == FILE["feed"]
    assert list(view) == list(FILE)
    assert view.get("absent", 5) == 5
    assert "feed" in view
    assert len(view) == len(FILE)


def test_a_view_cannot_be_written_to_at_any_depth() -> None:
    view = ConfigView(FILE)

    with pytest.raises(TypeError):
        view["feed"] = 1  # type: ignore[index]
    with pytest.raises(TypeError):
        view["feed"]["speed"] = 1


def test_a_view_keeps_values_out_of_its_repr() -> None:
    assert "guest" not in repr(ConfigView({"AMQP_URI": "amqp://guest:guest@host"}))


@pytest.mark.parametrize(
    ("key", "type", "value"),
    [
        ("feed.speed", float, 2.5),  # text, as from an environment variable
        ("feed.debug", bool, True),
        ("feed.airports", list[str], ["JFK", "LGA"]),
        ("feed.airports", tuple[str, ...], ("JFK", "LGA")),
        ("window", Window, Window(60.0)),
        ("window.size", int, 60),
        ("window.size", float, 60.0),
        ("empty", int | None, None),
        ("feed", dict[str, Any], FILE["feed"]),
    ],
)
def test_typed_gives_the_value_in_the_type_asked_for(key: str, type: Any, value: Any) -> None:
    found = ConfigView(FILE).typed(key, type)

    assert found == value
    assert found.__class__ is value.__class__


def test_typed_gives_the_default_only_where_the_key_is_absent() -> None:
    view = ConfigView(FILE)

    assert view.typed("feed.none", float, default=1.5) == 1.5
    assert view.typed("none.at.all", float | None, default=None) is None
    with pytest.raises(ConfigError):
        view.typed("feed.airports", float, default=1.5)


@pytest.mark.parametrize(
    ("key", "type", "message"),
    [
        (
            "feed.lag",
            float,
            'configuration key "feed.lag" is missing; expected float. '
            "Set it in the configuration file, or give the code a default=.",
        ),
        (
            "feed.airports",
            float,
            """configuration key "feed.airports": expected `float`, got `array`; the value is a list of 2.""",
        ),
        (
            "window.size",
            str,
            'configuration key "window.size": expected `str`, got `int`; the value is 60.',
        ),
        (
            "feed",
            FeedSettings,
            'configuration key "feed": object contains unknown field `debug`; '
            "the value is a mapping with the keys speed, airports, debug.",
        ),
        (
            "feed.airports",
            list[int],
            'configuration key "feed.airports[0]": expected `int`, got `str`; '
            "in feed.airports, which is to be list[int].",
        ),
        (
            "window",
            dict[str, str],
            'configuration key "window[...]": expected `str`, got `int`; '
            "in window, which is to be dict[str, str].",
        ),
    ],
)
def test_an_error_names_the_key_what_was_expected_and_what_was_found(
    key: str, type: Any, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        ConfigView(FILE).typed(key, type)

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"db": {"password": "hunter2"}}, "db.password"),
        ({"db": {"uri": "amqp://user:hunter2@host"}}, "db.uri"),
        ({"db": {"uri": "amqp://user:hunter2@host"}}, "db"),
        ({"db": ["hunter2"]}, "db"),
    ],
)
def test_an_error_keeps_secrets_to_itself(config: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ConfigView(config).typed(key, int)

    assert "hunter2" not in str(caught.value)


def test_a_view_inside_a_view_names_the_whole_path() -> None:
    with pytest.raises(ConfigError, match=r'"feed\.speed\.x" is missing'):
        ConfigView(FILE)["feed"].typed("speed.x", int)


# --- injected -------------------------------------------------------------------------------------------


class Service:
    name = "service"
    config = Config()
    speed = Config("feed.speed", float, default=0.0)
    missing = Config("feed.missing", int, default=7)
    window = Config("window", Window)
    raw = Config("feed.speed")

    @rpc
    async def values(self) -> Any:
        assert_type(self.config, ConfigView)
        assert_type(self.speed, float)
        assert_type(self.window, Window)
        return [self.speed, self.missing, self.window.size, self.raw, self.config["feed"]["debug"]]

    @rpc
    def values_in_a_thread(self) -> Any:
        return [self.speed, self.missing, self.window.size, self.raw, self.config["feed"]["debug"]]


async def test_a_service_gets_its_values() -> None:
    async with Runner(FILE, [Service]), Client(URI) as client:
        values = await client.call("service", "values")
        in_a_thread = await client.call("service", "values_in_a_thread")

    assert values == in_a_thread == [2.5, 7, 60.0, "2.5", "true"]


@pytest.mark.parametrize(
    ("feed", "said"),
    [
        ({}, r'"feed\.speed" is missing; expected float'),
        ({"speed": "fast"}, r'"feed\.speed": expected `float`, got `str`; the value is \'fast\''),
        ({"speed": None}, r'"feed\.speed": expected `float`, got `null`; the value is None'),
    ],
)
async def test_a_wrong_value_stops_the_start_and_says_whose_it_is(feed: Any, said: str) -> None:
    class Feed:
        name = "feed"
        speed = Config("feed.speed", float)

    with pytest.raises(ConfigError, match=said) as caught:
        await Runner({"AMQP_URI": URI, "feed": feed}, [Feed]).start()

    assert "Feed.speed of service 'feed')" in str(caught.value)


@pytest.mark.parametrize("key", ["", "a..b", ".a"])
def test_a_path_that_cannot_be_is_refused_where_it_is_written(key: str) -> None:
    with pytest.raises(ValueError, match="dotted path"):
        Config(key, int)


async def test_namekos_config_is_a_plain_copy_for_each_worker() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # eventlet announces its own end
        nameko = importlib.import_module("nameko.dependency_providers")

    class Stock:
        name = "stock"
        config = nameko.Config()

        @rpc
        async def spoil(self) -> Any:
            kind = type(self.config).__name__
            self.config["spoiled"] = True
            return [kind, self.config["feed"]["speed"]]

        @rpc
        async def is_spoiled(self) -> bool:
            return "spoiled" in self.config

    async with Runner(FILE, [Stock]), Client(URI) as client:
        spoiled = await client.call("stock", "spoil")
        is_spoiled = await client.call("stock", "is_spoiled")

    assert spoiled == ["dict", "2.5"]
    assert is_spoiled is False
