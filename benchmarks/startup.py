"""Start-up: from `nameko run` to the first RPC answered, and the memory it takes.

    python -m benchmarks.startup --rounds 5 --seconds 2

A request waits in the service's queue before the service starts, so the first answer comes the
moment the service consumes. Memory is the resident memory of the serving process: idle, and under
RPC with 64 in flight.
"""

from __future__ import annotations

import json
import time
import uuid

import pika

from benchmarks.broker import Broker
from benchmarks.process import PeerProcess, memory_mb
from benchmarks.registry import Peer, Site
from benchmarks.rounds import Measured, Question
from benchmarks.serving import START_WITHIN

CASE = "start-up"
_SLACK = 60.0
_LOADED_IN_FLIGHT = 64


def question(seconds: float) -> Question:
    """The question, with `seconds` of RPC load before the loaded memory is read."""

    def ask(peer: Peer, broker: Broker, site: Site) -> Measured:
        assert peer.rpc is not None
        server_program, client_program = peer.rpc
        with broker.connection() as connection:
            channel = connection.channel()
            reply_queue = _leave_request(channel, peer.service)
            with server_program.start(f"{peer.name} server", site) as server:
                first_answer = _await_answer(channel, reply_queue, server)
                metrics = {"first_answer_s": first_answer - server.started_at}
                metrics |= {f"idle_{key}_mb": mb for key, mb in memory_mb(server.pid).items()}
                options = ("--in-flight", str(_LOADED_IN_FLIGHT), "--seconds", str(seconds))
                with client_program.start(
                    f"{peer.name} client", site, *options, "--warm-up", "0"
                ) as client:
                    client.expect("sample", START_WITHIN + seconds + _SLACK)
                    client.finish()
                metrics |= {f"loaded_{key}_mb": mb for key, mb in memory_mb(server.pid).items()}
        return {CASE: metrics}

    return Question("startup", (CASE,), lambda peer: bool(peer.service), ask)


def _leave_request(channel: pika.adapters.blocking_connection.BlockingChannel, service: str) -> str:
    """Put an RPC into the queue of a service that does not run, declared as Nameko declares it.

    Returns the queue its reply comes to.
    """
    queue = f"rpc-{service}"
    channel.exchange_declare("nameko-rpc", "topic", durable=True)
    channel.queue_declare(queue, durable=True)
    channel.queue_bind(queue, "nameko-rpc", f"{service}.*")
    reply_to = str(uuid.uuid4())
    reply_queue = f"rpc.reply-bench-{reply_to}"
    channel.queue_declare(reply_queue, exclusive=True)
    channel.queue_bind(reply_queue, "nameko-rpc", reply_to)
    channel.basic_publish(
        "nameko-rpc",
        f"{service}.echo",
        json.dumps({"args": [1], "kwargs": {}}).encode(),
        pika.BasicProperties(
            content_type="application/json",
            content_encoding="utf-8",
            correlation_id=reply_to,
            reply_to=reply_to,
        ),
    )
    return reply_queue


def _await_answer(
    channel: pika.adapters.blocking_connection.BlockingChannel,
    reply_queue: str,
    server: PeerProcess,
) -> float:
    """The monotonic time at which the reply came; a reply that is an error fails the peer."""
    deadline = time.monotonic() + START_WITHIN
    for _method, _properties, body in channel.consume(
        reply_queue, auto_ack=True, inactivity_timeout=0.2
    ):
        if body is not None:
            answered = time.monotonic()
            if json.loads(body)["error"] is not None:
                raise server.failure(f"answered its first request with {body!r}")
            channel.cancel()
            return answered
        if not server.is_running:
            raise server.failure("ended before it answered its first request")
        if time.monotonic() > deadline:
            raise server.failure(f"no answer to its first request within {START_WITHIN:g} s")
    raise server.failure("the connection that waited for its first answer was closed")


if __name__ == "__main__":
    from benchmarks.command import main

    main(startup=question)
