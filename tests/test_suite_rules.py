"""What the suite promises of itself: a leaked task fails its test, and what did not run is told."""

from __future__ import annotations

import ast
import fnmatch
import os
import re
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

# Each test starts another pytest, which takes a second on an idle machine and many on a busy one.
pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parent.parent
STEERING = {"CI", "MYCELIA_TEST_TALLY", "MYCELIA_TEST_TALLY_AGAIN", "MYCELIA_TEST_TALLY_RUN"}


def _run_suite(folder: Path, test: str, *arguments: str, **environment: str) -> tuple[int, str]:
    """Run a test file under this suite's configuration; return the exit status and what pytest said."""
    file = folder / "test_inner.py"
    file.write_text(test)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"),
            *("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), str(file)),
            *arguments,
        ],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key not in STEERING} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def said_without_a_broker(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str]:
    """What a run of `VARIOUS` without the long ones comes to, on a machine without a broker: one pytest for all that look at it."""
    folder = tmp_path_factory.mktemp("various")
    return _run_suite(folder, VARIOUS, "-m", "not long", "-v", MYCELIA_RABBITMQ_SCRIPTS=str(folder))


VARIOUS = """
import asyncio
import pytest
from tests.tools import require_tool

async def test_leaks():
    global task
    task = asyncio.create_task(asyncio.Event().wait(), name="forgotten")

async def test_cleans_up():
    asyncio.create_task(asyncio.Event().wait(), name="cancelled").cancel()

@pytest.mark.long_variants("two-*", "three")
@pytest.mark.parametrize("way", ["one", "two-a", "two-b", "twofold", "three"])
def test_goes(way): pass

def test_wants_a_broker(rabbit_uri): pass

def test_needs_a_tool(): require_tool("no-such-tool")

def test_has_a_tool(): assert require_tool("no-such-tool", "sh").endswith("/sh")
"""


def _outcomes(said: str) -> dict[str, list[str]]:
    """What has become of each test, of its own and of what comes after it."""
    found: dict[str, list[str]] = {}
    for name, outcome in re.findall(r"::(test_\S+) ([A-Z]{2,})\b", said):
        found.setdefault(name, []).append(outcome)
    return found


def test_leaked_task_fails_its_test_by_name(said_without_a_broker: tuple[int, str]) -> None:
    status, said = said_without_a_broker
    outcomes = _outcomes(said)

    assert status == 1
    assert outcomes["test_leaks"] == ["PASSED", "ERROR"]
    assert outcomes["test_cleans_up"] == ["PASSED"]
    assert "the test left 1 tasks running" in said
    assert "forgotten" in said


def test_variants_that_are_named_are_long_and_the_others_are_not(
    said_without_a_broker: tuple[int, str],
) -> None:
    _, said = said_without_a_broker

    assert {one for one in _outcomes(said) if "goes" in one} == {
        "test_goes[one]",
        "test_goes[twofold]",
    }
    assert "3 deselected" in said


def test_what_runs_on_every_release_of_rabbitmq_has_the_variants_of_both_brokers() -> None:
    """Their fixture asks for a broker as it runs only: by its name nobody would know them."""
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "rabbit", "tests/logs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    variants = set(re.findall(r"test_append_and_read\.py::\w+\[(\w+)", found))

    assert "rabbit" in variants
    assert "memory" not in variants


def test_absent_broker_is_told_as_not_run(said_without_a_broker: tuple[int, str]) -> None:
    _, said = said_without_a_broker

    assert _outcomes(said)["test_wants_a_broker"] == ["SKIPPED"]
    assert "no RabbitMQ" in said
    assert "1 test NOT RUN: rabbitmq-server is not installed" in said


def test_absent_tool_is_told_as_not_run(said_without_a_broker: tuple[int, str]) -> None:
    _, said = said_without_a_broker
    outcomes = _outcomes(said)

    assert outcomes["test_needs_a_tool"] == ["SKIPPED"]
    assert outcomes["test_has_a_tool"] == ["PASSED"]
    assert "1 test NOT RUN: no-such-tool is not installed" in said


def test_what_did_not_run_is_no_failure(tmp_path: Path) -> None:
    status, said = _run_suite(
        tmp_path,
        "def test_wants_a_broker(rabbit_uri): pass\ndef test_wants_none(): pass\n",
        MYCELIA_RABBITMQ_SCRIPTS=str(tmp_path),
    )

    assert status == 0
    assert "1 passed, 1 skipped" in said


@pytest.mark.long
@pytest.mark.timeout(300)
def test_long_variants_are_named_as_they_are(tmp_path: Path) -> None:
    """A misspelt one would be run by `make test` for ever."""
    named: dict[str, list[str]] = {}
    for file in ROOT.glob("tests/**/test_*.py"):
        text = file.read_text("utf-8")
        if "pytest.mark.long_variants" in text and file != Path(__file__):
            for marked in re.findall(r"mark\.long_variants\((.*?)\)\n", text, re.DOTALL):
                named.setdefault(str(file), []).extend(ast.literal_eval(f"[{marked}]"))
    ids = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "long", *named],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    variants = re.findall(r"\[(.*)\]$", ids, re.MULTILINE)

    unknown = [
        f"{file}: {pattern}"
        for file, patterns in named.items()
        for pattern in patterns
        if not fnmatch.filter(variants, pattern)
    ]
    assert len(named) > 10
    assert unknown == []


