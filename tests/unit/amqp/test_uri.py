"""AMQP_URI and AMQP_SSL."""

from __future__ import annotations

import ssl

import kombu
import pytest

from mycelia.amqp.uri import Endpoint, parse_uri, redact, ssl_context
from mycelia.errors import ConfigError


@pytest.mark.parametrize(
    "uri",
    [
        "pyamqp://guest:guest@localhost",
        "amqp://rabbit",
        "amqp://rabbit/",
        "amqp://rabbit//",
        "amqp://rabbit/flights",
        "amqp://rabbit/%2F",
        "amqp://rabbit//flights",
        "amqp://me:p%40ss%2Fword@rabbit:5673/flights",
        "amqp://[::1]:5673/flights",
    ],
)
def test_uri_is_read_as_kombu_reads_it(uri: str) -> None:
    theirs = kombu.Connection(uri)

    (ours,) = parse_uri(uri)

    assert ours == Endpoint(
        host=theirs.hostname,
        port=theirs.port or 5672,
        user=theirs.userid or "guest",
        password=theirs.password or "guest",
        vhost=theirs.virtual_host,
    )


def test_amqps_means_tls_and_its_port() -> None:
    assert parse_uri("amqps://rabbit") == [Endpoint(host="rabbit", port=5671, tls=True)]


def test_several_brokers_are_kept_in_order() -> None:
    endpoints = parse_uri("amqp://u:p@one:1/v;amqp://u:p@two:2/v;three;four:4")

    assert [str(one) for one in endpoints] == ["one:1", "two:2", "three:1", "four:4"]
    assert {(one.user, one.password, one.vhost) for one in endpoints} == {("u", "p", "v")}


def test_heartbeat_in_the_uri() -> None:
    assert parse_uri("amqp://rabbit?heartbeat=7.5&something=else")[0].heartbeat == 7.5


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("", "AMQP_URI is empty"),
        ("rabbit:5672", "has no scheme"),
        ("http://me:secret@rabbit", 'scheme "http"'),
        ("amqp://me:secret@rabbit:port", "cannot be read"),
        ("amqp://me:secret@rabbit?heartbeat=often", "heartbeat='often'"),
    ],
)
def test_unreadable_uri_is_refused_without_its_password(uri: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_uri(uri)

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("amqp://me:secret@rabbit:1/v", "amqp://me:***@rabbit:1/v"),
        ("amqp://rabbit/v", "amqp://rabbit/v"),
        ("amqp://me@rabbit/v", "amqp://me@rabbit/v"),
        ("amqp://me:sec:ret@rabbit", "amqp://me:***@rabbit"),
        ("amqp://me:sec@ret@rabbit", "amqp://me:***@rabbit"),
        ("amqp://me:sec/ret@rabbit/v", "amqp://me:***@rabbit/v"),
        ("amqp://a:x@one;amqp://b:y@two", "amqp://a:***@one;amqp://b:***@two"),
        ("me:secret@rabbit", "me:***@rabbit"),
    ],
)
def test_redact_hides_passwords(uri: str, shown: str) -> None:
    assert redact(uri) == shown


def test_endpoint_does_not_show_its_password() -> None:
    (endpoint,) = parse_uri("amqp://me:secret@rabbit")

    assert "secret" not in f"{endpoint} {endpoint!r}"


def test_no_ssl() -> None:
    assert ssl_context(None) is None
    assert ssl_context(False) is None


def test_ssl_true_verifies_certificate_and_name() -> None:
    context = ssl_context(True)

    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


@pytest.mark.parametrize("value", [ssl.CERT_NONE, 0, "none", "CERT_NONE", "ssl.CERT_NONE"])
def test_cert_reqs_none_checks_nothing(value: object) -> None:
    context = ssl_context({"cert_reqs": value})

    assert context is not None
    assert context.verify_mode is ssl.CERT_NONE
    assert not context.check_hostname


def test_check_hostname_can_be_switched_off() -> None:
    context = ssl_context({"check_hostname": False})

    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert not context.check_hostname


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"cacerts": "x"}, "unknown key cacerts"),
        ({"cert_reqs": "maybe"}, "cert_reqs='maybe'"),
        ({"cert_reqs": 7}, "cert_reqs=7"),
        ({"ca_certs": "/no/such/file"}, "cannot be loaded"),
    ],
)
def test_wrong_ssl_option_is_refused(option: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ssl_context(option)
