"""Settings: each key checked once, with an error that names it."""

import pytest

from mycelia.errors import ConfigError
from mycelia.runtime import Settings


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
