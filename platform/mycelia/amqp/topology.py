"""What a link has declared and will declare again after a reconnect. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mycelia.amqp.model import Binding, Exchange, ExchangeBinding, Queue

__all__ = ["Part", "Topology", "as_fields", "in_order"]

Part = Exchange | Queue | Binding | ExchangeBinding


def in_order(parts: Iterable[Part]) -> list[Part]:
    """Exchanges, then queues, then bindings: what a part refers to comes before it."""
    rank = {Exchange: 0, Queue: 1, Binding: 2, ExchangeBinding: 3}
    return sorted(parts, key=lambda part: rank[type(part)])


def as_fields(part: Part) -> dict[str, str]:
    """What names `part`, as fields of a log line."""
    if isinstance(part, Exchange):
        return {"exchange": part.name}
    if isinstance(part, Queue):
        return {"queue": part.name}
    if isinstance(part, ExchangeBinding):
        return {
            "destination": part.destination,
            "exchange": part.exchange,
            "routing_key": part.routing_key,
        }
    return {"queue": part.queue, "exchange": part.exchange, "routing_key": part.routing_key}


class Topology:
    """Distinct parts, each once, in the order first declared. Passive ones are checks, and are not kept."""

    __slots__ = ("_parts", "_to_streams")

    def __init__(self) -> None:
        self._parts: dict[Part, None] = {}
        self._to_streams: frozenset[tuple[str, str]] | None = None
        """Exchanges and routing keys that lead to a stream; `None`: to be looked up."""

    def remember(self, parts: Iterable[Part]) -> None:
        self._to_streams = None
        for part in parts:
            if isinstance(part, Binding | ExchangeBinding) or not part.passive:
                self._parts[part] = None

    def forget(self, parts: Iterable[Part]) -> None:
        self._to_streams = None
        for part in parts:
            self._parts.pop(part, None)

    def forget_queue(self, name: str) -> None:
        """Drop a queue and the bindings to it."""
        self._to_streams = None
        for part in list(self._parts):
            if (isinstance(part, Queue) and part.name == name) or (
                isinstance(part, Binding) and part.queue == name
            ):
                del self._parts[part]

    def forget_exchange(self, name: str) -> None:
        """Drop an exchange and the bindings of it."""
        self._to_streams = None
        for part in list(self._parts):
            if (isinstance(part, Exchange) and part.name == name) or (
                isinstance(part, Binding) and part.exchange == name
            ):
                del self._parts[part]

    def has_exchange(self, name: str) -> bool:
        """Whether an exchange of that name is remembered."""
        return any(isinstance(part, Exchange) and part.name == name for part in self._parts)

    def is_exclusive(self, queue: str) -> bool:
        """Whether `queue` is remembered as exclusive: only the connection that declared it may use it."""
        return any(
            isinstance(part, Queue) and part.exclusive and part.name == queue
            for part in self._parts
        )

    def queue(self, name: str) -> Queue | None:
        """How `name` was declared, if it is remembered."""
        found = None
        for part in self._parts:
            if isinstance(part, Queue) and part.name == name:
                found = part
        return found

    def leads_to_stream(self, exchange: str, routing_key: str) -> bool:
        """Whether all that is published so reaches a stream: by the default exchange, or a direct one, as far as they are remembered."""
        if self._to_streams is None:
            self._to_streams = self._leading_to_streams()
        return (exchange, routing_key) in self._to_streams

    def _leading_to_streams(self) -> frozenset[tuple[str, str]]:
        streams = {
            part.name
            for part in self._parts
            if isinstance(part, Queue) and part.arguments.get("x-queue-type") == "stream"
        }
        direct = {
            part.name
            for part in self._parts
            if isinstance(part, Exchange) and part.type == "direct"
        }
        bound = {
            (part.exchange, part.routing_key)
            for part in self._parts
            if isinstance(part, Binding) and part.queue in streams and part.exchange in direct
        }
        return frozenset(bound | {("", name) for name in streams})

    def in_use(self, consumed: Collection[str]) -> list[Part]:
        """The remembered parts that must be there now; `consumed` names the queues that a consumer here is on.

        Without those whose absence may be right: a queue that goes with its last consumer (auto-delete) or its time
        (`x-expires`), unless it is consumed here, its bindings, and an auto-delete exchange that nothing of ours is bound to.
        Declaring them again would keep alive what was meant to go.
        """
        gone = {
            part.name
            for part in self._parts
            if isinstance(part, Queue)
            and (part.auto_delete or "x-expires" in part.arguments)
            and part.name not in consumed
        }
        bindings = [
            part for part in self._parts if isinstance(part, Binding) and part.queue not in gone
        ]
        bound = {binding.exchange for binding in bindings}
        kept: list[Part] = [
            part
            for part in self._parts
            if (isinstance(part, Queue) and part.name not in gone)
            or (isinstance(part, Exchange) and (not part.auto_delete or part.name in bound))
        ]
        there = {part.name for part in kept if isinstance(part, Exchange)}
        chains = [
            part
            for part in self._parts
            if isinstance(part, ExchangeBinding) and {part.destination, part.exchange} <= there
        ]
        return [*kept, *bindings, *chains]

    def split(self, parts: Iterable[Part] | None = None) -> tuple[list[Part], list[Part]]:
        """`parts` (all that is remembered, if not given) as (shared, exclusive), each in order of declaration.

        Exclusive queues and their bindings have to be declared on the connection that consumes from them.
        """
        chosen = list(self._parts if parts is None else parts)
        exclusive = {
            part.name
            for known in (chosen, self._parts)
            for part in known
            if isinstance(part, Queue) and part.exclusive
        }
        shared: list[Part] = []
        own: list[Part] = []
        for part in in_order(chosen):
            if isinstance(part, Exchange) and not part.name:
                continue  # the default exchange is there, and may not be declared
            name = part.queue if isinstance(part, Binding) else getattr(part, "name", "")
            is_own = not isinstance(part, Exchange) and name in exclusive
            (own if is_own else shared).append(part)
        return shared, own
