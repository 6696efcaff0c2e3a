"""`Logger()`: a structlog logger for the service, whose lines carry the call being handled."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from mycelia.log_event import LogEvent
from mycelia.providers.call_fields import call_fields
from mycelia.redaction import without_secrets
from mycelia.runtime import Container, SharedDependency

if TYPE_CHECKING:
    import structlog

__all__ = ["Logger"]


class Logger(SharedDependency):
    """Injects a `structlog.stdlib.BoundLogger`.

        log = Logger()
        ...
        self.log.info("replay_started", run=run, speed=speed)

    Each line carries `service`, `method`, `call_id`, `attempt` and, where the call is traced, `trace_id`; they are looked up
    when a line is written, so a call that logs nothing pays nothing, and a task that goes on when its worker has ended still
    names its call. What is secret by its name (`auth_token=…`, `password=…`, in maps too) is shown as `***`. Lines go through the standard library's logger named
    after the service's module, where levels and handlers apply as usual.

    Args:
        fields: bound to every line: `Logger(team="ops")`.
    """

    container: Container

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        self._logger: structlog.stdlib.BoundLogger | None = None

    if TYPE_CHECKING:
        # In a worker the attribute holds what is injected.
        def __get__(
            self, instance: object, owner: type | None = None
        ) -> structlog.stdlib.BoundLogger: ...

    def setup(self) -> None:
        import structlog  # takes longer to import than the rest of this package; a client need not pay for it

        container = self.container
        self._logger = structlog.wrap_logger(
            logging.getLogger(container.service_cls.__module__),
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.stdlib.PositionalArgumentsFormatter(),
                _to_record,
            ],
            wrapper_class=structlog.stdlib.BoundLogger,
            service=container.service_name,
            **self.fields,
        ).bind()

    def shared_dependency(self, is_async: bool) -> Any:
        """One logger for all workers; it is safe in threads."""
        return self._logger


def _to_record(
    logger: object, method: str, event_dict: MutableMapping[str, Any]
) -> tuple[tuple[LogEvent], dict[str, Any]]:
    """Hand the line to the standard library, as one message that any formatter can show."""
    special = {
        key: event_dict.pop(key)
        for key in ("exc_info", "stack_info", "stacklevel")
        if key in event_dict
    }
    name = str(event_dict.pop("event", ""))
    fields = {key: without_secrets(value, key) for key, value in event_dict.items()}
    return (LogEvent(name, call_fields() | fields),), special
