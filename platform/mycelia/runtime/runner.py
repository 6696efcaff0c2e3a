"""The runner: several services in one process, sharing one broker link."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from mycelia.call import Middleware, MiddlewareSource
from mycelia.errors import ConfigError, RuntimeStateError
from mycelia.log_event import event
from mycelia.runtime.container import Container
from mycelia.runtime.host import Host
from mycelia.runtime.process_parts import Phase
from mycelia.runtime.settings import misspelt_keys
from mycelia.runtime.statistics import HostStatistics

__all__ = ["Runner"]

log = logging.getLogger("mycelia.runtime")


class Runner:
    """Runs service classes on the current event loop.

        async with Runner({"AMQP_URI": "amqp://localhost"}, [Registry, Enrich]) as runner:
            await runner.wait()

    Args:
        config: the whole configuration, as `nameko run --config` would read it.
        services: the service classes.
        middleware: sources of middleware for calls in all directions, outermost first.
        inbound: middleware around every call that arrives, outermost first.
        outbound: middleware around every call, event and message that leaves, outermost first.

    Raises:
        ConfigError: a key of the wrong type, a class without a name, two services with the same name.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        services: Iterable[type],
        *,
        middleware: Iterable[MiddlewareSource] = (),
        inbound: tuple[Middleware, ...] = (),
        outbound: tuple[Middleware, ...] = (),
    ) -> None:
        self.config = dict(config)
        for key, meant in misspelt_keys(self.config).items():
            log.warning(event("configuration_key_unknown", key=key, did_you_mean=meant))
        self.host = Host(self.config, middleware=middleware, inbound=inbound, outbound=outbound)
        self.containers: list[Container] = []
        self._stopped: asyncio.Event | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._has_started = False
        for service_cls in services:
            container = Container(service_cls, self.config, self.host)
            if container.service_name in self.service_names:
                raise ConfigError(
                    f'two services are named "{container.service_name}"; a name may run once in a process.'
                )
            container.on_end = self._end
            self.containers.append(container)
        if not self.containers:
            raise ConfigError("no service to run.")

    @property
    def phase(self) -> Phase:
        """How far it has come."""
        if self._stopped is not None and self._stopped.is_set():
            return Phase.STOPPED
        if self._stopping is not None:
            return Phase.STOPPING
        return Phase.RUNNING if self._has_started else Phase.STARTING

    @property
    def service_names(self) -> list[str]:
        return [container.service_name for container in self.containers]

    def container_of(self, service_cls: type) -> Container:
        """The container that runs `service_cls`."""
        for container in self.containers:
            if container.service_cls is service_cls:
                return container
        raise RuntimeStateError(f"{service_cls.__qualname__} is not run by this runner.")

    def statistics(self) -> HostStatistics:
        """What this process can say of itself: its link, its services, their lanes and extensions."""
        return self.host.statistics()

    async def start(self, timeout: float | None = None) -> None:
        """Connect and start all services. What has started is stopped again if one of them fails.

        Where it is cancelled, workers that run already have their grace period, as at any stop; `kill()` cuts it short.

        Args:
            timeout: seconds to wait for the broker; `None` waits until it is there.
        """
        if self._stopped is not None:
            raise RuntimeStateError("this runner has been started; make a new one.")
        self._stopped = asyncio.Event()
        try:
            for (
                part
            ) in self.host.parts:  # first: whoever asks is to hear that it has not started yet
                await part.start(self)
            if any(container.needs_broker for container in self.containers):
                await self.host.open_link(timeout)
            for container in self.containers:
                await container.start()
            self._has_started = True
            for part in self.host.parts:
                await part.started()
        except asyncio.CancelledError:
            # A task of its own: a second cancellation does not leave it half done.
            await self.stop()
            raise
        except BaseException:
            await self.stop(grace=0.0)
            raise

    async def wait(self) -> None:
        """Wait until the services have stopped.

        Raises the error with which an extension has ended them, if one has (`Container.end()`).
        """
        if self._stopped is None:
            raise RuntimeStateError("this runner has not been started.")
        await self._stopped.wait()
        if self._failure is not None:
            raise self._failure

    def _end(self, error: BaseException | None) -> None:
        """A service asks to end: stop them all; with an error, so that a supervisor sees it as the process's own."""
        if self._stopping is None:
            self._failure = error
            self._stopping = asyncio.create_task(self._shut_down(None), name="mycelia:stop")

    async def stop(self, grace: float | None = None) -> None:
        """Stop all services gracefully, then close the link. May be called again; waits for the same stop."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._shut_down(grace), name="mycelia:stop")
        await asyncio.shield(self._stopping)

    async def kill(self) -> None:
        """Stop at once: workers are cancelled and their messages go back to their queues."""
        await asyncio.gather(*(container.kill() for container in self.containers))
        await self.stop(grace=0.0)

    async def _shut_down(self, grace: float | None) -> None:
        # The link stays open while any worker of any service runs: acks and replies must leave.
        await asyncio.gather(*(container.stop(grace) for container in self.containers))
        await self.host.aclose()
        for part in self.host.parts:
            await part.stop()
        if self._stopped is not None:
            self._stopped.set()

    async def __aenter__(self) -> Runner:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()
