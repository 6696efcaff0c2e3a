"""`LOGGING` of an existing service: errors of ours are seen whatever it says. Each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

PROGRAM = """
import json, logging, sys
import mycelia
from mycelia.log_event import event
from mycelia.providers import configure_logging

mine = logging.getLogger("mycelia.runtime")
others = logging.getLogger("somebody.else")
configure_logging({"LOGGING": json.loads(sys.argv[1]), "AMQP_URI": "memory://x"})
try:
    raise KeyError("lost")
except KeyError as exc:
    mine.error(event("worker_failed", call="svc.m"), exc_info=exc)
mine.info(event("service_started"))
others.error("from elsewhere")
"""

CONSOLE = {"handlers": {"console": {"class": "logging.StreamHandler"}}}
QUIET_HANDLER = {"handlers": {"console": {"class": "logging.StreamHandler", "level": "CRITICAL"}}}
NULL = {"handlers": {"console": {"class": "logging.NullHandler"}}}
ROOT = {"root": {"level": "INFO", "handlers": ["console"]}}


def said(block: dict[str, Any]) -> str:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps({"version": 1, **block})],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return run.stderr


@pytest.mark.parametrize(
    "block",
    [
        CONSOLE | ROOT,
        CONSOLE | ROOT | {"disable_existing_loggers": True},
        CONSOLE | ROOT | {"disable_existing_loggers": False},
        CONSOLE | {"root": {"level": "CRITICAL", "handlers": ["console"]}},
        CONSOLE | {"loggers": {"app": {"handlers": ["console"]}}},
        CONSOLE | {"loggers": {"mycelial": {"handlers": ["console"]}}},
        QUIET_HANDLER | ROOT,
        NULL | ROOT,
        {},
    ],
    ids=json.dumps,
)
def test_errors_of_ours_are_seen(block: dict[str, Any]) -> None:
    text = said(block)

    assert text.count("worker_failed") == 1
    assert "KeyError: 'lost'" in text


def test_what_the_block_lets_through_is_seen_as_it_says() -> None:
    formatted = {
        "formatters": {"f": {"format": "%(name)s|%(message)s"}},
        "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "f"}},
    }

    text = said(formatted | ROOT)

    assert "mycelia.runtime|worker_failed call=svc.m\n" in text
    assert "mycelia.runtime|service_started\n" in text


def test_loggers_of_others_are_treated_as_the_block_says() -> None:
    assert "from elsewhere" not in said(CONSOLE | ROOT)
    assert "from elsewhere" in said(CONSOLE | ROOT | {"disable_existing_loggers": False})


@pytest.mark.parametrize(
    "logger", [{"level": "CRITICAL"}, {"handlers": ["console"], "propagate": False}]
)
def test_block_that_speaks_of_our_loggers_rules_them(logger: dict[str, Any]) -> None:
    text = said(NULL | {"loggers": {"mycelia": logger}})

    assert "worker_failed" not in text
