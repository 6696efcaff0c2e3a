"""Declaring exchanges, queues and bindings on a connection, on short-lived channels that no consumer shares.

A queue whose node is down is refused (404), and RabbitMQ may take its time to say so: 3.x forgets a dead node's classic queues at once.
4.x goes on taking them for alive, and looks for a queue's process 2000 times, 30 ms apart, before it answers (`rabbit_amqqueue:with/4`;
seen with 4.0.5 and 4.3.6); for that minute the channel is deaf. So the answer is not waited for: a queue that stays silent while the broker
answers something else counts as being away (`QueueNodeDown`), and never keeps other queues waiting.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, Final

from mycelia.amqp.model import Binding, Exchange, ExchangeBinding, Queue
from mycelia.amqp.rabbit.connection import (
    BrokerChannel,
    BrokerConnection,
    ChannelClosed,
    ConnectionLost,
)
from mycelia.amqp.refusals import (
    NOT_FOUND,
    NOT_POSSIBLE,
    QueueNodeDown,
    declaration_refused,
    describe_part,
)
from mycelia.amqp.topology import Part, as_fields, in_order
from mycelia.errors import AccessRefused, BrokerUnavailable, ProtocolError, TopologyError
from mycelia.log_event import event

__all__ = ["Declarer"]

_log = logging.getLogger("mycelia.amqp")

_SILENCE_S: Final = 1.0
"""A queue that has not answered for so long is suspected to be away, and is away if it is still silent so long after the broker
has answered something else. A broker that was only slow answers both at about the same time."""
_LOOK_S: Final = 5.0
"""For one look at the whole topology; then each queue is asked by itself. Arbitrary: a look takes some milliseconds."""
_QUEUES_AT_ONCE: Final = 64
"""Redeclared beside each other, each on a channel of its own, of which a connection has 2047."""


class Declarer:
    """Declares parts; adopts queues (and exchanges of the same type) that exist with other arguments.

    Args:
        step_timeout: seconds for the broker's answer to one declaration. A quorum queue may take a while to elect.
    """

    def __init__(self, step_timeout: float = 30.0) -> None:
        self._step_timeout = step_timeout
        self._adopted: set[Part] = set()
        self._failing: dict[Part, str] = {}
        """What could not be redeclared lately, and why: said once, not at each attempt."""
        self._looking: BrokerChannel | None = None
        """Kept for `repair()`."""

    async def declare(self, connection: BrokerConnection, parts: Iterable[Part]) -> None:
        """Declare `parts`, exchanges first.

        Raises:
            TopologyError, AccessRefused: refused for good. What came before it is declared.
            BrokerUnavailable: the connection went down, or a queue's node is down.
        """
        channel: BrokerChannel | None = None
        try:
            for part in in_order(parts):
                if channel is None or channel.closed.done():  # adopting costs one
                    channel = await connection.open_channel(self._step_timeout)
                await self._declare(connection, channel, part)
                self._note_success(part)
        finally:
            if channel is not None:
                channel.close_nowait()

    async def redeclare(self, connection: BrokerConnection, parts: Iterable[Part]) -> None:
        """Declare what was declared before. What fails is logged, and the rest goes on.

        One queue whose node is down must not keep the others from working; its consumer keeps trying.

        Raises:
            BrokerUnavailable: the connection went down.
        """
        await self._redeclare_all(connection, parts)

    async def repair(self, connection: BrokerConnection, parts: Iterable[Part]) -> None:
        """Look whether `parts` are there, and declare what is missing. What fails is logged once, and the rest goes on.

        As cheap as it can be, because it runs for ever: one write, one answer. Exchanges and queues are looked for (passive,
        without an answer), bindings declared, because AMQP cannot look for them; the broker closes the channel over the first
        that is missing, and only then is each part declared by itself.

        Raises:
            BrokerUnavailable: the connection went down, or the broker does not answer.
        """
        parts = in_order(parts)
        failing_before = set(self._failing)
        sound = [part for part in parts if part not in failing_before]
        missing = await self._look_for(connection, sound) if sound else None
        if missing is not None:
            await self._redeclare_all(connection, parts)
            if self._failing.keys() <= failing_before:
                _log.warning(event("topology_repaired", parts=len(parts), missing=missing))
        elif len(sound) < len(parts):
            failing = [part for part in parts if part in failing_before]
            await self._redeclare_all(connection, failing)

    async def _look_for(self, connection: BrokerConnection, parts: list[Part]) -> str | None:
        """What the broker says of the first part that is missing, or that it says nothing; `None` if all are there."""
        channel = self._looking
        if channel is None or channel.connection is not connection or not channel.is_open:
            channel = self._looking = await connection.open_channel(self._step_timeout)
        try:
            for part in parts:
                method, arguments = _call_of(part)
                if not isinstance(part, Binding | ExchangeBinding):
                    arguments["passive"] = True
                channel.tell(method, **arguments)
            timeout = min(self._step_timeout, _LOOK_S)
            await channel.call("basic_qos", timeout, prefetch_count=1)  # an answer
        except ChannelClosed as exc:
            if exc.code == 0:
                raise BrokerUnavailable(str(exc)) from exc
            return exc.text
        except BrokerUnavailable as exc:
            channel.close_nowait()
            if not await _answers(connection):
                raise
            return str(exc)  # some queue keeps it: each is asked by itself
        except BaseException:
            channel.close_nowait()
            raise
        return None

    async def _redeclare_all(self, connection: BrokerConnection, parts: Iterable[Part]) -> None:
        """Declare `parts`, exchanges first; queues beside each other, for some of them may not answer."""
        parts = in_order(parts)
        room = asyncio.Semaphore(_QUEUES_AT_ONCE)

        async def redeclare_queue(queue: Queue) -> None:
            async with room:
                await self._redeclare_in_turn(connection, [queue])

        await self._redeclare_in_turn(
            connection, [one for one in parts if isinstance(one, Exchange)]
        )
        queues = [redeclare_queue(one) for one in parts if isinstance(one, Queue)]
        for ended in await asyncio.gather(*queues, return_exceptions=True):
            if isinstance(ended, BaseException):
                raise ended
        await self._redeclare_in_turn(
            connection, [one for one in parts if isinstance(one, Binding | ExchangeBinding)]
        )

    async def _redeclare_in_turn(self, connection: BrokerConnection, parts: list[Part]) -> None:
        channel: BrokerChannel | None = None
        try:
            for part in parts:
                if channel is None or channel.closed.done():
                    channel = await connection.open_channel(self._step_timeout)
                try:
                    await self._declare(connection, channel, part)
                except (TopologyError, AccessRefused, BrokerUnavailable) as exc:
                    if connection.lost.done():
                        raise
                    self._note_failure(part, str(exc))
                    channel.close_nowait()  # where the answer did not come in time, it may come yet
                    channel = None
                else:
                    self._note_success(part)
        finally:
            if channel is not None:
                channel.close_nowait()

    def _note_failure(self, part: Part, reason: str) -> None:
        if self._failing.get(part) != reason:
            self._failing[part] = reason
            _log.warning(event("redeclare_failed", **as_fields(part), reason=reason))

    def _note_success(self, part: Part) -> None:
        if self._failing.pop(part, None) is not None:
            _log.info(event("redeclared", **as_fields(part)))

    def is_adopted(self, part: Part) -> bool:
        """Whether it was found with other arguments."""
        return part in self._adopted

    def forget(self, parts: Iterable[Part]) -> None:
        """What is not remembered any more cannot be failing."""
        for part in parts:
            self._failing.pop(part, None)

    async def _declare(
        self, connection: BrokerConnection, channel: BrokerChannel, part: Part
    ) -> None:
        try:
            await self._declare_one(channel, part, passive=None)
        except ChannelClosed as exc:
            await self._adopt(connection, part, exc)
        except ConnectionLost as exc:
            if exc.code in NOT_POSSIBLE:
                raise TopologyError(f"{describe_part(part)}: {exc}") from exc
            raise
        except ProtocolError as exc:
            raise TopologyError(f"{describe_part(part)} cannot be declared: {exc}") from exc

    async def message_count(self, connection: BrokerConnection, queue: str, timeout: float) -> int:
        """Messages ready in `queue`."""
        return int((await self._look_at(connection, queue, timeout)).message_count)

    async def consumer_count(self, connection: BrokerConnection, queue: str, timeout: float) -> int:
        """Consumers of `queue`."""
        return int((await self._look_at(connection, queue, timeout)).consumer_count)

    async def _look_at(self, connection: BrokerConnection, queue: str, timeout: float) -> Any:
        """What a passive declare says of `queue`."""
        channel = await connection.open_channel(timeout)
        try:
            return await self._ask_queue(channel, queue, timeout, passive=True)
        except ChannelClosed as exc:
            raise declaration_refused(f'queue "{queue}"', exc.code, exc.text) from exc
        finally:
            channel.close_nowait()

    async def delete_queue(self, connection: BrokerConnection, queue: str, timeout: float) -> None:
        """Delete `queue`, if it exists."""
        await self._delete(connection, "queue", queue, timeout)

    async def delete_exchange(
        self, connection: BrokerConnection, exchange: str, timeout: float
    ) -> None:
        """Delete `exchange`, if it exists."""
        await self._delete(connection, "exchange", exchange, timeout)

    async def _delete(
        self, connection: BrokerConnection, kind: str, name: str, timeout: float
    ) -> None:
        channel = await connection.open_channel(timeout)
        try:
            await channel.call(f"{kind}_delete", timeout, **{kind: name})
        except ChannelClosed as exc:
            if exc.code != NOT_FOUND:
                raise declaration_refused(f'{kind} "{name}"', exc.code, exc.text) from exc
        finally:
            channel.close_nowait()

    async def _declare_one(self, channel: BrokerChannel, part: Part, passive: bool | None) -> None:
        method, arguments = _call_of(part)
        if passive is not None:
            arguments["passive"] = passive
        if isinstance(part, Queue):
            await self._ask_queue(channel, arguments.pop("queue"), self._step_timeout, **arguments)
        else:
            await channel.call(method, self._step_timeout, **arguments)

    async def _ask_queue(
        self, channel: BrokerChannel, queue: str, timeout: float, **arguments: Any
    ) -> Any:
        """What the broker answers to the declaration of `queue`.

        Raises:
            QueueNodeDown: the broker answers, but not about this queue.
        """
        call = channel.call("queue_declare", timeout, queue=queue, **arguments)
        answer = asyncio.ensure_future(call)
        try:
            await asyncio.wait([answer], timeout=_SILENCE_S)
            while not answer.done():
                broker_answers = await _answers(channel.connection)
                await asyncio.wait([answer], timeout=_SILENCE_S)
                if broker_answers and not answer.done():
                    raise QueueNodeDown(
                        f'queue "{queue}": the broker answers, but not about this queue: its node is down or inaccessible, '
                        "or the queue has too much to do"
                    )
            return answer.result()
        finally:
            if not answer.done():
                answer.cancel()
                await asyncio.wait([answer])
            if not answer.cancelled():
                answer.exception()  # raised above, or nobody waits for it any more

    async def _adopt(self, connection: BrokerConnection, part: Part, error: ChannelClosed) -> None:
        """Take what exists under the name of `part`, where it differs only in its arguments."""
        adoptable = isinstance(part, Queue) or (
            isinstance(part, Exchange) and "inequivalent arg 'type'" not in error.text
        )
        if error.code != 406 or not adoptable:
            raise declaration_refused(describe_part(part), error.code, error.text) from error
        channel = await connection.open_channel(self._step_timeout)
        try:
            await self._declare_one(channel, part, passive=True)
        except ChannelClosed:
            raise declaration_refused(
                describe_part(part), error.code, error.text
            ) from error  # the first answer says what is wrong
        finally:
            channel.close_nowait()
        if part not in self._adopted:
            self._adopted.add(part)
            _log.warning(
                event("declared_differently", **as_fields(part), adopted=True, broker=error.text)
            )


async def _answers(connection: BrokerConnection) -> bool:
    """Whether the broker still answers on `connection`, within `_SILENCE_S`."""
    channel = connection.open_channel_nowait()
    channel.opened.add_done_callback(lambda _: channel.close_nowait())
    await asyncio.wait([channel.opened], timeout=_SILENCE_S)
    return channel.opened.done() and not connection.lost.done()


def _call_of(part: Part) -> tuple[str, dict[str, Any]]:
    """The method of pika's channel that declares `part`, and its arguments."""
    arguments = dict(part.arguments)
    if isinstance(part, Exchange):
        return "exchange_declare", {
            "exchange": part.name,
            "exchange_type": part.type,
            "passive": part.passive,
            "durable": part.durable,
            "auto_delete": part.auto_delete,
            "internal": part.internal,
            "arguments": arguments,
        }
    if isinstance(part, Queue):
        return "queue_declare", {
            "queue": part.name,
            "passive": part.passive,
            "durable": part.durable,
            "exclusive": part.exclusive,
            "auto_delete": part.auto_delete,
            "arguments": arguments,
        }
    if isinstance(part, ExchangeBinding):
        return "exchange_bind", {
            "destination": part.destination,
            "source": part.exchange,
            "routing_key": part.routing_key,
            "arguments": arguments,
        }
    assert isinstance(part, Binding)
    return "queue_bind", {
        "queue": part.queue,
        "exchange": part.exchange,
        "routing_key": part.routing_key,
        "arguments": arguments,
    }
