"""The files of `entrypoints/http` import each other in one direction."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from tests.source import parse

from mycelia.entrypoints.http import paths

PACKAGE = "mycelia.entrypoints.http"


def imported_by(file: Path) -> set[str]:
    """What it imports of the package: at the top, inside functions, and for type checkers alike."""
    tree = parse(file.read_text("utf-8"))
    found = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name.rpartition(".")[2] for name in found if name.startswith(f"{PACKAGE}.")}


def test_no_file_of_the_http_room_is_imported_by_what_it_imports() -> None:
    folder = Path(paths.__file__).parent
    graph = {file.stem: imported_by(file) for file in folder.glob("*.py")}

    assert {"endpoint", "server", "entrypoint"} <= graph.keys()
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError, with the cycle
