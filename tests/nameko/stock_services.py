"""Services that run on stock Nameko: `nameko run` with its own container."""

from __future__ import annotations

from typing import Any

from nameko.events import BROADCAST, SINGLETON, EventDispatcher, event_handler
from nameko.exceptions import deserialize_to_instance
from nameko.extensions import DependencyProvider
from nameko.rpc import RpcProxy, rpc
from tests.nameko.shared_errors import PlaneNotFound

deserialize_to_instance(PlaneNotFound)

seen: list[list[Any]] = []


class Context(DependencyProvider):
    """Injects the worker's context data."""

    def get_dependency(self, worker_ctx: Any) -> Any:
        return worker_ctx.context_data


class Stock:
    """What Mycelia's clients and services talk to."""

    name = "stock"
    mycelium = RpcProxy("mycelium")
    dispatch = EventDispatcher()
    context = Context()

    @rpc
    def echo(self, *args: Any, **kwargs: Any) -> Any:
        return {"args": args, "kwargs": kwargs}

    @rpc
    def one(self, value: Any) -> Any:
        return value

    @rpc
    def fail(self) -> None:
        raise ValueError("no plane N1")

    @rpc
    def fail_registered(self) -> None:
        raise PlaneNotFound("N2")

    @rpc
    def unserializable(self) -> Any:
        return object()

    @rpc
    def context_data(self) -> Any:
        return self.context

    @rpc
    def relay(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a Mycelia service: a stock hop in the middle."""
        return getattr(self.mycelium, method)(*args, **kwargs)

    @rpc
    def relay_error(self, method: str, *args: Any) -> Any:
        try:
            return getattr(self.mycelium, method)(*args)
        except Exception as exc:  # noqa: BLE001  the caller is told of it
            return [type(exc).__name__, str(exc)]

    @rpc
    def announce(self, event_type: str, payload: Any) -> None:
        self.dispatch(event_type, payload)

    @event_handler("mycelium", "pooled")
    def pooled(self, payload: Any) -> None:
        seen.append(["pooled", payload])

    @event_handler("mycelium", "single", handler_type=SINGLETON)
    def single(self, payload: Any) -> None:
        seen.append(["single", payload])

    @event_handler("mycelium", "cast", handler_type=BROADCAST, reliable_delivery=False)
    def cast(self, payload: Any) -> None:
        seen.append(["cast", payload])

    @event_handler("stock_client", "announced")
    def announced(self, payload: Any) -> None:
        seen.append(["announced", payload])

    @rpc
    def seen(self) -> Any:
        return seen


class Shared:
    """Half of a mixed fleet: the same service as `test_mixed_fleet.Shared`."""

    name = "shared"

    @rpc
    def who(self, number: int) -> list[Any]:
        return ["stock", number]

    @event_handler("mycelium", "shared")
    def on_shared(self, payload: Any) -> None:
        seen.append(["shared", payload])

    @rpc
    def seen_shared(self) -> Any:
        return ["stock", [payload for kind, payload in seen if kind == "shared"]]
