"""A dead letter that somebody puts back brings its headers along; it is a new message all the same."""

from __future__ import annotations

from typing import Any

import pytest

from mycelia import event_handler, get_current_call
from mycelia.amqp import Link, Message, Properties
from mycelia.testing import eventually, run_services

QUEUE = "evt-source-happened--mended.happened"


class Mended:
    """Fails as often as it is told to; then what failed before works."""

    name = "mended"
    failures: int
    attempts: list[int]
    headers: list[dict[str, Any]]

    @event_handler("source", "happened", requeue_on_error=True)
    async def happened(self, payload: int) -> None:
        call = get_current_call()
        assert call is not None
        self.attempts.append(call.attempt)
        self.headers.append(call.message.properties.headers)
        if len(self.attempts) <= self.failures:
            raise LookupError("not yet")


async def _put_back(link: Link) -> None:
    """What a shovel does with a dead letter of a message that had come back 25 times."""
    headers = {"x-delivery-count": 25, "x-mycelia-reason": "too_many_attempts"}
    properties = Properties(content_type="application/json", delivery_mode=2, headers=headers)
    await link.publish(Message("", QUEUE, b"1", properties, mandatory=True))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("failures", [0, 1])
async def test_message_put_back_starts_anew(broker: str, failures: int) -> None:
    Mended.failures, Mended.attempts, Mended.headers = failures, [], []

    async with run_services(Mended, broker=broker) as bed:
        await _put_back(bed.container(Mended).host.link)
        await eventually(lambda: len(Mended.attempts) == failures + 1)

    assert Mended.attempts == [1, 2][: failures + 1]
    assert "x-delivery-count" not in Mended.headers[-1] or not failures
