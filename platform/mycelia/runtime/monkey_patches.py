"""What patches the whole process is kept from doing so: eventlet's and gevent's `monkey_patch()`.

Services written for Nameko often begin with `import eventlet; eventlet.monkey_patch()`. Here workers are threads and an
event loop runs: with sockets, locks and threads replaced under it, the process would hang, deaf to signals. So the call
has no effect, and is named once. The modules are recognised by name when they are imported, which this does not do.
"""

from __future__ import annotations

import importlib.machinery
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from mycelia.log_event import event

__all__ = ["refuse_monkey_patches"]

log = logging.getLogger("mycelia.runtime")

PATCHERS = {"eventlet.patcher": ("monkey_patch",), "gevent.monkey": ("patch_",)}
"""By module, how the names of its functions begin that patch the process."""

_said: set[str] = set()
"""Libraries whose call has been named."""


def refuse_monkey_patches() -> None:
    """From now on they have no effect; call it before the services' modules are imported. Idempotent."""
    for name, beginnings in PATCHERS.items():
        module = sys.modules.get(name)
        if module is not None:
            _disarm(module, beginnings)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Lets the usual finders find `PATCHERS` and eventlet, and has a say when they are run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in PATCHERS and name != "eventlet":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            if name == "eventlet":
                with _quick_and_quiet():
                    run(module)
            else:
                run(module)
                _disarm(module, PATCHERS[name])

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # of this one instance
        return spec


@contextmanager
def _quick_and_quiet() -> Iterator[None]:
    """Import eventlet without what only patched processes need, and without its word about its own future: whoever
    runs Nameko's classes here has left it behind.

    Its resolver of host names takes two thirds of the time (dnspython); unpatched sockets never ask it.
    """
    variable = "EVENTLET_NO_GREENDNS"
    before = os.environ.get(variable)
    os.environ.setdefault(variable, "yes")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")
            yield
    finally:
        if before is None:  # children of this process may be stock Nameko's
            os.environ.pop(variable, None)


def _disarm(module: ModuleType, beginnings: Sequence[str]) -> None:
    for name, value in list(vars(module).items()):
        if callable(value) and name.startswith(tuple(beginnings)):
            setattr(module, name, _without_effect(module.__name__.partition(".")[0], name))


def _without_effect(library: str, name: str) -> Callable[..., None]:
    def without_effect(*args: Any, **kwargs: Any) -> None:
        if library in _said:
            return
        _said.add(library)
        frame = sys._getframe(1)
        log.warning(
            event(
                "monkey_patch_ignored",
                call=f"{library}.{name}()",
                file=frame.f_code.co_filename,
                line=frame.f_lineno,
                detail="workers are threads here, nothing is patched; the call can go",
            )
        )

    without_effect.__name__ = without_effect.__qualname__ = name
    return without_effect
