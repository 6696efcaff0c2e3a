"""Drives a headless Chromium over its own debugging protocol: open a page, look at it, ask it things."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

__all__ = ["Page", "browser", "find_chromium"]


def find_chromium() -> str | None:
    """The path of an installed Chromium or Chrome, or `None`."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


class Page:
    """One tab. `requests` are the URLs it asked for, `errors` what went wrong in its scripts."""

    def __init__(self, socket: ClientConnection) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._socket = socket
        self._ids = itertools.count(1)
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def command(self, method: str, *, within: float = 20, **params: Any) -> dict[str, Any]:
        """Sends one command of the protocol and returns its result, which it has `within` seconds for."""
        number = next(self._ids)
        reply_to = self._replies[number] = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        reply = await asyncio.wait_for(reply_to, within)
        if "error" in reply:
            raise AssertionError(f"{method}: {reply['error']['message']}")
        return dict(reply["result"])

    async def open(self, url: str) -> None:
        """Goes to `url`; does not wait for anything on the page."""
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.command(f"{domain}.enable")
        await self.command("Page.navigate", url=url)

    async def size(self, width: int, height: int, *, phone: bool = False) -> None:
        """Sets the viewport, in CSS pixels."""
        await self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )

    async def colours(self, scheme: str) -> None:
        """Asks for the `light` or the `dark` scheme."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await self.command("Emulation.setEmulatedMedia", features=[feature])

    async def evaluate(self, script: str, *, within: float = 20) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        reply = await self.command(
            "Runtime.evaluate",
            within=within,
            expression=script,
            returnByValue=True,
            awaitPromise=True,
        )
        if "exceptionDetails" in reply:
            raise AssertionError(f"{script}: {reply['exceptionDetails']}")
        return reply["result"].get("value")

    async def until(self, condition: str, within: float = 20) -> None:
        """Waits until a JavaScript condition holds, looking before each of the page's frames.

        Raises:
            AssertionError: it does not hold within that many seconds.
        """
        script = f"""new Promise(resolve => {{
            const end = performance.now() + {within * 1000:.0f};
            const look = () => ({condition}) ? resolve(true)
                : performance.now() > end ? resolve(false) : setTimeout(look, 25);
            look();
        }})"""
        assert await self.evaluate(script, within=within + 20), (
            f"not within {within:g} s: {condition}"
        )

    async def picture(self) -> bytes:
        """The whole page, beyond the viewport too, as a PNG."""
        shot = await self.command("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    async def listen(self) -> None:
        """Reads replies and events until the socket closes."""
        async for text in self._socket:
            message = json.loads(text)
            if future := self._replies.pop(message.get("id", 0), None):
                future.set_result(message)
            elif message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            elif message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(message["params"]["exceptionDetails"]))
            elif message.get("method") == "Log.entryAdded":
                entry = message["params"]["entry"]
                if entry["level"] == "error":
                    self.errors.append(entry["text"])


@asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Page]:
    """A fresh Chromium with its data in `profile`, and its first tab. Its processes are gone afterwards."""
    path = find_chromium()
    assert path is not None, "no Chromium on the PATH"
    process = await asyncio.create_subprocess_exec(
        path,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--no-first-run",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(30):
            address = await _address(process)
        async with connect(address, max_size=None) as control:
            async with _listening(Page(control)) as chromium:
                targets = (await chromium.command("Target.getTargets"))["targetInfos"]
        target = next(info["targetId"] for info in targets if info["type"] == "page")
        host = address.split("/devtools/")[0]
        async with connect(f"{host}/devtools/page/{target}", max_size=None) as socket:
            async with _listening(Page(socket)) as page:
                yield page
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


@asynccontextmanager
async def _listening(page: Page) -> AsyncIterator[Page]:
    listener = asyncio.create_task(page.listen(), name="chromium:listen")
    try:
        yield page
    finally:
        listener.cancel()
        await asyncio.wait([listener])


async def _address(process: asyncio.subprocess.Process) -> str:
    """The debugging address, which Chromium prints when it is ready."""
    assert process.stderr is not None
    async for line in process.stderr:
        if line.startswith(b"DevTools listening on "):
            return line.decode().split()[-1]
    raise AssertionError("Chromium ended before it was ready")
