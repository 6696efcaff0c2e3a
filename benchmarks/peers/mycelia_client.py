"""Mycelia's asyncio client: one connection shared by all calls, everything at its default.

`python -m benchmarks.peers.mycelia_client ROLE-SERVICE`, as in `rpc-client-bench_async`.
"""

from __future__ import annotations

from benchmarks.peers import event_load, rpc_load
from benchmarks.peers.protocol import ECHOED, Event, amqp_uri
from benchmarks.peers.roles import Role, levels, play
from mycelia import Client

SERVICES = ("bench_async", "bench_def")


def rpc_client(service: str) -> Role:
    """Call `service`.echo."""

    async def role() -> None:
        async with Client(amqp_uri()) as client:
            await rpc_load.drive(lambda: client.call(service, "echo", ECHOED), levels())

    return role


def event_publisher(service: str) -> Role:
    """Dispatch events that `service` handles, each awaited until confirmed."""

    async def role() -> None:
        async with Client(amqp_uri()) as client:

            async def publish(event: Event) -> None:
                await client.publish(f"{service}_feed", "departed", event)

            await event_load.publish_bursts(publish)

    return role


if __name__ == "__main__":
    play(
        {
            f"{title}-{service}": role(service)
            for service in SERVICES
            for title, role in (("rpc-client", rpc_client), ("event-publisher", event_publisher))
        }
    )
