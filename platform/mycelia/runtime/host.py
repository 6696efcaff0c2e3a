"""What all services in one OS process share: settings and their changes, the broker link, serializers, middleware."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mycelia.amqp import Link, LinkOptions, connect
from mycelia.amqp.delays import Delays
from mycelia.call import Middleware, MiddlewareSource, Target, middleware_for
from mycelia.errors import RuntimeStateError
from mycelia.log_event import event
from mycelia.runtime.access_log import AccessLog
from mycelia.runtime.middleware import Around, load_middleware
from mycelia.runtime.process_parts import parts_for
from mycelia.runtime.settings import OF_THE_BROKER, USED_BY_SOME, Settings
from mycelia.runtime.statistics import HostStatistics, ServiceStatistics
from mycelia.runtime.watch import Watch
from mycelia.wire import SerializerRegistry

__all__ = ["Host", "OnChange"]

log = logging.getLogger("mycelia.runtime")

OnChange = Callable[[Settings, Settings], None]
"""Told of the settings before and after a change. Called on the loop; must not wait."""


class Host:
    """Shared by the containers of one `Runner`; lives on one event loop.

    Args:
        config: the whole configuration, as the services see it.
        middleware: sources of middleware for calls in all directions, outermost first, inside those that the
            configuration names (`mycelia: middleware:`).
        inbound: middleware around every call that arrives, outermost first, inside those.
        outbound: middleware around every call that leaves, outermost first, inside those.

    Raises:
        ConfigError: a key has a wrong type or value, or names middleware that cannot be loaded.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        middleware: Iterable[MiddlewareSource] = (),
        inbound: tuple[Middleware, ...] = (),
        outbound: tuple[Middleware, ...] = (),
    ) -> None:
        self.config = config
        self.settings = Settings.from_config(config, unchecked=USED_BY_SOME)
        self.serializers = SerializerRegistry.from_config(
            config, max_body_bytes=self.settings.mycelia.max_body_bytes
        )
        self.parts = parts_for(self.settings, config)
        """What the process has beside its services."""
        self.access_log = AccessLog.of(self.settings.mycelia.access_log)
        """Writes a line for each call; `None` where nobody has asked for that."""
        self.middleware: tuple[MiddlewareSource, ...] = (
            *self.parts,
            *(() if self.access_log is None else (self.access_log,)),
            *load_middleware(self.settings.mycelia.middleware),
            *middleware,
            *Around.each(inbound, outbound),
        )
        """Asked about every target of every service, before the extensions of the service itself."""
        self.services: dict[str, Callable[[], ServiceStatistics]] = {}
        """What each service says of itself, by name; containers put themselves here."""
        self._listeners: list[OnChange] = []
        self._link: Link | None = None
        self._delays: Delays | None = None
        self._watch: Watch | None = None

    # --- settings that change ---------------------------------------------------------------------

    def on_change(self, listener: OnChange) -> Callable[[], None]:
        """Call `listener(old, new)` after each change of settings. Returns a function that removes it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def change_settings(self, changes: Mapping[str, Any]) -> Settings:
        """Change settings of the running services; on the loop. Nothing changes unless all of it can.

        What is under way goes on with what it began with. Returns the new settings.

            host.change_settings({"max_workers": 20, "mycelia": {"rpc_timeout": 5}})

        Args:
            changes: as in a configuration: only the keys that change, those of Mycelia in the section `mycelia`.

        Raises:
            ConfigError: a key is unknown, has a wrong type or value, or cannot change while services run; it is named.
        """
        old, new = self.settings, self.settings.changed(changes)
        if new == old:
            return new
        self.settings = new
        self.serializers.set_max_body_bytes(new.mycelia.max_body_bytes)
        if self._watch is not None:
            self._watch.slow_after = new.mycelia.slow_after
        log.info(event("settings_changed", keys=", ".join(new.differing_from(old))))
        for listener in list(self._listeners):
            try:
                listener(old, new)
            except Exception:
                log.exception(event("settings_listener_failed", listener=repr(listener)))
        return new

    def statistics(self) -> HostStatistics:
        """What this process can say of itself."""
        link = self._link
        return HostStatistics(
            link_state=None if link is None else link.state.value,
            link=None if link is None else link.statistics(),
            services={name: statistics() for name, statistics in self.services.items()},
        )

    def middleware_for(
        self, target: Target, extensions: Iterable[MiddlewareSource] = ()
    ) -> tuple[Middleware, ...]:
        """What stands around calls of `target`, outermost first: the host's, then that of a service's `extensions`."""
        return middleware_for((*self.middleware, *extensions), target)

    @property
    def link(self) -> Link:
        """The broker link; there once an extension that needs a broker is about to be set up."""
        if self._link is None:
            raise RuntimeStateError(
                "no broker link: the extension that asks for it must set `needs_broker = True`, "
                "and may use it from `setup()` on."
            )
        return self._link

    @property
    def delays(self) -> Delays:
        """Messages that arrive later, over the link."""
        if self._delays is None:
            self._delays = Delays(self.link)
        return self._delays

    def watch(self, loop: asyncio.AbstractEventLoop) -> Watch:
        """What looks after the running workers of this process; made when first asked for."""
        if self._watch is None:
            self._watch = Watch(loop, slow_after=self.settings.mycelia.slow_after)
        return self._watch

    async def open_link(self, timeout: float | None = None) -> None:
        """Connect to the broker; waits for one that is not up yet.

        Raises:
            BrokerUnavailable: not within `timeout` seconds.
            AccessRefused: at once, when the broker refuses user, password or virtual host.
            ConfigError: a key about the broker has a wrong type.
        """
        if self._link is None:
            Settings.demand(self.config, OF_THE_BROKER)
            settings = self.settings
            self._link = connect(
                settings.AMQP_URI,
                LinkOptions(
                    ssl=settings.AMQP_SSL,
                    heartbeat=settings.HEARTBEAT or 0,
                    connect_timeout=settings.mycelia.connect_timeout,
                    peer_timeout=settings.mycelia.peer_timeout,
                ),
            )
            await self._link.open(timeout)

    async def aclose(self) -> None:
        """Close the link. Idempotent and bounded."""
        link, self._link, self._delays = self._link, None, None
        if link is not None:
            await link.aclose()
