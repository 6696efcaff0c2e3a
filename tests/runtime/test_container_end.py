"""How an extension ends its service, and what is done last of all: `Container.end()` and `Container.at_end()`."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any, ClassVar

import pytest
from tests.runtime.conftest import Serve

from mycelia import DependencyProvider, SharedExtension, rpc


class Pool(SharedExtension):
    """Stops late."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    async def stop(self) -> None:
        await asyncio.sleep(0)
        self.log.append("pool stopped")


class Last(DependencyProvider):
    container: Any
    log: ClassVar[list[str]] = []
    pool = Pool(log)

    def setup(self) -> None:
        self.container.at_end(self._fail)
        self.container.at_end(self._note)

    async def _fail(self) -> None:
        raise ValueError("the step before")

    async def _note(self) -> None:
        self.log.append("last step")


class Service:
    name = "ending"
    last: Any = Last()

    @rpc
    def end(self) -> None: ...


async def test_last_steps_come_after_every_extension_and_one_error_does_not_stop_the_next(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    Last.log.clear()
    runner = await serve(Service)
    with caplog.at_level(logging.ERROR):
        await runner.stop()

    assert Last.log == ["pool stopped", "last step"]
    assert "last_step_failed service=ending" in caplog.text
    assert "the step before" in caplog.text


@pytest.mark.parametrize("error", [None, ConnectionError("the source is gone")])
async def test_extension_ends_the_services_from_any_thread(
    serve: Serve, error: BaseException | None
) -> None:
    runner = await serve(Service)
    container = runner.container_of(Service)

    threads = [threading.Thread(target=container.end, args=(error,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    async with asyncio.timeout(10):
        if error is None:
            await runner.wait()
        else:
            with pytest.raises(ConnectionError, match="the source is gone"):
                await runner.wait()

    assert not container.started
    container.end(ValueError("too late"))  # of an ended one: nothing
    if error is None:
        await runner.wait()
