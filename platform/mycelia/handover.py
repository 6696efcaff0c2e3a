"""How `nameko run` becomes a native process.

Nameko's command patches the standard library with eventlet before it imports a service. When a service of Mycelia's
turns up in it, or when configuration names `SERVICE_CONTAINER_CLS: mycelia.Container`, the process re-executes itself
into the native runtime: same PID, same arguments, interpreter flags, import path and environment, a clean interpreter
without hub or patches. Supervisors notice nothing.

That is as early as can be, because all that was imported until then is imported in vain: at `import mycelia`, the first
thing that `mycelia/__init__.py` does, where a module named on the command line, or one below it, imports it, or Nameko
itself does for `SERVICE_CONTAINER_CLS`. Where somebody else imports it (a module that services share), the process goes
on as Nameko's, and is handed over when an extension of Mycelia's is bound. So a stock service may use such a module.

Earlier still is what users can ask for: `mycelia nameko-hook install` has the interpreter look at what it is to run before
Nameko is imported (`mycelia_nameko_hook.py`, beside this package).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

from mycelia.errors import RuntimeStateError

__all__ = [
    "HANDOVER_VARIABLE",
    "HOOK_MODULE",
    "NAMEKO_3",
    "NATIVE_MODULE",
    "PATH_VARIABLE",
    "hand_over",
    "hand_over_importer",
    "hand_over_mistake",
    "interpreter_flags",
    "is_nameko_3",
    "take_over_path",
]

NATIVE_MODULE = "mycelia.cli.nameko_run"
"""The module the process becomes; it reads the arguments of `nameko run`."""

HANDOVER_VARIABLE = "MYCELIA_HANDED_OVER"
"""Set in the native process, so that a second hand-over, which would loop, is an error."""

PATH_VARIABLE = "MYCELIA_IMPORT_PATH"
"""Carries `sys.path` across: a script that calls Nameko's `main()` stands in a folder of its own, or has added some."""

HOOK_MODULE = "mycelia_nameko_hook"
"""The module that imports `mycelia` at the start of an interpreter that is to run Nameko's command with services of ours."""

NAMEKO_RUN = "nameko.cli.run"
"""The module whose `main()` is at work as long as `nameko run` is."""

NAMEKO_MAIN = "nameko.cli.main"
"""The module whose `main()` has read `sys.argv`."""

NAMEKO_3 = (
    "Services written for Mycelia run with `mycelia run`; classes written for Nameko with Nameko 2: "
    'pip install "nameko>=2.14.1,<3". Why: docs/from-nameko.md, "Nameko 3".'
)
"""What to do with it, for error messages."""

IMPORTING = frozenset(
    {"mycelia", "importlib", "_frozen_importlib", "_frozen_importlib_external", "pydoc"}
)
"""Whose frames stand between an import and who asked for it; Nameko asks `pydoc` for the class of its containers. Python's
own have a name with an underscore until somebody imports `importlib`."""

WITH_VALUE = "WX"
"""Flags of the interpreter that take a value."""


def hand_over_importer() -> None:
    """Called when `mycelia` is imported: become the native runtime if a service that `nameko run` imports does it, or
    the hook at the start of the interpreter."""
    if HOOK_MODULE in sys.modules and _importer() == HOOK_MODULE:
        _execute(sys.argv[2:])
    running = _nameko_run()
    if running is None:
        return
    importer = _importer()
    modules = [service.partition(":")[0] for service in running.f_locals["args"].services]
    if importer.partition(".")[0] == "nameko" or any(
        importer == module or importer.startswith(f"{module}.") for module in modules
    ):
        _become_native(running)


def hand_over(found: str) -> NoReturn:
    """Become the native runtime. Does not return.

    Args:
        found: what made it necessary, for the error message.

    Raises:
        RuntimeStateError: outside `nameko run` (for example in a test with Nameko's own container).
    """
    running = _nameko_run()
    if running is None and is_nameko_3():
        raise RuntimeStateError(
            f"{found} cannot be run by the `nameko run` of Nameko 3. {NAMEKO_3}"
        )
    if running is None:
        raise RuntimeStateError(
            f"{found} was given to a container that is not Mycelia's. Mycelia's entrypoints run under `nameko run`, "
            "under `mycelia run`, and in tests under `mycelia.testing` (see docs/testing.md)."
        )
    _become_native(running)


