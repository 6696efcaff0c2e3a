"""Tools beside Python that some tests use: found, or the test is reported as NOT RUN."""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import NoReturn

import pytest

from mycelia.broker.management_api import ManagementApi
from mycelia.broker.node import PrivateNode

NOT_RUN = "NOT RUN"
"""What a skip's reason begins with when something is missing on this machine; the summary lists these apart."""


def not_run(reason: str) -> NoReturn:
    """Skip the running test because this machine lacks something. The reason appears in the run's summary."""
    pytest.skip(f"{NOT_RUN}: {reason}")


@contextlib.contextmanager
def fresh_vhost(api: ManagementApi, prefix: str) -> Iterator[str]:
    """The name of a virtual host that is there inside the `with` block, and deleted afterwards with all it holds."""
    name = f"{prefix}-{secrets.token_hex(6)}"
    api.create_vhost(name)
    yield name
    api.delete_vhost(name)


def write_out_declarations(node: PrivateNode) -> None:
    """Have the node put on its disk what it has declared, which it would have done within a second: see `PrivateNode.kill()`."""
    node.ctl("eval", "catch mnesia:sync_log(), [dets:sync(Table) || Table <- dets:all()].")


def our_pytest_plugin() -> list[str]:
    """Options of a pytest in a process of its own that have Mycelia's plugin loaded.

    An editable installation that is older than the plugin does not know its entry point.
    """
    is_known = any(one.name == "mycelia" for one in entry_points(group="pytest11"))
    return [] if is_known else ["-p", "pytest_mycelia"]


def version_tuple(version: str) -> tuple[int, ...]:
    """`4.3.6` as `(4, 3, 6)`, to be compared; empty for an unknown version."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


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
