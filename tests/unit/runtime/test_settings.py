"""Settings: each key checked once, with an error that names it."""

from typing import Any

import pytest

from mycelia.errors import ConfigError
from mycelia.runtime import Settings
from mycelia.runtime.settings import OF_HTTP, OF_THE_BROKER, USED_BY_SOME, misspelt_keys


def test_defaults_are_namekos() -> None:
    settings = Settings.from_config({})

    assert settings.rpc_exchange == "nameko-rpc"
    assert settings.HEARTBEAT == 60
    assert settings.parent_calls_tracked == 10
    assert settings.max_workers is None


def test_keys_of_the_users_own_services_are_left_alone() -> None:
    assert Settings.from_config({"my_service": {"anything": object()}}).max_workers is None


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"max_workers": "ten"}, ["max_workers", "int", "str", "'ten'"]),
        ({"max_workers": 0}, ["max_workers", "at least 1"]),
        ({"AMQP_URI": 5}, ["AMQP_URI", "str", "not shown here"]),
        ({"mycelia": {"rpc_timeout": "long"}}, ["mycelia.rpc_timeout", "float", "'long'"]),
        ({"mycelia": {"rpc_timeout": -1}}, ["rpc_timeout", "greater than 0"]),
        ({"mycelia": {"rpc_timout": 3}}, ["mycelia.rpc_timout", "unknown", "rpc_timeout"]),
        ({"mycelia": {"zzz": 3}}, ["mycelia.zzz", "Known keys"]),
        ({"mycelia": 3}, ["mycelia", "3"]),
        ({"mycelia": {"event_queue_type": "fast"}}, ["event_queue_type", "quorum"]),
        ({"mycelia": {"rpc_queue_type": "stream"}}, ["rpc_queue_type", "classic"]),
        ({"ACCEPT": "json"}, ["ACCEPT", "array", "'json'"]),
    ],
)
def test_a_wrong_value_is_told_with_key_expected_and_found(
    config: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_config(config)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("key", "keys"),
    [
        ("AMQP_URI", OF_THE_BROKER),
        ("HEARTBEAT", OF_THE_BROKER),
        ("AMQP_SSL", OF_THE_BROKER),
        ("rpc_exchange", OF_THE_BROKER),
        ("WEB_SERVER_ADDRESS", OF_HTTP),
    ],
)
def test_wrong_type_of_a_key_is_said_to_those_who_use_it(key: str, keys: frozenset[str]) -> None:
    config: dict[str, object] = {key: ["x"], "max_workers": 3}

    assert Settings.from_config(config, unchecked=USED_BY_SOME).max_workers == 3
    with pytest.raises(ConfigError, match=key):
        Settings.demand(config, keys)
    for others in (OF_THE_BROKER, OF_HTTP):
        if others is not keys:
            Settings.demand(config, others)


def test_wrong_types_that_are_used_are_said_though_others_are_not_checked() -> None:
    with pytest.raises(ConfigError, match="max_workers"):
        Settings.from_config({"HEARTBEAT": "x", "max_workers": "ten"}, unchecked=USED_BY_SOME)


@pytest.mark.parametrize(
    "key",
    [
        *("TRANSPORT_OPTIONS", "LOGIN_METHOD", "SERVICE_CONTAINER_CLS"),
        *("AUTO_DELETE_EVENT_EXCHANGES", "DECLARE_EVENT_EXCHANGES"),
    ],
)
def test_what_nobody_reads_as_a_type_may_be_of_any(key: str) -> None:
    Settings.from_config({key: object()})


def test_port_alone_is_an_address() -> None:
    assert Settings.from_config({"WEB_SERVER_ADDRESS": 8000}).WEB_SERVER_ADDRESS == "8000"


@pytest.mark.parametrize(
    ("config", "meant"),
    [
        ({"AMQP_URL": "x"}, {"AMQP_URL": "AMQP_URI"}),
        ({"amqp_uri": "x"}, {"amqp_uri": "AMQP_URI"}),
        ({"max_worker": 3, "Mycelia": {}}, {"max_worker": "max_workers", "Mycelia": "mycelia"}),
        ({"AMQP_URI": "x", "AMQP_URL": "y"}, {}),  # a service may have one of its own
        ({"DB_URIS": {}, "LOG_LEVEL": "x", "timeout": 3, 7: "x"}, {}),
    ],
)
def test_key_that_is_nearly_a_known_one_is_told_apart_from_the_services_own(
    config: dict[str, Any], meant: dict[str, str]
) -> None:
    assert misspelt_keys(config) == meant


def test_half_a_character_is_refused_with_its_key_and_without_its_value() -> None:
    with pytest.raises(ConfigError, match=r"^AMQP_SSL holds half a character") as raised:
        Settings.from_config({"AMQP_SSL": "u:secret\ud800@h", "max_workers": 3})

    assert "secret" not in str(raised.value)
