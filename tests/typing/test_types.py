"""What type checkers say of programs that use Mycelia: nothing of right ones, and of mistakes exactly this."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.tools import not_run, require_tool

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

pytestmark = pytest.mark.timeout(300)


def reported(file: Path) -> list[tuple[int, str]]:
    """What mypy, as this project configures it, reports of `file`: line and text."""
    if importlib.util.find_spec("mypy") is None:
        not_run("mypy is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--explicit-package-bases", str(file)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "platform", "MYPY_FORCE_COLOR": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = re.findall(r"^[^:\n]+:(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    return [(int(line), text.replace("  [", " [")) for line, text in found]


def lines_reported_by_pyright(file: Path) -> set[int]:
    """Where pyright, as it comes, reports an error in `file`. Its words are its own; that it sees the mistake counts."""
    if importlib.util.find_spec("pyright") is None:
        not_run("pyright is not installed")
    require_tool("node")  # else it would fetch one
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pyright",
            "--pythonpath",
            sys.executable,
            "--outputjson",
            str(file),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    said = json.loads(done.stdout)["generalDiagnostics"]
    return {one["range"]["start"]["line"] + 1 for one in said if one["severity"] == "error"}


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
    assert reported(HERE / "api.py") == []


def test_each_mistake_is_reported_where_it_stands_and_nothing_else() -> None:
    wanted = expected(HERE / "mistakes.py")

    assert len(wanted) > 30
    assert reported(HERE / "mistakes.py") == wanted


def test_pyright_has_nothing_to_report_of_right_programs() -> None:
    assert lines_reported_by_pyright(HERE / "api.py") == set()


def test_pyright_reports_each_mistake_where_mypy_does() -> None:
    wanted = {line for line, _ in expected(HERE / "mistakes.py")}

    assert lines_reported_by_pyright(HERE / "mistakes.py") == wanted
