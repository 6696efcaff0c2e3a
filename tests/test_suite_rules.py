"""What the suite promises of itself: a leaked task fails its test, and what did not run is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Each test starts another pytest, which takes a second on an idle machine and many on a busy one.
pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parent.parent


def _run_suite(folder: Path, test: str, **environment: str) -> tuple[int, str]:
    """Run a test file under this suite's configuration; return the exit status and what pytest said."""
    file = folder / "test_inner.py"
    file.write_text(test)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"),
            *("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), str(file)),
        ],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key != "CI"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_leaked_task_fails_its_test_by_name(tmp_path: Path) -> None:
    status, said = _run_suite(
        tmp_path,
        "import asyncio\n"
        "async def test_leaks():\n"
        "    global task\n"
        "    task = asyncio.create_task(asyncio.Event().wait(), name='forgotten')\n"
        "async def test_cleans_up():\n"
        "    asyncio.create_task(asyncio.Event().wait(), name='cancelled').cancel()\n",
    )

    assert status == 1
    assert "the test left 1 tasks running" in said
    assert "forgotten" in said
    assert "2 passed, 1 error" in said


def test_absent_broker_is_told_as_not_run(tmp_path: Path) -> None:
    status, said = _run_suite(
        tmp_path,
        "def test_wants_a_broker(rabbit_uri): pass\ndef test_wants_none(): pass\n",
        MYCELIA_RABBITMQ_SCRIPTS=str(tmp_path),
    )

    assert status == 0
    assert "no RabbitMQ" in said
    assert "1 test NOT RUN: rabbitmq-server is not installed" in said
    assert "1 passed, 1 skipped" in said


def test_absent_broker_fails_the_run_in_ci(tmp_path: Path) -> None:
    status, said = _run_suite(
        tmp_path,
        "def test_wants_a_broker(rabbit_uri): pass\n",
        MYCELIA_RABBITMQ_SCRIPTS=str(tmp_path),
        CI="true",
    )

    assert status == 1
    assert "CI must run the rabbit tests" in said


def test_absent_tool_is_told_as_not_run(tmp_path: Path) -> None:
    status, said = _run_suite(
        tmp_path,
        "from tests.tools import require_tool\n"
        "def test_needs_it(): require_tool('no-such-tool')\n"
        "def test_has_it(): assert require_tool('no-such-tool', 'sh').endswith('/sh')\n",
    )

    assert status == 0
    assert "1 test NOT RUN: no-such-tool is not installed" in said
    assert "1 passed, 1 skipped" in said
