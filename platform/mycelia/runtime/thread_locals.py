"""`threading.local` that ends with its worker: what one worker leaves in it is not there for the next one.

`def` methods run in threads that are used again, and a thread's locals live as long as the thread. In Nameko each
worker has a greenthread of its own, so services keep a user or a session in a `threading.local` and never take it out:
the next caller would be served as the last one. A fresh thread for each worker would cost about 70 µs; emptying the
locals costs nothing where there are none.
"""

from __future__ import annotations

import _thread
import threading
import weakref
from typing import Any

__all__ = ["empty_locals", "watch_locals"]

_locals: dict[int, tuple[weakref.ref[Any], tuple[Any, ...], dict[str, Any]]] = {}
"""Every local made since `watch_locals()`, by id, with what its class was called with."""


class WorkerLocal(_thread._local):
    """`threading.local`, known to `empty_locals()`."""

    def __new__(cls, /, *args: Any, **kwargs: Any) -> WorkerLocal:
        made = super().__new__(cls, *args, **kwargs)
        key = id(made)
        _locals[key] = (weakref.ref(made, lambda _: _locals.pop(key, None)), args, kwargs)
        return made


def watch_locals() -> None:
    """From now on `threading.local` makes such; call it before the services' modules are imported. Idempotent."""
    threading.local = WorkerLocal


def empty_locals() -> None:
    """Give every known local, in this thread, the contents it has in a new thread."""
    for known, args, kwargs in list(_locals.values()):
        made = known()
        if made is None:
            continue
        made.__dict__.clear()
        if type(made).__init__ is not object.__init__:  # a subclass, set up anew in each thread
            made.__init__(*args, **kwargs)
