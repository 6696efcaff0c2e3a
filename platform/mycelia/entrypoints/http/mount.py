"""`mount()`: an existing ASGI application beside `@http` methods.

admin = mount("/admin", admin_app)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

from mycelia.durations import Duration, seconds_of
from mycelia.entrypoints.http.entrypoint import HttpListener
from mycelia.entrypoints.http.paths import parameters_of, translate_path
from mycelia.errors import ConfigError
from mycelia.extras import require_extra
from mycelia.runtime import Container, SharedDependency
from mycelia.runtime.mistakes import class_being_written, refuse

if TYPE_CHECKING:
    from mycelia.entrypoints.http.routes import MountedApplication

__all__ = ["HttpMount", "mount"]

App = TypeVar("App")

DEFAULT_START_TIMEOUT = 60.0
"""Seconds. Arbitrary; above what an application takes that opens its pools and reads its models."""


class HttpMount(SharedDependency):
    """The extension behind `mount()`. Injects the application.

    Args:
        path: fixed text, such as `/admin`; `/` for all that no method answers.
        app: the application.
        max_body_bytes, start_timeout: as for `mount()`.
    """

    container: Container
    listener = HttpListener()

    def __init__(
        self,
        path: str,
        app: Any,
        *,
        max_body_bytes: int | None = None,
        start_timeout: Duration = DEFAULT_START_TIMEOUT,
    ) -> None:
        self.start_timeout = seconds_of(start_timeout, "start_timeout")
        self.path = path.rstrip("/")
        self.app = app
        self.max_body_bytes = max_body_bytes
        self._part: MountedApplication | None = None

    @property
    def address(self) -> str:
        """`host:port` where the server answers; the bound port once it is set up."""
        return self.listener.server.address

    def bind(self, container: Any, attr_name: str = "") -> Any:
        instance = super().bind(container, attr_name)
        require_extra("http", f'{container.service_name}.{attr_name}: mount("{self.path or "/"}")')
        return instance

    async def setup(self) -> None:
        from mycelia.entrypoints.http.routes import MountedApplication  # Starlette: only now

        section, service = self.container.settings.mycelia, self.container.service_name
        self._part = MountedApplication(
            service,
            f"{service}.{self.attr_name}",
            self.path,
            self.app,
            max_body_bytes=self.max_body_bytes or section.http_max_body_bytes,
            body_timeout=section.http_body_timeout,
        )
        self.listener.server.add(self._part)
        failure = await self._part.lifespan.startup(self.start_timeout)
        if failure is not None:
            raise ConfigError(
                f'mount("{self.path or "/"}") of {service}: the application does not start: {failure}'
            )

    async def start(self) -> None:
        await self.listener.server.start()

    async def stop(self) -> None:
        """After the workers: requests under way are finished, then the application shuts down."""
        if self._part is not None:
            self.listener.retire()
            await self._part.finish()
            await self._part.lifespan.shutdown()

    def shared_dependency(self, is_async: bool) -> Any:
        return self.app


def mount(
    path: str,
    app: App,
    *,
    max_body_bytes: int | None = None,
    start_timeout: Duration = DEFAULT_START_TIMEOUT,
) -> App:
    """Serve an ASGI application (FastAPI, Starlette, …) below `path`, in the server of the `@http` methods.

        class Shop:
            name = "shop"
            admin = mount("/admin", admin_app)

    The application starts (its lifespan) before the service answers, and ends when its last request has. Methods find it
    under the attribute's name. `@http` methods are tried together with it, the particular path first.

    Args:
        path: fixed text, such as `/admin`; `/` for all that no method answers.
        app: the application.
        max_body_bytes: of a request, if not the setting `mycelia.http_max_body_bytes`; an application that streams what
            it gets may take more.
        start_timeout: how long the application may take to get ready; after that the service does not start.

    Returns:
        Where type checkers look, the application, which is what methods see; in fact an `HttpMount`.

    Raises:
        ConfigError: a path that is not fixed text, no application, or no duration.
    """
    try:
        if parameters_of(translate_path(path)):
            raise ValueError(f"path {path!r}: expected fixed text, without parameters.")
        if not callable(app):
            raise ValueError(f"{app!r} is not an ASGI application, such as `FastAPI()`.")
        declared = HttpMount(path, app, max_body_bytes=max_body_bytes, start_timeout=start_timeout)
    except (ValueError, ConfigError) as exc:
        refuse(class_being_written(), f"mount({path!r}, …)", str(exc))
    return cast(App, declared)
