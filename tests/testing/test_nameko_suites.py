"""Tests that were written for Nameko's classes, with our tools; and what Nameko's own tools make of our container."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("nameko")

from nameko.events import event_handler
from nameko.exceptions import ExtensionNotFound
from nameko.extensions import DependencyProvider
from nameko.rpc import RpcProxy, rpc
from nameko.testing import services as nameko_testing

from mycelia import Ack, Runner
from mycelia.nameko.face import ContainerFace
from mycelia.testing import (
    ServiceBed,
    entrypoint_hook,
    entrypoint_waiter,
    eventually,
    replace_dependencies,
    restrict_entrypoints,
    run_services,
    worker_factory,
)


class Factor(DependencyProvider):
    def setup(self) -> None:
        raise AssertionError("must not be set up where it is replaced")

    def get_dependency(self, worker_ctx: Any) -> int:
        return 2


class Conversions:
    name = "conversions"
    maths = RpcProxy("maths")
    factor = Factor()

    @rpc
    def cm_to_inches(self, cms: float) -> Any:
        return self.maths.divide(cms, self.factor)

    @event_handler("ruler", "measured")
    def measured(self, cms: float) -> Any:
        return self.cm_to_inches(cms)

    @event_handler("ruler", "broken")
    def broken(self, payload: Any) -> None: ...


async def test_our_tools_work_for_namekos_classes() -> None:
    mocks: list[Any] = []

    def prepare(bed: ServiceBed) -> None:
        container = bed.container(Conversions)
        mocks.append(replace_dependencies(container, "maths"))
        mocks[0].divide.side_effect = lambda cms, factor: cms / factor
        replace_dependencies(container, factor=4)
        restrict_entrypoints(container, "cm_to_inches", "measured")

    async with run_services(Conversions, prepare=prepare) as bed:
        container = bed.container(Conversions)
        assert await bed.client.call("conversions", "cm_to_inches", 8) == 2
        with entrypoint_hook(container, "cm_to_inches") as cm_to_inches:
            assert await cm_to_inches(12) == 3
        async with entrypoint_waiter(container, "measured") as result:
            await bed.client.publish("ruler", "measured", 16)
        assert result.get() == 4
    assert mocks[0].divide.call_count == 3


@pytest.mark.parametrize("factory", [worker_factory, nameko_testing.worker_factory])
def test_both_worker_factories_serve_namekos_classes(factory: Any) -> None:
    worker = factory(Conversions, factor=4)
    worker.maths.divide.return_value = 7

    assert worker.cm_to_inches(1) == 7
    worker.maths.divide.assert_called_once_with(1, 4)


def test_namekos_own_tools_find_nothing_in_our_container() -> None:
    """As docs/testing.md says; here to notice when it changes."""
    (container,) = Runner({}, [Conversions]).containers

    with pytest.raises(ExtensionNotFound, match="No entrypoint for 'cm_to_inches'"):
        with nameko_testing.entrypoint_hook(container, "cm_to_inches") as hook:
            hook(1)
    with pytest.raises(RuntimeError, match="has no entrypoint"):
        with nameko_testing.entrypoint_waiter(container, "cm_to_inches", timeout=1):
            pass
    with pytest.raises(AttributeError):
        nameko_testing.replace_dependencies(container, "maths")


async def test_workers_spawned_by_hand_and_our_waiter_leave_each_other_alone() -> None:
    """An extension's `container.spawn_worker()` for an entrypoint of ours, before and after a test waits for a message."""
    heard: list[Any] = []

    def hear(worker_ctx: Any, result: Any, exc_info: Any) -> Any:
        heard.append((result, exc_info))
        return result, exc_info

    async with run_services(Echoing) as bed:
        container = bed.container(Echoing)
        face = ContainerFace.of(container)
        (entrypoint,) = face.entrypoints

        def spawn(word: str) -> None:
            face.spawn_worker(entrypoint, (word,), {}, None, hear)

        await asyncio.to_thread(spawn, "before")
        await eventually(lambda: heard)
        async with entrypoint_waiter(container, "echo") as result:
            await bed.client.publish("wall", "shouted", "a message")
        await asyncio.to_thread(spawn, "after")
        await eventually(lambda: heard == [("before", None), ("after", None)])

        assert result.get() == "a message"
        assert isinstance(result.settlement, Ack)


class Echoing:
    name = "echoing"

    @event_handler("wall", "shouted")
    def echo(self, word: str) -> str:
        return word
