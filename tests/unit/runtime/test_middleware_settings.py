"""`mycelia: middleware:`, an entry with settings."""

import sys
from typing import Any

import pytest

from mycelia import Runner, rpc
from mycelia.errors import ConfigError
from mycelia.runtime.middleware import load_middleware

HERE = __name__


class Counted:
    made: list[dict[str, Any]] = []  # noqa: RUF012  for the tests to read

    def __init__(self, **settings: Any) -> None:
        self.made.append(settings)

    def middleware(self, direction: Any, target: Any) -> None:
        return None


class Strict:
    def __init__(self, *, per_second: int) -> None:
        if per_second < 1:
            raise ConfigError("per_second must be at least 1.")

    def middleware(self, direction: Any, target: Any) -> None:
        return None


async def plain(call: Any, next: Any) -> Any:
    return await next(call)


class Service:
    name = "service"

    @rpc
    def nothing(self) -> None: ...


def test_class_is_made_with_its_settings_as_keyword_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "middleware_settings", sys.modules[HERE])
    Counted.made.clear()
    path = "middleware_settings.Counted"
    Runner({"mycelia": {"middleware": [path, {path: {"limit": 5, "of": ["a"]}}]}}, [Service])

    assert Counted.made == [{}, {"limit": 5, "of": ["a"]}]


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        (
            {"middleware_settings.Strict": {"per_second": 0}},
            r'Strict": per_second must be at least 1',
        ),
        (
            {"middleware_settings.Strict": {"per_minute": 1}},
            "cannot be made with its settings: TypeError",
        ),
        ("middleware_settings.Strict", "cannot be made without arguments"),
        ({"middleware_settings.plain": {"a": 1}}, "is no class, and takes no settings"),
        ({"middleware_settings.Strict": 5}, "expected a dotted path, or one with the settings"),
        ({"a.b": {}, "c.d": {}}, "expected a dotted path, or one with the settings"),
        ({"a.b": {"not a name": 1}}, "expected a dotted path, or one with the settings"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_path(
    entry: Any, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "middleware_settings", sys.modules[HERE])
    with pytest.raises(ConfigError, match=complaint):
        load_middleware([entry])
