"""AMQP_URI and AMQP_SSL."""

from __future__ import annotations

import ssl
from typing import Any
from urllib.parse import quote

import kombu
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.amqp.uri import Endpoint, parse_uri, ssl_context
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
        (" ; ;", "AMQP_URI is empty"),
        ("rabbit:5672", "has no scheme"),
        ("http://me:secret@rabbit", 'no link speaks "http"'),
        ("amqp://me:secret@rabbit:port", "host or a port that cannot be one"),
        ("amqp://me:secret@rabbit:70000", "a port above 65535"),
        ("amqp://me:secret@rabbit:99999999999999999999", "a port above 65535"),
        ("amqp://me:secret@rabbit?heartbeat=often", "a heartbeat that is no number"),
        ("amqp://me:secret@rabbit?heartbeat=nan", "a heartbeat that is no number"),
        ("amqp://me:secret@rabbit?heartbeat=-1", "a heartbeat that is no number"),
        ("amqp://rabbit;me:secret@other", "neither host:port nor a whole URI"),
    ],
)
def test_unreadable_uri_is_refused_without_its_password(uri: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_uri(uri)

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("amqp://me:se#cret@rabbit/v", 'a "#" in it'),
        ("amqp://me:123#cret@rabbit/v", 'a "#" in it'),
        ("amqp://me:se/cret@rabbit/v", '"@" behind its first "/"'),
        ("amqp://me:123/cret@rabbit/v", '"@" behind its first "/"'),
        ("amqp://me:se?cret@rabbit/v", '"@" behind its first "/"'),
        ("amqp://me:secret", "host or a port that cannot be one"),
    ],
)
def test_what_must_be_percent_encoded_is_said(uri: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_uri(uri)

    assert "%23 %2F %3F %5B %5D %3B" in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "passwords"),
    [
        ("amqp://u:p;w@one/v", ["p;w"]),
        ("amqp://u:p;w@one/v;amqp://u:x;;y@two/v", ["p;w", "x;;y"]),
        ("amqp://u:p@one;two;three:1", ["p", "p", "p"]),
        ("amqp://one;amqp://u:p@two", ["guest", "p"]),
        ("amqp://one:5672;amqp://u:p@two", ["guest", "p"]),
        ("amqp://u:p%3Bw@one;two", ["p;w", "p;w"]),
        ("amqp://u:p@w@one", ["p@w"]),
        ("amqp://u:p[w]@one", ["p[w]"]),
    ],
)
def test_semicolon_separates_brokers_but_not_within_a_password(
    uri: str, passwords: list[str]
) -> None:
    assert [one.password for one in parse_uri(uri)] == passwords


@given(password=st.text(min_size=1), user=st.text(min_size=1))
def test_any_password_that_is_percent_encoded_is_read(user: str, password: str) -> None:
    try:
        encoded = f"{quote(user, safe='')}:{quote(password, safe='')}"
    except UnicodeEncodeError:  # half of a surrogate pair
        return

    (one, two) = parse_uri(f"amqp://{encoded}@one:1/v;two")

    assert {(e.user, e.password, e.vhost) for e in (one, two)} == {(user, password, "v")}


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
        ({7: "x"}, "unknown key 7"),
        ("secret", "neither true nor false nor a map"),
    ],
)
def test_wrong_ssl_option_is_refused(option: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ssl_context(option)
