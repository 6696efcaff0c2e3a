"""No import circles: not inside a room of the package, not among the benchmarks, not for type checkers alone.

import-linter holds the order of the rooms (`make lint`); inside a room only this does. Imports under `TYPE_CHECKING` and
inside functions count: a circle of ideas is one, whenever it is followed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from tests.source import parse

ROOT = Path(__file__).parent.parent


def modules_of(directory: Path, package: str) -> dict[str, Path]:
    """The modules below `directory`, by their full names; a package by its own."""
    modules = {}
    for path in sorted(directory.rglob("*.py")):
        parts = [package, *path.relative_to(directory).with_suffix("").parts]
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imported_by(source: str, name: str, known: Iterable[str]) -> Iterator[str]:
    """Which of the modules `known` the module `name` imports, anywhere in its text.

    `from package import name` is an import of `package.name` where that is a module, else of the package.
    """
    known = set(known)
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                if module in known:
                    yield module
                elif node.module in known:
                    yield str(node.module)


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """The names of one circle, the first again at its end; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        circle: list[str] = exc.args[1]
        return circle
    return []


def graph_of(modules: dict[str, Path]) -> dict[str, set[str]]:
    return {
        name: set(imported_by(path.read_text(), name, modules)) for name, path in modules.items()
    }


def rooms() -> list[str]:
    return sorted(path.parent.name for path in (ROOT / "platform/mycelia").glob("*/__init__.py"))


@pytest.mark.parametrize("room", rooms())
def test_no_module_of_a_room_imports_itself_by_way_of_others(room: str) -> None:
    modules = modules_of(ROOT / "platform/mycelia" / room, f"mycelia.{room}")

    assert circle_in(graph_of(modules)) == []


def test_no_module_of_the_package_imports_itself_by_way_of_others() -> None:
    assert circle_in(graph_of(modules_of(ROOT / "platform/mycelia", "mycelia"))) == []


def test_no_benchmark_imports_itself_by_way_of_others() -> None:
    assert circle_in(graph_of(modules_of(ROOT / "benchmarks", "benchmarks"))) == []


def test_a_circle_is_found_wherever_its_imports_stand() -> None:
    sources = {
        "p": "",
        "p.a": "from p import b",
        "p.b": "def late():\n    import p.c",
        "p.c": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import A",
    }

    circle = circle_in(
        {name: set(imported_by(text, name, sources)) for name, text in sources.items()}
    )

    assert set(circle) == {"p.a", "p.b", "p.c"}
