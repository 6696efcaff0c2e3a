"""What kombu's consumers get as a message's body."""

from __future__ import annotations

import pytest

from mycelia.nameko.queue_consumer import py_amqp_body


@pytest.mark.parametrize(
    ("encoding", "body", "given"),
    [
        ("utf-8", "é".encode(), "é"),
        ("binary", b"\xff", b"\xff"),
        (None, b"text", b"text"),
        ("utf-8", b"\xff", b"\xff"),
        ("no such encoding", b"text", b"text"),
        ("punycode", b"a" * 1000, b"a" * 1000),  # whose time grows with the square of the length
    ],
)
def test_text_is_made_of_the_encodings_that_are_read_and_of_no_others(
    encoding: str | None, body: bytes, given: str | bytes
) -> None:
    assert py_amqp_body(body, encoding) == given
