"""`mycelia.nameko`'s providers of context data: those of `nameko.contextdata`, by the same names, for the same items."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mycelia import nameko as ours

NAMES = ["AuthToken", "Language", "UserAgent", "UserId"]


@pytest.fixture(scope="module")
def keys() -> dict[str, str]:
    """The item that each of Nameko's injects; asked in another process, for importing Nameko changes this one."""
    code = f"from nameko import contextdata as c\nfor name in {NAMES}: print(name, getattr(c, name).context_key)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    return dict(line.split() for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_provider_injects_what_nameko_s_of_that_name_does(name: str, keys: dict[str, str]) -> None:
    provider = getattr(ours, name)()
    context = {key: f"the {key}" for key in keys.values()}

    def injected(data: dict[str, Any]) -> Any:
        return provider.get_dependency(cast("Any", SimpleNamespace(data=data)))

    assert injected(context) == f"the {keys[name]}"
    assert injected({}) is None
