"""`--backdoor-port`: a Python console inside the running process, as Nameko's, for `nameko backdoor` or netcat.

Whoever can connect can do anything the process can; so it listens on localhost only, and only when asked for.
"""

from __future__ import annotations

import asyncio
import code
import contextlib
import logging
import socket
import threading
from types import TracebackType
from typing import Any, TextIO

from mycelia.errors import ConfigError
from mycelia.log_event import event

__all__ = ["Backdoor"]

log = logging.getLogger("mycelia.cli")

BANNER = """Mycelia backdoor. `runner` is the running ServiceRunner; `run(coroutine)` runs one on its event loop.
Leave with quit() or Ctrl-D."""


class Backdoor:
    """Serves consoles on localhost while it is open.

    Each console runs in a thread of its own, because it waits for typing. `run(coroutine)` crosses to the loop.
    """

    def __init__(self, port: int, scope: dict[str, Any]) -> None:
        self._port = port
        self._scope = scope
        self._sockets: set[socket.socket] = set()

    async def __aenter__(self) -> Backdoor:
        loop = asyncio.get_running_loop()
        try:
            listener = socket.create_server(("localhost", self._port))
        except OSError as exc:
            raise ConfigError(
                f"--backdoor-port {self._port}: cannot listen there: {exc.strerror}. Choose another port."
            ) from exc
        listener.setblocking(False)
        self._listener = listener
        self._accepting = loop.create_task(self._accept(loop, listener), name="mycelia:backdoor")
        log.info(event("backdoor_open", address=f"localhost:{self._port}"))
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._accepting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._accepting
        self._listener.close()
        for connection in list(self._sockets):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    async def _accept(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        while True:
            connection, _ = await loop.sock_accept(listener)
            connection.setblocking(True)
            self._sockets.add(connection)
            threading.Thread(
                target=self._console, args=(connection, loop), name="mycelia-backdoor", daemon=True
            ).start()

    def _console(self, connection: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        def run(coroutine: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

        # Two streams: one for both would throw away, with each write, the lines it has read ahead.
        typed = connection.makefile("r", encoding="utf-8", newline="\n")
        shown = connection.makefile("w", encoding="utf-8", newline="\n")
        try:
            console = _SocketConsole(typed, shown, {**self._scope, "run": run})
            console.interact(banner=BANNER, exitmsg="")
        except (OSError, SystemExit, ValueError):
            pass  # the other end left
        finally:
            self._sockets.discard(connection)
            # The streams hold the socket too: the other end sees the end only when all are closed.
            for one in (shown, typed, connection):
                with contextlib.suppress(OSError):
                    one.close()


class _SocketConsole(code.InteractiveConsole):
    """A console that reads from and writes to streams instead of the process's own terminal."""

    def __init__(self, typed: TextIO, shown: TextIO, scope: dict[str, Any]) -> None:
        super().__init__(scope)
        self._typed = typed
        self._shown = shown

    def raw_input(self, prompt: str = "") -> str:
        self.write(prompt)
        line = self._typed.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def write(self, data: str) -> None:
        self._shown.write(data)
        self._shown.flush()

    def runcode(self, compiled: Any) -> None:
        # `print()` and the value of an expression go to this console, not to the process's output. Output of other
        # threads meanwhile does too; that is Nameko's behaviour as well.
        with contextlib.redirect_stdout(self._shown):
            super().runcode(compiled)
        self._shown.flush()
