"""Optional parts of the installation: found without being imported, and when they have been."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from mycelia import extras
from mycelia.errors import ConfigError


def test_what_has_been_imported_is_there_with_or_without_a_spec(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """kombu, once imported, is a module without one, for which `find_spec()` raises."""
    replaced = ModuleType("kombu")
    replaced.__spec__ = None
    monkeypatch.setitem(sys.modules, "kombu", replaced)

    assert extras.is_installed("nameko")


def test_missing_part_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "http", ("starlette", "no_such_part"))

    with pytest.raises(
        ConfigError, match=r'^page needs no_such_part, which is not .*"mycelia\[http'
    ):
        extras.require_extra("http", "page")
