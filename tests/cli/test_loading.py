"""What Ctrl-C does while the `mycelia` command is still being loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.processes import environment

import mycelia_command

# In place of the package: it is interrupted as it is imported, and would go on.
INTERRUPTED = """
import os, signal
os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    made = tmp_path / "mycelia" / "cli"
    made.mkdir(parents=True)
    (made.parent / "__init__.py").write_text(INTERRUPTED)
    (made / "__init__.py").touch()
    (made / "main.py").write_text("def main():\n    print('loaded')\n    return 3\n")
    return tmp_path


def loaded(package: Path, before: str = "") -> tuple[int, str, str]:
    beside = str(Path(mycelia_command.__file__).parent)
    said = f"import sys; sys.path[:0] = [{str(package)!r}, {beside!r}]; {before}import mycelia_command; sys.exit(mycelia_command.main())"
    done = subprocess.run(
        [sys.executable, "-c", said], env=environment(), capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


def test_ctrl_c_in_the_first_imports_ends_it_without_a_word(package: Path) -> None:
    assert loaded(package) == (130, "", "")


def test_sigint_that_is_ignored_stays_so(package: Path) -> None:
    ignoring = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    assert loaded(package, ignoring) == (3, "loaded\n", "")


def test_ctrl_c_that_no_command_hears_ends_it_without_a_word(package: Path) -> None:
    (package / "mycelia" / "__init__.py").write_text("")
    main = package / "mycelia" / "cli" / "main.py"
    main.write_text(
        "import os, signal\ndef main():\n    os.kill(os.getpid(), signal.SIGINT)\n    while True: pass\n"
    )
    assert loaded(package) == (130, "", "")
