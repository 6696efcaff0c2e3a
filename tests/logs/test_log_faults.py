"""Logs while connections are cut and the broker is away: every confirmed record is read exactly once, in the order of its key."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest
from tests.faults.conftest import direct, link, proxy
from tests.links import opening_links
from tests.logs.ledger import Ledger
from tests.logs.shapes import Departed, layout, read, records_of, writing
from tests.progress import until
from tests.tools import write_out_declarations

from mycelia.amqp import LinkOptions, Message
from mycelia.amqp.memory.link import MemoryLink
from mycelia.amqp.rabbit.link import RabbitLink
from mycelia.broker.node import PrivateNode
from mycelia.errors import BrokerBlocked, BrokerUnavailable, RuntimeStateError
from mycelia.logs.reader import LogReader
from mycelia.testing import Fault, TcpProxy, eventually

__all__ = ["direct", "link", "proxy"]

ONE = layout(1)


@pytest.mark.long
async def test_cuts_of_writer_and_reader_lose_and_repeat_nothing(
    link: RabbitLink, direct: RabbitLink, proxy: TcpProxy
) -> None:
    """Every second one after confirms were lost on their way, so that batches are sent twice."""
    ledger = Ledger(layout(4))

    async def entries() -> int:
        names = [queue.name for queue in ledger.of.streams()]
        return sum([await direct.message_count(name) for name in names])

    async with writing(link, ledger.of) as writer, ledger.reading(link):
        async with ledger.appending(writer):
            for cut in range(1, 9):
                goal = ledger.confirmed_count + 500
                await until(
                    lambda goal=goal: ledger.confirmed_count > goal,
                    lambda: ledger.confirmed_count,
                    what="appends go on after a cut",
                    interval=0.01,
                )
                if cut % 2:
                    before = await entries()
                    await proxy.fail(Fault.DOWNSTREAM_BLACKHOLE)

                    async def some_are_unconfirmed(before: int = before) -> bool:
                        return await entries() > before

                    await eventually(some_are_unconfirmed, 20)
                proxy.drop()
                await proxy.heal()
                await eventually(lambda cut=cut: link.statistics().reconnects >= cut, 20)
        await ledger.settle()

    assert ledger.repeated > 0


async def test_batch_whose_confirm_was_lost_is_read_once_and_holds_its_followers(
    link: RabbitLink, direct: RabbitLink, proxy: TcpProxy
) -> None:
    async with writing(link, ONE, linger=0) as writer:
        await writer.append(Departed("JFK", 0))
        await proxy.fail(Fault.DOWNSTREAM_BLACKHOLE)
        first = asyncio.ensure_future(writer.append(Departed("JFK", 1)))

        async def is_stored() -> bool:
            return await direct.message_count("flights.departed-0") == 2

        await eventually(is_stored, 20)
        followers = [asyncio.ensure_future(writer.append(Departed("JFK", n))) for n in (2, 3, 4)]
        await asyncio.sleep(0)
        assert not first.done()

        proxy.drop()
        await proxy.heal()
        await asyncio.gather(first, *followers)

        async with LogReader(direct, ONE, writer._shape, 0) as reader:
            entries = [await reader.take(10) for _ in range(3)]
            numbers = [one.value.number for one in records_of(entries)]  # type: ignore[arg-type]
            assert numbers == [0, 1, 2, 3, 4]
            assert reader.statistics().repeated == 1


async def test_reader_cut_off_while_it_waits_goes_on_where_it_was(
    link: RabbitLink, direct: RabbitLink, proxy: TcpProxy
) -> None:
    """Also one that has not read anything yet, and would begin with what comes next."""
    async with writing(direct, ONE, linger=0) as writer:
        await writer.append(Departed("JFK", 0))
        async with LogReader(link, ONE, writer._shape, 0, "next") as reader:
            await proxy.fail(Fault.REFUSED)
            proxy.drop()
            await eventually(lambda: link.state.value == "reconnecting", 30)
            await writer.append(Departed("JFK", 1))
            await proxy.heal()

            entry = await reader.take(20)
            assert entry is not None
            assert [record.value.number for record in entry.records] == [1]


async def test_killed_broker_costs_no_confirmed_record(own_rabbit_node: PrivateNode) -> None:
    node = own_rabbit_node
    ledger = Ledger(layout(3))
    async with (
        opening_links(lambda: RabbitLink(node.uri(), LinkOptions(name="ledger"))) as open_link,
        writing(link := await open_link(), ledger.of, timeout=90) as writer,
        ledger.reading(link),
    ):
        async with ledger.appending(writer):
            for _ in range(2):
                goal = ledger.confirmed_count + 1000
                await until(
                    lambda goal=goal: ledger.confirmed_count > goal,
                    lambda: ledger.confirmed_count,
                    what="appends go on after the broker is back",
                    stalled_s=60,
                    interval=0.01,
                )
                await asyncio.to_thread(write_out_declarations, node)
                await asyncio.to_thread(node.kill)
                await asyncio.to_thread(lambda: node.start(leash=True))
            goal = ledger.confirmed_count + 500
            await until(
                lambda: ledger.confirmed_count > goal,
                lambda: ledger.confirmed_count,
                what="appends go on",
                stalled_s=60,
            )
        await ledger.settle()


# --- the broker does not answer: bounds ---------------------------------------------------------------


@pytest.fixture
async def memory() -> AsyncIterator[MemoryLink]:
    link = MemoryLink(f"memory://{secrets.token_hex(6)}")
    await link.open()
    yield link
    link.broker.unblock()
    await link.aclose()


async def test_appends_beyond_the_buffer_wait_and_go_on_in_their_order(memory: MemoryLink) -> None:
    async with writing(memory, ONE, linger=0, buffer_bytes=2000) as writer:
        await writer.append(Departed("JFK", 0))
        memory.broker.block()
        appends = [asyncio.ensure_future(writer.append(Departed("JFK", n))) for n in range(1, 200)]
        many = asyncio.ensure_future(
            writer.append_many([Departed("JFK", n) for n in range(200, 300)])
        )
        await eventually(lambda: writer.statistics().waiting > 100, 30)
        waiting = writer.statistics()

        memory.broker.unblock()
        await asyncio.gather(*appends, many)

        assert waiting.unconfirmed_bytes <= 2000
        assert waiting.waiting > 100
        assert writer.statistics().unconfirmed_bytes == 0
    numbers = [r.value.number for r in records_of(await read(memory, ONE, 0, 300))]
    assert numbers == list(range(300))


async def test_append_that_waits_in_vain_is_told_and_its_room_comes_back(
    memory: MemoryLink,
) -> None:
    async with writing(memory, ONE, linger=0, buffer_bytes=500, timeout=0.2) as writer:
        memory.broker.block()

        ended = await asyncio.gather(
            *(writer.append(Departed("JFK", n)) for n in range(50)), return_exceptions=True
        )
        memory.broker.unblock()

        kinds = {type(one) for one in ended}
        assert kinds <= {BrokerBlocked, BrokerUnavailable}
        assert any("nothing was appended" in str(one) for one in ended)
        await writer.append(Departed("JFK", 99))
        assert writer.statistics().unconfirmed_bytes == 0
        assert writer.statistics().failed > 0


class Refusing(MemoryLink):
    """As if the broker refused one message for a while, and took others: an election in its queue."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.takes_it = asyncio.Event()
        self.refused = 0

    async def publish(self, message: Message, *, timeout: float = 30.0) -> None:
        if message.exchange and not self.refused:
            self.refused += 1
            await self.takes_it.wait()
        await super().publish(message, timeout=timeout)


