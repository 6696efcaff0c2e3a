"""How `nameko run` becomes a native process.

Nameko's command patches the standard library with eventlet before it imports a service. When a Mycelia entrypoint
is bound by Nameko's own container inside `nameko run`, or when configuration names `SERVICE_CONTAINER_CLS:
mycelia.Container`, the process re-executes itself into the native runtime: same PID, same arguments, same
environment, a clean interpreter without hub or patches. Supervisors notice nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from mycelia.errors import RuntimeStateError

__all__ = ["HANDOVER_VARIABLE", "NATIVE_MODULE", "hand_over", "hand_over_mistake", "is_nameko_run"]

NATIVE_MODULE = "mycelia.cli.nameko_run"
"""The module the process becomes; it reads the arguments of `nameko run`."""

HANDOVER_VARIABLE = "MYCELIA_HANDED_OVER"
"""Set in the native process, so that a second hand-over, which would loop, is an error."""


def is_nameko_run(argv: list[str]) -> bool:
    """Whether `argv` is that of `nameko run …`, by console script or by `python -m nameko.cli.main`."""
    if len(argv) < 2:
        return False
    program = Path(argv[0])
    is_nameko = program.stem == "nameko" or program.parts[-3:-1] == ("nameko", "cli")
    return is_nameko and "run" in argv[1:]


def hand_over(found: str) -> NoReturn:
    """Become the native runtime. Does not return.

    Args:
        found: what made it necessary, for the error message.

    Raises:
        RuntimeStateError: outside `nameko run` (for example in a test with Nameko's own container).
    """
    argv = sys.argv
    if not is_nameko_run(argv) or os.environ.get(HANDOVER_VARIABLE) == str(os.getpid()):
        raise RuntimeStateError(
            f"{found} was given to a container that is not Mycelia's. Mycelia's entrypoints run under `nameko run`, "
            "under `mycelia run`, and in tests under `mycelia.testing` (see docs/testing.md)."
        )
    arguments = argv[argv.index("run") + 1 :]
    sys.stdout.flush()
    sys.stderr.flush()
    os.environ[HANDOVER_VARIABLE] = str(os.getpid())
    os.execv(sys.executable, [sys.executable, "-m", NATIVE_MODULE, *arguments])


def hand_over_mistake() -> None:
    """Under `nameko run`, become the native runtime, which finds the mistake anew and says it in one line.

    Anywhere else, and in the native runtime, this does nothing.
    """
    if is_nameko_run(sys.argv) and os.environ.get(HANDOVER_VARIABLE) != str(os.getpid()):
        hand_over("a declaration with a mistake in it")