def hand_over_mistake() -> None:
    """Under `nameko run`, become the native runtime, which finds the mistake anew and says it in one line.

    Anywhere else, and in the native runtime, this does nothing.
    """
    running = _nameko_run()
    if running is not None:
        _become_native(running)


def is_nameko_3() -> bool:
    """Whether the Nameko that has been imported is the pre-release of Nameko 3, whose configuration is a global."""
    return hasattr(sys.modules.get("nameko"), "config")


def _nameko_run() -> FrameType | None:
    """The frame of Nameko's `run` command, if that is what runs here: by console script, `python -m nameko` or a
    script of the user's own. `None` in the native runtime, which has left it behind."""
    if NAMEKO_RUN not in sys.modules or os.environ.get(HANDOVER_VARIABLE) == str(os.getpid()):
        return None
    for frame in _callers():
        if _is_main_of(NAMEKO_RUN, frame) and hasattr(frame.f_locals.get("args"), "services"):
            return frame
    return None


def _callers() -> Iterator[FrameType]:
    """The frames of this thread, the innermost first, without this module's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") != __name__:
            yield frame
        frame = frame.f_back


def _is_main_of(module: str, frame: FrameType) -> bool:
    return frame.f_code.co_name == "main" and frame.f_globals.get("__name__") == module


def _importer() -> str:
    """The name of the module that imports `mycelia`; empty where nobody can tell."""
    for frame in _callers():
        name = frame.f_globals.get("__name__")
        if isinstance(name, str) and name.partition(".")[0] not in IMPORTING:
            return name
    return ""


def _become_native(running: FrameType) -> NoReturn:
    arguments = _arguments(running)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os.environ[PATH_VARIABLE] = os.pathsep.join(sys.path)
    _execute(arguments)


def _execute(arguments: Sequence[str]) -> NoReturn:
    flags = interpreter_flags(sys.orig_argv)
    os.environ[HANDOVER_VARIABLE] = str(os.getpid())
    os.execv(sys.executable, [sys.executable, *flags, "-m", NATIVE_MODULE, *arguments])


def _arguments(running: FrameType) -> list[str]:
    """The arguments after `run`: those Nameko has read; where a script has called `run` itself, what it was given."""
    if any(_is_main_of(NAMEKO_MAIN, frame) for frame in _callers()) and "run" in sys.argv[1:]:
        return sys.argv[sys.argv.index("run", 1) + 1 :]
    given: Any = running.f_locals["args"]
    options = (
        ("--config", getattr(given, "config", None)),
        ("--broker", getattr(given, "broker", None)),
        ("--backdoor-port", getattr(given, "backdoor_port", None)),
    )
    named = [text for name, value in options if value for text in (name, str(value))]
    return [*named, *given.services]


def interpreter_flags(orig_argv: Sequence[str]) -> list[str]:
    """The flags that Python itself was started with, of its `sys.orig_argv`: `-u -O -X utf8 -W …`."""
    flags: list[str] = []
    words = iter(orig_argv[1:])
    for word in words:
        if not word.startswith("-") or word in ("-", "--"):
            break  # the script
        if word.startswith("--"):
            flags.append(word)
            if word == "--check-hash-based-pycs":
                flags += _next(words)
            continue
        kept = ""
        for place, letter in enumerate(word[1:], 2):
            if letter in "mc":  # what follows is what is run
                return flags + ([f"-{kept}"] if kept else [])
            kept += letter
            if letter in WITH_VALUE:
                value = word[place:]
                flags += [f"-{kept}{value}"] if value else [f"-{kept}", *_next(words)]
                kept = ""
                break
        # `-x` would leave out the first line of the native module instead of the script's
        kept = kept.replace("x", "")
        if kept:
            flags.append(f"-{kept}")
    return flags


def _next(words: Iterator[str]) -> list[str]:
    word = next(words, None)
    return [] if word is None else [word]


def take_over_path() -> None:
    """In the native process: have the import path of the process that it was."""
    handed = os.environ.pop(PATH_VARIABLE, None)
    if handed is not None:
        sys.path[:] = handed.split(os.pathsep)
