"""What a worker is to those who take part in its life."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mycelia.call import Call
from mycelia.runtime.extensions import BoundTo, Entrypoint
from mycelia.wire import CALL_ID_STACK

__all__ = ["WorkerContext"]


class WorkerContext:
    """What a dependency provider may know of a worker. Attribute names are Nameko's (nameko/containers.py:61).

    Contexts of one call are equal, so a provider may keep what belongs to a worker in a dict with the context as key.
    """

    foreign: WorkerContext | None = None
    """The same worker as providers of another framework know it; kept here by what runs those, for as long as it lasts."""

    def __init__(self, container: BoundTo, entrypoint: Entrypoint, call: Call, is_async: bool):
        self.container = container
        self.entrypoint = entrypoint
        self.call = call
        self.is_async = is_async
        """Whether the worker is an `async def` on the event loop, or a `def` in a thread."""
        self.service: Any = None
        """The worker's service instance; `None` until `get_dependency` begins."""

    @property
    def config(self) -> Mapping[str, Any]:
        return self.container.config

    @property
    def service_name(self) -> str:
        return self.container.service_name

    @property
    def args(self) -> Any:
        return self.call.args

    @property
    def kwargs(self) -> dict[str, Any]:
        return self.call.kwargs

    @property
    def data(self) -> dict[str, Any]:
        """The call's context data; what is put here goes on with every call the worker makes."""
        return self.call.context

    @property
    def context_data(self) -> dict[str, Any]:
        """A copy of `data` as the next call would send it: its call ids end with this worker's own."""
        return {**self.call.context, CALL_ID_STACK: self.call.call_id_stack}

    @property
    def call_id(self) -> str:
        return self.call.call_id

    @property
    def call_id_stack(self) -> list[str]:
        return self.call.call_id_stack

    @property
    def origin_call_id(self) -> str | None:
        """The first of the calls that led here, as far back as their ids came along; `None` when this is the first."""
        parents = self._parent_call_ids
        return parents[0] if parents else None

    @property
    def immediate_parent_call_id(self) -> str | None:
        """The call that this one came from; `None` when this is the first."""
        parents = self._parent_call_ids
        return parents[-1] if parents else None

    @property
    def _parent_call_ids(self) -> list[str]:
        """As they came: `parent_calls_tracked` bounds only what is sent on (nameko/containers.py:61)."""
        parents = self.call.context.get(CALL_ID_STACK)
        return parents if isinstance(parents, list) else []

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WorkerContext) and other.call is self.call

    def __hash__(self) -> int:
        return id(self.call)

    def __repr__(self) -> str:
        return f"<WorkerContext [{self.service_name}.{self.entrypoint.method_name}]>"