async def test_batch_that_is_refused_for_a_while_holds_up_those_behind_it() -> None:
    """Sent side by side, the order of their key would be lost. Another partition goes on."""
    link = Refusing(f"memory://{secrets.token_hex(6)}")
    await link.open()
    of = layout(2)
    async with writing(link, of, linger=0) as writer:
        appends = []
        for number in range(5):
            appends.append(asyncio.ensure_future(writer.append(Departed("JFK", number))))
            await eventually(lambda: link.refused == 1, 30)
        await writer.append(Departed("LGA", 9))
        assert not any(append.done() for append in appends)

        link.takes_it.set()
        await asyncio.gather(*appends)

        entries = await read(link, of, 1, 5)
        assert [one.value.number for one in records_of(entries)] == [0, 1, 2, 3, 4]
        assert len(entries) == 2, "what waited has become one batch"
    await link.aclose()


async def test_cancelled_appends_leave_no_room_taken(memory: MemoryLink) -> None:
    async with writing(memory, ONE, linger=0, buffer_bytes=500) as writer:
        memory.broker.block()
        appends = [asyncio.ensure_future(writer.append(Departed("JFK", n))) for n in range(50)]
        await eventually(lambda: writer.statistics().waiting > 0, 30)
        for append in appends[1::2]:
            append.cancel()
        await asyncio.sleep(0)
        memory.broker.unblock()
        ended = await asyncio.gather(*appends, return_exceptions=True)

        assert ended[::2] == [None] * 25
        await writer.append(Departed("JFK", 99))
        assert writer.statistics().unconfirmed_bytes == 0


async def test_stop_sends_what_is_there(memory: MemoryLink) -> None:
    async with writing(memory, ONE, linger=60) as writer:
        appends = [asyncio.ensure_future(writer.append(Departed("JFK", n))) for n in range(20)]
        await asyncio.sleep(0)
        await writer.aclose()

        assert await asyncio.gather(*appends) == [None] * 20
    assert len(records_of(await read(memory, ONE, 0, 20))) == 20


async def test_flush_waits_for_what_was_appended_before_it(memory: MemoryLink) -> None:
    async with writing(memory, ONE, linger=60) as writer:
        append = asyncio.ensure_future(writer.append(Departed("JFK", 1)))
        await asyncio.sleep(0)
        await writer.flush()

        assert append.done() or await append is None
        await writer.flush()


async def test_stop_with_the_broker_away_is_bounded_and_told(memory: MemoryLink) -> None:
    async with writing(memory, ONE, linger=0, buffer_bytes=300) as writer:
        memory.broker.block()
        appends = [asyncio.ensure_future(writer.append(Departed("JFK", n))) for n in range(20)]
        await eventually(lambda: writer.statistics().waiting > 0, 30)
        started = asyncio.get_running_loop().time()
        await writer.aclose(timeout=0.3)

        ended = await asyncio.gather(*appends, return_exceptions=True)
        assert asyncio.get_running_loop().time() - started < 15
        assert {type(one) for one in ended} == {BrokerUnavailable, RuntimeStateError}
        assert writer.statistics().unconfirmed_bytes == 0
