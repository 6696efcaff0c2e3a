"""What type checkers say of programs that use Mycelia: nothing of right ones, and of mistakes exactly this."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.tools import not_run, require_tool

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

pytestmark = pytest.mark.timeout(300)


FILES = (HERE / "api.py", HERE / "mistakes.py")


@functools.cache
def said_by_mypy() -> str:
    """What mypy, as this project configures it, says of both files: a start of it takes seconds."""
    if importlib.util.find_spec("mypy") is None:
        not_run("mypy is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--explicit-package-bases", *map(str, FILES)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "platform", "MYPY_FORCE_COLOR": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def reported(file: Path) -> list[tuple[int, str]]:
    """The errors in `file`: line and text."""
    found = re.findall(r"^([^:\n]+):(\d+): error: (.*)$", said_by_mypy(), re.MULTILINE)
    return [
        (int(line), text.replace("  [", " [")) for path, line, text in found if ROOT / path == file
    ]


@functools.cache
def said_by_pyright() -> list[dict[str, Any]]:
    """What pyright, as it comes, says of both files."""
    if importlib.util.find_spec("pyright") is None:
        not_run("pyright is not installed")
    require_tool("node")  # else it would fetch one
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"),
            *map(str, FILES),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    said: list[dict[str, Any]] = json.loads(done.stdout)["generalDiagnostics"]
    return said


def lines_reported_by_pyright(file: Path) -> set[int]:
    """Where there is an error in `file`. Its words are its own; that it sees the mistake counts."""
    return {
        one["range"]["start"]["line"] + 1
        for one in said_by_pyright()
        if one["severity"] == "error" and Path(one["file"]) == file
    }


def expected(file: Path) -> list[tuple[int, str]]:
    """What the comments `# error: …` in `file` say of the line below them."""
    wanted: list[tuple[int, str]] = []
    texts: list[str] = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        comment = re.fullmatch(r"\s*# error: (.*)", line)
        if comment is not None:
            texts.append(comment[1])
            continue
        wanted += [(number, text) for text in texts]
        texts.clear()
    return wanted


def test_right_programs_have_nothing_reported() -> None:
    assert "checked 2 source files" in said_by_mypy()
    assert reported(HERE / "api.py") == []


def test_each_mistake_is_reported_where_it_stands_and_nothing_else() -> None:
    wanted = expected(HERE / "mistakes.py")

    assert len(wanted) > 30
    assert reported(HERE / "mistakes.py") == wanted


@pytest.mark.long
def test_pyright_has_nothing_to_report_of_right_programs() -> None:
    assert lines_reported_by_pyright(HERE / "api.py") == set()


@pytest.mark.long
def test_pyright_reports_each_mistake_where_mypy_does() -> None:
    wanted = {line for line, _ in expected(HERE / "mistakes.py")}

    assert lines_reported_by_pyright(HERE / "mistakes.py") == wanted
