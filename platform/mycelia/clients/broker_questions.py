"""Questions to processes at a broker, and their answers: for commands that look, and for processes that ask their like.

| | exchange | routing key | properties | body |
|---|---|---|---|---|
| question | one of its kind | whom it is for, as they have bound it | `reply_to`, `correlation_id`, `expiration` | what is asked |
| answer | the default one | the question's `reply_to` | its `correlation_id`, `content_type` `application/json` | what is answered |

Whoever may be asked has a queue of its own. An answer is worth something at once or never: both are transient and unconfirmed. Several may
answer a question, or none: a bound of time belongs to it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from mycelia.amqp import (
    CLOSE_TIMEOUT,
    Binding,
    ConsumeOptions,
    Delivery,
    Exchange,
    Link,
    LinkConsumer,
    Message,
    Properties,
    Queue,
)
from mycelia.amqp.topology import Part
from mycelia.errors import LinkError, MyceliaError
from mycelia.log_event import event
from mycelia.wire import new_uuid

__all__ = ["AnsweringQueue", "BrokerQuestions", "send_answer"]

log = logging.getLogger("mycelia.clients")

ANSWER_LIVES: Final = "5000"
"""Milliseconds that an answer waits to be taken, and a question that is to all."""


def send_answer(link: Link, question: Delivery, body: bytes) -> None:
    """Answer a question, if that can be done now."""
    properties = question.properties
    if not properties.reply_to:
        return
    answer = Properties(
        content_type="application/json",
        correlation_id=properties.correlation_id,
        expiration=ANSWER_LIVES,
    )
    try:
        link.publish_nowait(Message("", properties.reply_to, body, answer))
    except MyceliaError as exc:
        log.debug(event("answer_unsent", exchange=question.exchange, reason=exc))


class AnsweringQueue:
    """Where one who may be asked hears questions.

    Args:
        exchange: of the kind of questions.
        on_question: called on the loop with each that wants an answer; see `send_answer()`. It does not raise.
    """

    def __init__(
        self, link: Link, exchange: Exchange, on_question: Callable[[Delivery], None]
    ) -> None:
        self._link = link
        self._on_question = on_question
        self.id = new_uuid()
        """Of who answers; another one after a restart."""
        self._exchange = exchange
        self._queue = Queue(f"{exchange.name}.{self.id}", durable=False, exclusive=True)
        self._consumer: LinkConsumer | None = None

    async def start(self, *keys: str) -> None:
        """Listen for questions with these routing keys, as long as the link lives.

        Raises:
            MyceliaError: the broker does not let us; nothing of it is left.
        """
        queue = self._queue
        bindings = [Binding(queue.name, self._exchange.name, key) for key in keys]
        parts: list[Part] = [self._exchange, queue, *bindings]
        try:
            await self._link.declare(*parts)
            self._consumer = await self._link.consume(
                queue.name, self._on_deliveries, ConsumeOptions(prefetch=20)
            )
        except MyceliaError:
            self._link.forget(*parts)
            raise

    async def aclose(self) -> None:
        """Hear no more. Idempotent."""
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        await consumer.aclose(CLOSE_TIMEOUT)
        try:
            await self._link.delete_queue(self._queue.name, CLOSE_TIMEOUT)
        except MyceliaError as exc:  # it goes with the connection
            log.debug(event("answering_queue_left", queue=self._queue.name, reason=exc))

    def _on_deliveries(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            delivery.ack()
            if delivery.properties.reply_to:
                self._on_question(delivery)


class BrokerQuestions:
    """Asks, and hears answers by a queue of its own.

    Args:
        link: an open link.
        exchange: of the kind of questions.
    """

    def __init__(self, link: Link, exchange: Exchange) -> None:
        self._link = link
        self._exchange = exchange
        self.queue = f"{exchange.name}.asker.{new_uuid()}"
        self._asked: dict[str, Callable[[bytes], None]] = {}
        self._consumer: LinkConsumer | None = None

    async def start(self, timeout: float) -> None:
        """Make ready to hear answers.

        Raises:
            LinkError: the broker does not let us, or not in time.
        """
        await self._link.declare(
            self._exchange, Queue(self.queue, durable=False, exclusive=True), timeout=timeout
        )
        self._consumer = await self._link.consume(
            self.queue, self._on_answers, ConsumeOptions(no_ack=True), timeout=timeout
        )

    async def aclose(self) -> None:
        """Idempotent."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.aclose(CLOSE_TIMEOUT)

    async def ask_all(
        self, is_enough: Callable[[bytes], bool], timeout: float, key: str = ""
    ) -> None:
        """Ask all that have bound `key`, and hear answers until it is enough, or the time is over.

        Args:
            is_enough: called with each answer; whether no more are needed. It does not raise.
        """
        done = asyncio.Event()

        def hear(body: bytes) -> None:
            if is_enough(body):
                done.set()

        question = new_uuid()
        self._asked[question] = hear
        properties = Properties(
            reply_to=self.queue, correlation_id=question, expiration=ANSWER_LIVES
        )
        try:
            self._link.publish_nowait(Message(self._exchange.name, key, b"", properties))
            async with asyncio.timeout(timeout):
                await done.wait()
        except (TimeoutError, LinkError):
            return
        finally:
            del self._asked[question]

    async def ask(self, key: str, body: bytes, timeout: float) -> bytes | None:
        """The first answer of those who have bound `key`; None if none comes in time.

        Raises:
            Unroutable: nobody has.
            LinkError: it cannot be asked.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()

        def hear(body: bytes) -> None:
            if not answer.done():
                answer.set_result(body)

        question = new_uuid()
        self._asked[question] = hear
        properties = Properties(
            reply_to=self.queue,
            correlation_id=question,
            expiration=str(max(round(timeout * 1000), 1)),
        )
        message = Message(self._exchange.name, key, body, properties, mandatory=True)
        try:
            async with asyncio.timeout(timeout):
                await self._link.publish(message, timeout=timeout)
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._asked[question]

    def _on_answers(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            hear = self._asked.get(delivery.properties.correlation_id or "")
            if hear is not None:  # else it is too late
                hear(delivery.body)
