"""No password is printed, whatever is wrong with what holds it, and wherever it is said."""

from __future__ import annotations

import contextlib
import io
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.amqp import connect
from mycelia.amqp.link import LinkOptions
from mycelia.amqp.uri import parse_uri
from mycelia.broker import find_or_start_broker
from mycelia.cli.loading import load_services
from mycelia.cli.main import main
from mycelia.cli.run import read_config
from mycelia.errors import MyceliaError
from mycelia.providers import ConfigView
from mycelia.redaction import brokers_in, redact, redact_words, shown_value
from mycelia.runtime import Settings
from mycelia.runtime.config_file import parse_config


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("amqp://me:secret@rabbit:1/v", "amqp://me:***@rabbit:1/v"),
        ("amqp://rabbit/v", "amqp://rabbit/v"),
        ("amqp://me@rabbit/v", "amqp://me@rabbit/v"),
        ("amqp://me:sec:ret@rabbit", "amqp://me:***@rabbit"),
        ("amqp://me:sec@ret@rabbit", "amqp://me:***@rabbit"),
        ("amqp://a:x@one;amqp://b:y@two", "amqp://a:***@one;amqp://b:***@two"),
        ("amqp://a:x@one;two:5", "amqp://a:***@one;two:5"),
        ("amqp://me:secret@[::1]:5673/v", "amqp://me:***@[::1]:5673/v"),
        ("amqp://me:secret@rabbit?password=secret", "amqp://me:***@rabbit"),
        ("amqp://me:sec/ret@rabbit/v", "amqp://***"),
        ("amqp://me:123/ret@rabbit/v", "amqp://***"),
        ("amqp://me:secret", "amqp://***"),
        ("memory://name", "memory://name"),
        ("secret://me:secret@rabbit", "***"),
        ("me:secret@rabbit", "***"),
        ("secret", "***"),
        ("", ""),
    ],
)
def test_redact_shows_what_is_surely_no_password(uri: str, shown: str) -> None:
    assert redact(uri) == shown


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("max_workers", "ten", "'ten'"),
        ("feed.window", 2.5, "2.5"),
        ("feed.window", None, "None"),
        ("feed", {"password": "x"}, "a mapping with the keys password"),
        ("feed", {}, "an empty mapping"),
        ("feed", ["a", "b"], "a list of 2"),
        ("feed.password", 12345, "not shown here"),
        ("AMQP_SSL", "secret", "not shown here"),
        ("AMQP_SSL.keyfile_password", "secret", "not shown here"),
        ("AMQP_URI", "u:p@h", "not shown here"),
        ("password", None, "None"),
        ("feed.source", "https://u:p@h", "not shown here"),
        ("feed.source", "x" * 100, f"'{'x' * 78}…"),
    ],
)
def test_value_is_shown_where_it_can_be_no_secret(key: str, value: Any, shown: str) -> None:
    assert shown_value(key, value) == shown


# --- wherever it is said ---------------------------------------------------------------------------

BAD_URIS = [
    "u:{}@h",
    "amqp:/u:{}@h/",
    "amqp//u:{}@h",
    "amqp:u:{}@h",
    "amqp://u:{}",
    "amqp://u:{}/v",
    "amqp://u:{}@h:port",
    "amqp://u:{}@h:70000",
    "amqp://u:{}@h:1?heartbeat={}",
    "amqp://u:{}@h/v#x",
    "amqp://u:{}@h/v@w",
    "amqp://u:{}@[h",
    "amqp://u:1#{}@h",
    "amqp://u:1/{}@h",
    "amqp://u:1?{}@h",
    "amqp://u:;{}@h:x",
    "amqp://one;u:{}@two",
    "amqp://one;http://u:{}@two",
    "http://u:{}@h",
    "no-such-scheme://u:{}@h",
    "{}://u:p@h",
    "{}",
]


def say(action: Callable[[], object]) -> str:
    """All that an action prints, and the error that it ends in, whole."""
    out = io.StringIO()
    with contextlib.redirect_stderr(out), contextlib.redirect_stdout(out):
        try:
            out.write(f"{action()!r}\n")
        except SystemExit:  # of argparse, which has said what is wrong
            pass
        except MyceliaError:
            traceback.print_exc(file=out)
    # The traceback quotes lines of source, not values; but it holds each chained error.
    return out.getvalue()


