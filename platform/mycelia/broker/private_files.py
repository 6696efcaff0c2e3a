"""Folders and files that belong to their user alone: a broker's data, cookie and log are nobody else's to read."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["PRIVATE_UMASK", "STATE_DIRECTORY", "private_directory", "write_private"]

PRIVATE_UMASK = 0o077
"""For processes that write such files: what is left are 0700 for directories and 0600 for files."""

STATE_DIRECTORY = Path(".mycelia")
"""Where all that Mycelia keeps for a project lies."""


def private_directory(path: Path) -> None:
    """Make a directory (and the parents that are missing) with mode 0700; one that exists is closed to others.

    So is `.mycelia` around it, which a release before this one left open.
    """
    for missing in reversed([one for one in (path, *path.parents) if not one.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    path.chmod(0o700)
    if path.parent.name == STATE_DIRECTORY.name:
        path.parent.chmod(0o700)


def write_private(path: Path, content: str, *, mode: int = 0o600) -> None:
    """Write a file whole, with this mode from its first moment on. Readers see the old content or the new."""
    partial = path.with_name(f"{path.name}.part")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(content)
    partial.replace(path)
