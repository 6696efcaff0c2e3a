"""Parts of a process beside its services: made by those who register, first to start, last to stop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from tests.runtime.conftest import Invoke, Serve

from mycelia import Call, Direction, Middleware, Next, Outcome, Runner, Target, rpc
from mycelia.errors import ConfigError
from mycelia.runtime import Phase, RunningProcess, Settings, process_parts


class Told:
    """A part that notes what it is told."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.error: Exception | None = None

    def middleware(self, direction: Direction, target: Target) -> Middleware | None:
        return self._note

    async def _note(self, call: Call, next: Next) -> Outcome:
        self.events.append(call.target.name)
        return await next(call)

    async def start(self, process: RunningProcess) -> None:
        self.process = process
        self.events.append(process.phase)
        if self.error is not None:
            raise self.error

    async def started(self) -> None:
        self.events.append(self.process.phase)

    async def stop(self) -> None:
        self.events.append(self.process.phase)


class One:
    name = "one"

    @rpc
    async def method(self) -> int:
        return 1


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    part = Told()

    def maker(settings: Settings, config: Mapping[str, Any]) -> Told | None:
        return part if config.get("wanted") else None

    monkeypatch.setattr(process_parts, "_makers", [])
    process_parts.register_process_part(maker)
    process_parts.register_process_part(maker)
    return part


async def test_part_starts_before_the_services_and_stops_after_them(
    told: Told, serve: Serve, invoke: Invoke
) -> None:
    runner = await serve(One, config={"wanted": True})
    assert runner.phase is Phase.RUNNING
    await invoke("one", "method")
    await runner.stop()

    assert told.events == [Phase.STARTING, Phase.RUNNING, "one.method", Phase.STOPPING]
    assert runner.phase is Phase.STOPPED


async def test_without_being_asked_for_there_is_none(told: Told, serve: Serve) -> None:
    runner = await serve(One)

    assert runner.host.parts == []
    assert runner.host.middleware == ()


async def test_part_that_cannot_start_stops_the_start(told: Told, uri: str) -> None:
    told.error = ConfigError("port 1 is taken")
    runner = Runner({"AMQP_URI": uri, "wanted": True}, [One])

    with pytest.raises(ConfigError, match="port 1 is taken"):
        await runner.start()
    assert told.events == [Phase.STARTING, Phase.STOPPING]