def sayings(uri: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every way in which a URI comes in and something is said of it."""
    yield "parse_uri", lambda: parse_uri(uri)
    yield "connect", lambda: connect(uri)
    yield "settings", lambda: Settings.from_config({"AMQP_URI": uri})
    yield "list", lambda: Settings.from_config({"AMQP_URI": [uri]})
    yield "map", lambda: Settings.from_config({"AMQP_URI": {"uri": uri}})
    yield "ssl", lambda: Settings.from_config({"AMQP_SSL": uri})
    yield "view", lambda: ConfigView({"AMQP_URI": uri}).typed("AMQP_URI", int)
    yield "options", lambda: LinkOptions(ssl={"keyfile_password": uri})
    yield "broker", lambda: repr(find_or_start_broker(environment={"AMQP_URI": uri}))
    yield "--broker", lambda: connect(read_config(None, uri)["AMQP_URI"])
    yield "services", lambda: load_services([uri])
    yield "call", lambda: main(["call", "s.m", "--timeout", "0.01", "--broker", uri])
    yield "misplaced", lambda: main([f"--x={uri}", uri])
    yield "misspelt", lambda: main(["run", "m", "--brocker", uri, "--backdoor-port", uri])


def may_connect(uri: str) -> bool:
    """Is the URI one after all, so that `find_or_start_broker` and `call` would look for the broker?"""
    try:
        return bool(parse_uri(uri))
    except MyceliaError:
        return uri.startswith(("amqp://", "amqps://")) and redact(uri) != "amqp://***"


@pytest.mark.parametrize("form", BAD_URIS)
def test_no_error_and_no_text_shows_the_password(form: str) -> None:
    uri = form.replace("{}", "hunter2")

    for where, action in sayings(uri):
        if where in ("broker", "call") and may_connect(uri):
            continue
        if "hunter2" in (where, form) or (where == "services" and form == "{}"):
            continue  # a module's name is no URI
        if where in ("misplaced", "misspelt") and form == "{}":
            continue
        assert "hunter2" not in say(action), where


awkward = st.text(
    st.characters(exclude_characters="\n\r\x00") | st.sampled_from(" #/?[];:@%'\"*!$&{}")
)


@given(before=awkward, after=awkward, form=st.sampled_from([f for f in BAD_URIS if f != "{}"]))
def test_whatever_stands_around_it_a_password_is_not_shown(
    before: str, after: str, form: str
) -> None:
    uri = form.replace("{}", f"{before}Hunter2Q{after}")
    readable = redact(uri)

    for where, action in sayings(uri):
        if where in ("broker", "call", "services", "misplaced", "misspelt"):
            continue  # argparse and modules take words, not any text; and nobody is to be connected to
        said = say(action)
        # What reads as host, user or path of a good URI is shown as such.
        if "Hunter2Q" not in readable:
            assert "Hunter2Q" not in said, where


@given(password=awkward)
def test_password_of_a_good_uri_is_in_no_text(password: str) -> None:
    from urllib.parse import quote

    try:
        uri = f"amqp://u:{quote(f'Hunter2Q{password}', safe='')}@h:1/v"
    except UnicodeEncodeError:
        return
    endpoints = parse_uri(uri)

    assert redact(uri) == "amqp://u:***@h:1/v"
    assert (
        "Hunter2Q" not in f"{endpoints} {endpoints[0]} {Settings(AMQP_URI=uri)!r} {connect(uri)!r}"
    )


@pytest.mark.parametrize(
    "text",
    [
        "AMQP_URI: *hunter2",
        "password: !hunter2",
        "password: !hunter2 x",
        "AMQP_URI: [hunter2",
        "AMQP_URI: 'hunter2",
        'AMQP_URI: "amqp://u:\\hunter2@h"',
        "password: hunter2: x",
        "password: &hunter2 1\nother: &hunter2 *hunter2x",
        "password: hunter2\x07",
        "{password: hunter2",
        "hunter2",
    ],
)
def test_configuration_that_is_no_yaml_is_told_by_its_place(text: str) -> None:
    said = say(lambda: parse_config(text, source="the file"))

    assert "ConfigError" in said
    assert "hunter2" not in said


def test_a_module_is_looked_for_by_its_name(tmp_path: Path) -> None:
    said = say(lambda: load_services(["no.such.module:Class"]))

    assert 'no module "no.such.module"' in said
    assert "--broker URI" in say(lambda: load_services(["amqp://u:hunter2@h"]))


@given(uri=st.text() | awkward)
def test_brokers_are_what_was_written(uri: str) -> None:
    parts = brokers_in(uri)

    assert all(part == part.strip() and part for part in parts)
    assert "".join("".join(parts).split()).replace(";", "") == "".join(uri.split()).replace(";", "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no such option: --brocker", "no such option: --brocker"),
        ("got 'amqp://u:p w@h' there", "got '***' there"),
        ("got amqp://u:p@h there", "got *** there"),
        ("got u:p@h", "got ***"),
    ],
)
def test_words_with_a_uri_in_them_are_hidden(text: str, shown: str) -> None:
    assert redact_words(text) == shown
