"""Virtual environments of this suite's packages, with and without the hook of `mycelia nameko-hook install`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tests.processes import ROOT, environment

__all__ = ["Environment"]

STARTS = """import sys, os; name = os.environ.get("STARTS"); name and open(name, "a").write(f"{os.getpid()} {' '.join(sys.orig_argv[1:])}\\n")
"""
"""A line that tells of each start of an interpreter that has come so far: it is read after Mycelia's, and in a virtual
environment twice."""


class Environment:
    """A virtual environment without pip that finds this suite's packages, and Mycelia unless it is to be gone.

    Made in a moment, where an installation takes a minute (tests/test_packaging.py has those).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.packages = Path(
            sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
        )
        venv.create(folder, symlinks=True)
        shutil.copy(Path(sys.executable).with_name("nameko"), folder / "bin")
        script = folder / "bin" / "nameko"
        script.write_text(f"#!{self.python}\n" + script.read_text().partition("\n")[2])
        (self.packages / "a_dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        (self.packages / "a_mycelia.pth").write_text(f"{ROOT / 'platform'}\n")
        (self.packages / "z_starts.pth").write_text(STARTS)
        self._starts = folder / "starts.txt"

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    @property
    def nameko(self) -> str:
        return str(self.folder / "bin" / "nameko")

    @property
    def variables(self) -> dict[str, str]:
        """All of a command's environment; with nothing but what the environment's own files bring to its path."""
        return environment(PYTHONPATH="", STARTS=str(self._starts))

    @property
    def hook(self) -> Path:
        """Where the hook is, once it is."""
        return self.packages / "mycelia-nameko.pth"

    def uninstall_mycelia(self) -> None:
        (self.packages / "a_mycelia.pth").unlink()

    def run(
        self, *command: str, cwd: Path | None = None, before: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """`python …` of this environment, behind the words of `before`."""
        return subprocess.run(
            [*before, self.python, *command],
            cwd=cwd or self.folder,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def command(
        self, *words: str, before: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """`mycelia nameko-hook …`."""
        return self.run("-m", "mycelia.cli.main", "nameko-hook", *words, before=before)

    def starts(self) -> list[str]:
        """With what words an interpreter has started since the last time, and come past the hook."""
        lines = self._starts.read_text().splitlines() if self._starts.exists() else []
        self._starts.unlink(missing_ok=True)
        return [line.partition(" ")[2] for line in dict.fromkeys(lines)]