def test_absent_broker_fails_the_run_in_ci(tmp_path: Path) -> None:
    status, said = _run_suite(
        tmp_path,
        "def test_wants_a_broker(rabbit_uri): pass\n",
        MYCELIA_RABBITMQ_SCRIPTS=str(tmp_path),
        CI="true",
    )

    assert status == 1
    assert "CI must run the rabbit tests" in said


@pytest.mark.long
def test_runs_are_summed_up_and_what_passed_alone_is_listed_as_flaky(tmp_path: Path) -> None:
    file = tmp_path / "tally"
    test = (
        "import os, pytest\n"
        "def test_passes(): pass\n"
        "def test_skips(): pytest.skip('no')\n"
        "def test_fails(): assert False\n"
        "def test_is_flaky(): assert 'MYCELIA_TEST_TALLY_AGAIN' in os.environ\n"
    )
    again = test.replace("def test_passes(): pass\n", "").replace("def test_skips", "def _skips")
    noted = {"MYCELIA_TEST_TALLY": str(file), "MYCELIA_TEST_TALLY_RUN": "all tests"}
    _run_suite(tmp_path, test, **noted)
    _run_suite(tmp_path, again, **noted, MYCELIA_TEST_TALLY_AGAIN="1")
    _run_suite(tmp_path, "def test_passes(): pass\n", **noted)

    said = subprocess.run(
        [ROOT / "scripts" / "tally", file], capture_output=True, text=True, check=True
    )
    flaky, total = said.stdout.splitlines()
    assert flaky.startswith("FLAKY, passed alone: all tests: ")
    assert flaky.endswith("::test_is_flaky")
    assert total == "3 passed, 1 failed, 1 skipped"


@pytest.mark.long
def test_run_in_several_processes_is_counted_once(tmp_path: Path) -> None:
    """Each process of pytest-xdist has a summary of its own."""
    file = tmp_path / "tally"
    test = "def test_one(): pass\ndef test_two(): pass\ndef test_three(): assert False\n"

    _run_suite(tmp_path, test, "-n", "2", MYCELIA_TEST_TALLY=str(file))

    assert file.read_text().splitlines()[0] == "first 2 1 0"
    assert len(file.read_text().splitlines()) == 2  # and who failed


@pytest.mark.long
def test_what_takes_long_is_begun_first_and_then_the_files_with_most_tests(tmp_path: Path) -> None:
    (tmp_path / "test_few.py").write_text("def test_few(): pass\n")
    (tmp_path / "test_many.py").write_text("def test_many(): pass\ndef test_more(): pass\n")
    slow = "import pytest\n@pytest.mark.timeout(300)\ndef test_slow(): pass\n"
    (tmp_path / "test_slow.py").write_text(slow)
    few, many = str(tmp_path / "test_few.py"), str(tmp_path / "test_many.py")
    one_worker = ("-n", "1", "--dist", "loadfile", "--no-loadscope-reorder", "-v")

    _, said = _run_suite(
        tmp_path, "def test_inner(): pass\n", few, many, str(tmp_path / "test_slow.py"), *one_worker
    )

    begun = re.findall(r"PASSED .*::test_(\w+)", said)
    assert begun == ["slow", "many", "more", "inner", "few"]


def test_pythons_are_found_under_pyenv_and_missing_ones_are_told(tmp_path: Path) -> None:
    """What has the right name and does not run is no Python: pyenv puts such programs on PATH."""
    on_path, under_pyenv = tmp_path / "python3.98", tmp_path / "versions/3.98.1/bin/python"
    under_pyenv.parent.mkdir(parents=True)
    on_path.write_text("#!/bin/sh\nexit 127\n")
    under_pyenv.write_text("#!/bin/sh\necho 3.98\n")
    for program in (on_path, under_pyenv):
        program.chmod(0o755)

    done = subprocess.run(
        [ROOT / "scripts" / "pythons", "3.98", "3.99"],
        cwd=ROOT,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "PYENV_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == f"3.98 {under_pyenv}\n"
    assert "NOT RUN: the tests on Python 3.99" in done.stderr


def test_release_that_cannot_be_had_is_told_as_not_run() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "with-rabbitmq", "3.9", "echo", "ran"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert "ran\n" not in done.stdout
    assert "NOT RUN: the tests on RabbitMQ 3.9" in done.stdout
    assert "no Debian is known that has it" in done.stderr


def test_property_tests_are_not_judged_by_the_clock() -> None:
    """A busy machine is no finding; `conftest` says so once for all of them."""
    assert hypothesis.settings().deadline is None
