"""The broker all peers share: the one at AMQP_URI, or a private node for this run alone."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker


class NoBroker(Exception):
    """There is no broker to measure on; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker that answers. Each method opens a connection of its own and closes it again."""

    uri: str

    @contextlib.contextmanager
    def connection(self) -> Iterator[Any]:
        """A blocking connection, for the harness's own errands."""
        connection = pika.BlockingConnection(pika.URLParameters(self.uri))
        try:
            yield connection
        finally:
            with contextlib.suppress(AMQPError):
                connection.close()

    @property
    def version(self) -> str:
        """Product and version as the server states them."""
        with self.connection() as connection:
            said = connection._impl.server_properties
        return f"{said.get('product', 'AMQP broker')} {said.get('version', '(version unknown)')}"

    def delete(self, queues: Iterable[str], exchanges: Iterable[str] = ()) -> None:
        """Delete what a peer may have left behind; what is not there is no error."""
        with self.connection() as connection:
            channel = connection.channel()
            for name in queues:
                channel.queue_delete(name)
            for name in exchanges:
                channel.exchange_delete(name)

    def declare(self, queue: str) -> None:
        """A durable classic queue."""
        with self.connection() as connection:
            connection.channel().queue_declare(queue, durable=True)

    def has_consumer(self, queue: str) -> bool:
        """Whether anybody consumes from this queue now; False where there is no such queue."""
        with self.connection() as connection, _quiet_pika():
            try:
                declared = connection.channel().queue_declare(queue, passive=True)
            except ChannelClosedByBroker:
                return False
            return bool(declared.method.consumer_count)

    def wait_for_consumer(self, queue: str, timeout: float, while_running: Any) -> None:
        """Wait until somebody consumes from `queue`.

        Raises:
            PeerFailed: the process `while_running` ended first, or `timeout` seconds passed.
        """
        deadline = time.monotonic() + timeout
        while not self.has_consumer(queue):
            if not while_running.is_running:
                raise while_running.failure(f"ended before it consumed from {queue!r}")
            if time.monotonic() > deadline:
                raise while_running.failure(f"no consumer on {queue!r} within {timeout:g} s")
            time.sleep(0.05)


@contextlib.contextmanager
def _quiet_pika() -> Iterator[None]:
    """pika warns of a channel closed by the broker, which asking for a missing queue does."""
    log = logging.getLogger("pika")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def find_broker(uri: str | None = None) -> Iterator[Broker]:
    """The broker at `uri`, else at AMQP_URI, else a private node that ends with the context.

    Raises:
        NoBroker: nothing answers at the address given, or no node could be started.
    """
    given = uri or os.environ.get("AMQP_URI")
    with contextlib.ExitStack() as stack:
        broker = Broker(given or stack.enter_context(_private_node()))
        try:
            with broker.connection():
                pass
        except (AMQPError, OSError) as exc:
            where = pika.URLParameters(broker.uri)
            raise NoBroker(
                f"no broker answers at {where.host}:{where.port}{where.virtual_host!r}: {exc!r}. "
                "Start one, or correct --uri or AMQP_URI"
            ) from exc
        yield broker


@contextlib.contextmanager
def _private_node() -> Iterator[str]:
    try:
        from mycelia.broker.node import PrivateNode
        from mycelia.errors import MyceliaError
    except ImportError as exc:
        raise NoBroker(
            f"neither --uri nor AMQP_URI is given, and without Mycelia no private node starts: {exc}"
        ) from exc
    with tempfile.TemporaryDirectory(prefix="mycelia-bench-broker-") as directory:
        node = PrivateNode(Path(directory) / "node")
        try:
            node.start(leash=True)
        except MyceliaError as exc:
            raise NoBroker(
                f"neither --uri nor AMQP_URI is given, and no private node starts: {exc}"
            ) from exc
        try:
            yield node.uri()
        finally:
            node.remove()
