"""Dead letters, for a test to look at: taken out of their queue, with why they are there."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from mycelia.amqp import Delivery, Link
from mycelia.entrypoints.dead_letters import dead_letter_queue_name
from mycelia.entrypoints.received import decode_body
from mycelia.errors import ContractError, TopologyError
from mycelia.testing.services import running
from mycelia.wire import SerializerRegistry

__all__ = ["TakenLetter", "take_dead_letters"]

_INTERVAL_S = 0.01


class TakenLetter(msgspec.Struct, frozen=True):
    """A message that could not be handled, and why."""

    payload: Any
    """What its body says; the bytes where it cannot be read."""
    headers: dict[str, Any]
    """All of them, those about its death among them (docs/operating.md)."""
    reason: str
    """`handler_error`, `undecodable`, `too_many_attempts`, …"""
    error: str
    """The error's class and text: `KeyError: 'sku'`; empty where there was none."""
    method: str
    """Of the service that could not handle it: `invoices.taken`."""
    attempts: int
    delivery: Delivery
    """The whole message; acknowledged."""


async def take_dead_letters(
    link: Link, handler: str, count: int = 1, timeout: float = 5.0
) -> list[TakenLetter]:
    """Wait for dead letters and take them out of their queue.

    Args:
        link: an open one.
        handler: `service.method` of a service that `run_services()` runs, or the name of a queue that messages come from.
        count: how many to wait for; 0 gives what is there now.
        timeout: seconds to wait.

    Returns:
        At least `count`: all that lay there when the last of them had come, the oldest first.

    Raises:
        AssertionError: fewer came in time; says what came.
    """
    queue = _queue_of(handler) or handler
    dead = queue if queue.endswith(".dead") else dead_letter_queue_name(queue)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    taken: list[TakenLetter] = []
    while True:
        found = await _take_one(link, dead)
        if found is not None:
            taken.append(found)
        elif len(taken) >= count:
            return taken
        elif loop.time() >= deadline:
            came = "; ".join(f"{one.reason}: {one.error}" for one in taken) or "none"
            raise AssertionError(
                f'{len(taken)} of {count} dead letters in "{dead}" within {timeout:g} s: {came}.'
            )
        else:
            await asyncio.sleep(_INTERVAL_S)


def _queue_of(handler: str) -> str | None:
    for runner in running:
        for container in runner.containers:
            for entrypoint in container.entrypoints:
                if entrypoint.target.name == handler:
                    queue: str | None = getattr(entrypoint.statistics(), "queue", None)
                    return queue
    return None


async def _take_one(link: Link, queue: str) -> TakenLetter | None:
    try:
        delivery = await link.get(queue)
    except TopologyError:  # it is declared with the first dead letter
        return None
    if delivery is None:
        return None
    delivery.ack()
    headers = dict(delivery.properties.headers or {})
    try:
        payload = decode_body(delivery, SerializerRegistry.from_config({}))
    except ContractError:
        payload = delivery.body
    kind, text = headers.get("x-mycelia-error-type"), headers.get("x-mycelia-error")
    return TakenLetter(
        payload=payload,
        headers=headers,
        reason=str(headers.get("x-mycelia-reason", "")),
        error=f"{kind}: {text}" if kind else "",
        method=f"{headers.get('x-mycelia-service')}.{headers.get('x-mycelia-method')}",
        attempts=int(headers.get("x-mycelia-attempts", 0)),
        delivery=delivery,
    )
