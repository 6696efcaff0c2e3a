"""What a handler written for Nameko could not handle is sent to it again."""

from __future__ import annotations

from kombu import Queue as KombuQueue
from nameko.events import event_handler
from nameko.messaging import consume
from tests.control.letters import AT_ONCE

from mycelia.amqp import Link, Message, Properties, connect
from mycelia.control.dead_letters import LetterFilter, Router, redrive
from mycelia.errors import TopologyError
from mycelia.testing import eventually, run_services


class Existing:
    name = "existing"
    is_mended = False
    handled: list[tuple[str, int]]

    def handle(self, name: str, payload: int) -> None:
        if not Existing.is_mended:
            raise LookupError("not yet")
        Existing.handled.append((name, payload))

    @event_handler("source", "happened")
    def happened(self, payload: int) -> None:
        self.handle("happened", payload)

    @consume(KombuQueue("work-items"))
    def worked(self, payload: int) -> None:
        self.handle("worked", payload)


async def _has_one(link: Link, queue: str) -> bool:
    try:
        return await link.message_count(queue) == 1
    except TopologyError:
        return False


async def test_handlers_written_for_nameko_get_their_dead_letters_again(rabbit_uri: str) -> None:
    Existing.is_mended, Existing.handled = False, []
    link = connect(rabbit_uri)
    await link.open(30)
    async with run_services(Existing, broker=rabbit_uri, timeout=30, config=AT_ONCE) as bed:
        await bed.client.publish("source", "happened", 1)
        properties = Properties("application/json", "utf-8")
        await link.publish(Message("", "work-items", b"2", properties, mandatory=True))
        dead = ["evt-source-happened--existing.happened.dead", "work-items.dead"]
        for queue in dead:
            await eventually(lambda queue=queue: _has_one(link, queue), 20)  # type: ignore[misc]
        Existing.is_mended = True

        for queue in dead:
            report = await redrive(link, queue, Router(link), LetterFilter())
            assert (report.sent, report.is_complete) == (1, True)

        await eventually(lambda: len(Existing.handled) == 2, 20)
    await link.aclose()
    assert sorted(Existing.handled) == [("happened", 1), ("worked", 2)]
