"""The outlets of a container: shared by all of its providers, so that middleware is asked once for each target."""

from __future__ import annotations

from mycelia.call import CallKind
from mycelia.clients.publishing import Outlet
from mycelia.runtime import Container, Settings, SharedExtension

__all__ = ["Outlets"]


class Outlets(SharedExtension):
    """Where the events and the messages of one service leave; there from `setup()` on."""

    needs_broker = True
    container: Container
    events: Outlet
    messages: Outlet

    def setup(self) -> None:
        self.events = self._outlet(CallKind.EVENT)
        self.messages = self._outlet(CallKind.MESSAGE)

    def reconfigure(self, old: Settings, new: Settings) -> None:
        self.events.timeout = self.messages.timeout = new.mycelia.publish_timeout

    def _outlet(self, kind: CallKind) -> Outlet:
        container = self.container
        host = container.host
        return Outlet(
            kind,
            host.link,
            host.serializers,
            caller=container.service_name,
            timeout=container.settings.mycelia.publish_timeout,
            middleware_for=container.middleware_for,
        )
