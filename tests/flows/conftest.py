"""What the tests of flows share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.cli.commands import MyceliaCommand


@pytest.fixture(scope="package")
def mycelia() -> Iterator[MyceliaCommand]:
    """Runs the command `mycelia`: `mycelia("flow", …, cwd=tmp_path)`."""
    command = MyceliaCommand()
    yield command
    command.close()
