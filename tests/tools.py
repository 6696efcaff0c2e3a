"""Tools beside Python that some tests use: found, or the test is reported as NOT RUN."""

from __future__ import annotations

import re
import shutil
from typing import NoReturn

import pytest

NOT_RUN = "NOT RUN"
"""What a skip's reason begins with when something is missing on this machine; the summary lists these apart."""


def not_run(reason: str) -> NoReturn:
    """Skip the running test because this machine lacks something. The reason appears in the run's summary."""
    pytest.skip(f"{NOT_RUN}: {reason}")


def require_tool(*names: str) -> str:
    """Return the path of the first tool that is installed; without any, the running test is reported as NOT RUN."""
    for name in names:
        path = shutil.which(name)
        if path:
            return path
    what = names[0] if len(names) == 1 else f"none of {', '.join(names)}"
    pytest.skip(f"{NOT_RUN}: {what} is not installed")


def stable_id(value: object) -> str:
    """A test id for a parameter: its `repr`, the same in every run and process (no addresses)."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
