"""`mycelia nameko-hook install|status|remove`: have `nameko run` hand over before it imports Nameko, in one environment.

One file in the environment's site-packages, which Python reads at each start (https://docs.python.org/3/library/site.html).
It is written when a user asks for it, and never by an installation. What it calls stands in `mycelia_nameko_hook.py`; where
that is gone, after `pip uninstall mycelia`, the file does nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mycelia.cli.actions import add_command_of_actions
from mycelia.errors import ConfigError, MyceliaError
from mycelia.extras import require_extra
from mycelia.handover import HOOK_MODULE

__all__ = ["FILE_NAME", "HOOK", "add_nameko_hook_commands"]

FILE_NAME = "mycelia-nameko.pth"
"""Read in the order of names: after those of editable installations (`__editable__…`), which say where packages are."""

MARK = "# Mycelia's hook for `nameko run`"
"""How a file begins that is ours to replace and to remove."""

HOOK = (
    f"{MARK}, written by `mycelia nameko-hook install`. Ended by `mycelia nameko-hook remove`, or by deleting this file.\n"
    # One line, because Python takes lines one by one; it says no word whatever has become of the module.
    'import sys; getattr(sys, "argv", [])[1:2] == ["run"] and "nameko" in "".join(sys.orig_argv) and exec('
    f'"try:\\n from {HOOK_MODULE} import look\\nexcept ImportError:\\n pass\\nelse:\\n look()")\n'
)
"""The file. Other Pythons than `nameko run` pay for its two comparisons."""

EXTERNALLY_MANAGED = "EXTERNALLY-MANAGED"
"""The file that marks a system's Python (PEP 668)."""


def add_nameko_hook_commands(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `nameko-hook` to the command line. The chosen action is left in `args.main`."""
    add = add_command_of_actions(
        subparsers,
        "nameko-hook",
        text="have `nameko run` hand over to Mycelia at once",
        description=(
            "`nameko run` imports Nameko before it hands a service over to Mycelia, which is more than half of its start. With\n"
            f"this hook it hands over first: one file, {FILE_NAME}, in this environment's site-packages. Python reads it\n"
            "at each start; other programs pay microseconds for it."
        ),
        epilog="Remove it before `pip uninstall mycelia`; left behind it does nothing, and can be deleted by hand.",
    )
    add("install", "write the file", _reporting(_install))
    add(
        "status",
        "tell whether it is there, and where (exit status 1: it is not)",
        _reporting(_status),
    )
    add("remove", "take the file away", _reporting(_remove))


def _reporting(action: Callable[[Path], int]) -> Callable[[argparse.Namespace], int]:
    """The action on this environment's file, with its errors told in words: they are messages to people."""

    def run(args: argparse.Namespace) -> int:
        try:
            return action(Path(sysconfig.get_path("purelib")) / FILE_NAME)
        except MyceliaError as exc:
            print(f"mycelia nameko-hook: {exc}", file=sys.stderr)
            return 1

    return run


def _install(file: Path) -> int:
    require_extra("nameko", "mycelia nameko-hook install")
    _refuse_the_systems_python()
    found = _found(file)
    if found == HOOK:
        print(f"installed already: {file}")
        return 0
    _changing(file, _write)
    print(f"{'installed' if found is None else 'renewed'}: {file}")
    print(
        "`nameko run` of Mycelia's services in this environment hands over before it imports Nameko. It says:"
    )
    print("".join(f"    {line}\n" for line in HOOK.splitlines()), end="")
    print("To undo: mycelia nameko-hook remove")
    return 0


def _status(file: Path) -> int:
    found = _found(file)
    if found is None:
        print(f"not installed: {file} is not there")
        return 1
    if found != HOOK:
        print(f"installed by another version of Mycelia: {file}")
        print("To renew it: mycelia nameko-hook install")
        return 0
    print(f"installed: {file}")
    return 0


def _remove(file: Path) -> int:
    if _found(file) is None:
        print(f"not installed: {file} is not there")
        return 0
    _changing(file, Path.unlink)
    print(f"removed: {file}")
    return 0


def _refuse_the_systems_python() -> None:
    marker = Path(sysconfig.get_path("stdlib")) / EXTERNALLY_MANAGED
    if sys.prefix == sys.base_prefix and marker.exists():
        raise ConfigError(
            f"{sys.executable} is the system's Python, whose packages are the system's to change ({marker}). "
            "Install Mycelia in a virtual environment (python3 -m venv .venv), and the hook there."
        )


def _found(file: Path) -> str | None:
    """What is in the file, `None` without one.

    Raises:
        ConfigError: it is somebody else's, or cannot be read.
    """
    try:
        text = file.read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{file} cannot be read ({exc}).") from exc
    if not text.startswith(MARK):
        raise ConfigError(
            f"{file} was not written by Mycelia. Nothing was changed; look what it is."
        )
    return text


def _changing(file: Path, change: Callable[[Path], None]) -> None:
    try:
        change(file)
    except OSError as exc:
        raise ConfigError(
            f"{file.parent} cannot be written to ({exc.strerror}). Nothing was changed; run it as the user who "
            "installed this environment's packages."
        ) from exc


def _write(file: Path) -> None:
    """All at once: a Python that starts meanwhile reads the old file or the new one."""
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{FILE_NAME}.")
    try:
        with open(descriptor, "w", encoding="utf-8") as new:
            new.write(HOOK)
        os.chmod(name, 0o644)  # who may read the packages may read this
        os.replace(name, file)
    except OSError:
        os.unlink(name)
        raise
