"""What a log record says, taken apart into a name and fields."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mycelia
from mycelia.providers.log_events import event_of, parse_template


def record(name: str, message: Any, *args: Any) -> logging.LogRecord:
    return logging.LogRecord(name, logging.INFO, __file__, 1, message, args, None)


@pytest.mark.parametrize(
    ("message", "args", "event", "fields"),
    [
        ("service_started service=%s", ("echo",), "service_started", {"service": "echo"}),
        ("started", (), "started", {}),
        ("dropped: too late", (), "dropped", {"detail": "too late"}),
        ("late thread=%s: too late", ("t",), "late", {"thread": "t", "detail": "too late"}),
        (
            "extension_%s_failed service=%s",
            ("stop", "e"),
            "extension_stop_failed",
            {"service": "e"},
        ),
        (
            "service_draining service=%s workers=%d grace_s=%g",
            ("echo", 3, 2.5),
            "service_draining",
            {"service": "echo", "workers": 3, "grace_s": 2.5},
        ),
        (
            "grace_over service=%s unfinished=%d: cancelled; their messages go back",
            ("echo", 3),
            "grace_over",
            {"service": "echo", "unfinished": 3, "detail": "cancelled; their messages go back"},
        ),
        (
            "worker_raised call=%s error=%s: %s",
            ("a.b", "KeyError", "x"),
            "worker_raised",
            {"call": "a.b", "error": "KeyError: x"},
        ),
        ("half_done progress=50%", (), "half_done", {"progress": "50%"}),
        ("said text=%s", ("forged=1 more=2",), "said", {"text": "forged=1 more=2"}),
    ],
)
def test_records_of_our_own_layers_have_fields(
    message: str, args: tuple[Any, ...], event: str, fields: dict[str, Any]
) -> None:
    assert event_of(record("mycelia.runtime", message, *args)) == (event, fields)


@pytest.mark.parametrize(
    ("name", "message", "args", "text"),
    [
        ("other", "retrying attempt=%d", (2,), "retrying attempt=2"),
        ("mycelia.amqp", "Some prose about x=%s", (1,), "Some prose about x=1"),
        ("mycelia.amqp", "odd a=%(a)s", ({"a": 1},), "odd a=1"),
        ("mycelialike", "event a=%s", (1,), "event a=1"),
    ],
)
def test_everything_else_stays_the_text_it_is(
    name: str, message: str, args: tuple[Any, ...], text: str
) -> None:
    assert event_of(record(name, message, *args)) == (text, {})


@given(st.lists(st.text() | st.integers() | st.floats(allow_nan=False), max_size=5))
def test_values_are_never_read_as_fields(values: list[Any]) -> None:
    message = "event " + " ".join(f"k{n}=%s" for n in range(len(values)))

    event, fields = event_of(record("mycelia.x", message, *values))

    assert event == "event"
    assert list(fields.values()) == values


def test_every_message_of_the_package_can_be_taken_apart() -> None:
    """Each `log.…("event key=%s")` in the source: a form that is not understood would end up as prose."""
    import ast

    messages = []
    for file in Path(mycelia.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "log"
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                arguments = len(node.args) - 1
                messages.append((file.name, node.lineno, node.args[0].value, arguments))

    odd = [
        m for m in messages if (template := parse_template(m[2])) is None or template.taken != m[3]
    ]

    assert odd == []
