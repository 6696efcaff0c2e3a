"""A process that is one of several: `mycelia run --processes N` starts each with the same command as itself.

Two pipes join it to the first process. Through one it says that its services have started; the other is a leash: it ends
when the first process does, however that ends, and then this one stops in good order.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable

__all__ = ["MEMBER_VARIABLE", "Member"]

MEMBER_VARIABLE = "MYCELIA_MEMBER"
"""`number:file descriptor to tell on:file descriptor of the leash`, for one process and not for its children."""


class Member:
    """This process, as one of several.

    Args:
        number: which of them, from 1 on.
        tell_fd: where to say that the services have started.
        leash_fd: what ends with the first process.
    """

    def __init__(self, number: int, tell_fd: int, leash_fd: int) -> None:
        self.number = number
        self._tell_fd = tell_fd
        self._leash_fd = leash_fd

    @classmethod
    def take(cls) -> Member | None:
        """What this process was started as, if it is one of several. Asked once: its own children are not."""
        text = os.environ.pop(MEMBER_VARIABLE, None)
        if text is None:
            return None
        number, tell_fd, leash_fd = map(int, text.split(":"))
        for fd in (tell_fd, leash_fd):
            os.set_inheritable(fd, False)
        return cls(number, tell_fd, leash_fd)

    def hold_on(self) -> None:
        """From now on, stop when the first process has ended."""
        threading.Thread(target=self._wait_for_the_end, name="mycelia-leash", daemon=True).start()

    def _wait_for_the_end(self) -> None:
        while os.read(self._leash_fd, 64):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    def tell_started(self, services: Iterable[str]) -> None:
        """Say that the services have started."""
        os.write(self._tell_fd, (",".join(services) + "\n").encode())
