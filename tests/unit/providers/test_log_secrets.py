"""No secret reaches a log line through an object's attributes."""

import logging

from mycelia.amqp.uri import parse_uri
from mycelia.providers.log_events import event_of


def test_an_endpoint_in_a_log_line_shows_no_password() -> None:
    [endpoint] = parse_uri("amqp://ada:s3cret@broker.example:5672/")
    record = logging.LogRecord(
        "mycelia.amqp", logging.INFO, __file__, 1, "connected broker=%s", (endpoint,), None
    )

    _, fields = event_of(record)

    assert fields == {"broker": "broker.example:5672"}
    assert "s3cret" not in record.getMessage()
