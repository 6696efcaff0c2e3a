"""One idea, one name: no two classes, aliases of types or exported functions of the package are called the same.

A reader who meets `Consumer` in a traceback, a log line or an import knows which one it is.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.source import parse

PACKAGE = Path(__file__).parent.parent / "platform/mycelia"

SHARED_ON_PURPOSE = {
    "main": "each command's entry point, named as Python's own are; always called through its module",
}


def names_of(source: str) -> Iterator[str]:
    """The public names that a module gives its classes and types, and the functions that it exports."""
    module = parse(source)
    exported = set(_exports(module))
    for node in module.body:
        match node:
            case ast.ClassDef(name=name) if not name.startswith("_"):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if name in exported:
                yield name
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if _is_alias(name, value):
                yield name


def _exports(module: ast.Module) -> Iterator[str]:
    for node in module.body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=ast.List(elts=names)):
                yield from (name.value for name in names if isinstance(name, ast.Constant))


def _is_alias(name: str, value: ast.expr) -> bool:
    """Whether `name = value` names a type: written as classes are, and not a variable of types."""
    is_variable = isinstance(value, ast.Call)
    return name[0].isupper() and not name.isupper() and not is_variable


def shared(sources: dict[str, str]) -> dict[str, list[str]]:
    """Which names stand in more than one of the modules `sources`, and in which. Overloads of one module are one."""
    found = defaultdict(list)
    for module, source in sources.items():
        for name in set(names_of(source)):
            found[name].append(module)
    return {name: modules for name, modules in found.items() if len(modules) > 1}


def test_no_two_classes_share_a_name() -> None:
    sources = {
        str(path.relative_to(PACKAGE)): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))
    }

    assert shared(sources).keys() == SHARED_ON_PURPOSE.keys(), shared(sources)


def test_a_shared_name_is_found_whatever_bears_it() -> None:
    sources = {
        "a.py": '__all__ = ["describe"]\nclass Timer: ...\nRun = int\ndef describe(): ...\ndef helper(): ...',
        "b.py": '__all__ = ["describe"]\nclass Run: ...\nTimer = str\ndef describe(): ...\ndef helper(): ...',
        "c.py": "class _Timer: ...\nT = 3\nMAX = 4\nMethod = TypeVar('Method')",
        "d.py": "class _Timer: ...\nT = 3\nMAX = 4\nMethod = TypeVar('Method')",
    }

    assert shared(sources) == {
        "Timer": ["a.py", "b.py"],
        "Run": ["a.py", "b.py"],
        "describe": ["a.py", "b.py"],
    }
