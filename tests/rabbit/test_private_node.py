"""The private broker that the suite, `mycelia broker` and `make demo` start."""

from __future__ import annotations

import pika
import pytest

from mycelia.cli.broker_node import PrivateNode, probe_amqp
from mycelia.cli.management_api import ManagementApi, ManagementApiError


def _open(uri: str) -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(uri))


def test_fresh_vhost_takes_a_message(rabbit_uri: str) -> None:
    with _open(rabbit_uri) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("q", durable=True, arguments={"x-queue-type": "quorum"})
        channel.basic_publish("", "q", b"hello", mandatory=True)

        method, _, body = channel.basic_get("q", auto_ack=True)

    assert method is not None
    assert body == b"hello"


def test_api_closes_connections_of_one_vhost(
    rabbit_uri: str, rabbit_vhost: str, rabbit_api: ManagementApi
) -> None:
    with _open(rabbit_uri) as connection:
        while not rabbit_api.connections(rabbit_vhost):  # bounded by the test's timeout
            connection.process_data_events(time_limit=0.05)

        assert rabbit_api.close_connections(rabbit_vhost, "on purpose") == 1

        with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="on purpose"):
            connection.process_data_events(time_limit=5)


def test_deleted_vhost_is_gone_and_deleting_again_is_no_error(rabbit_node: PrivateNode) -> None:
    rabbit_node.create_vhost("a/b c")
    rabbit_node.delete_vhost("a/b c")
    rabbit_node.delete_vhost("a/b c")

    with pytest.raises(ManagementApiError, match="404"):
        rabbit_node.api.queues("a/b c")


def test_api_knows_no_queue_that_was_never_declared(
    rabbit_vhost: str, rabbit_api: ManagementApi
) -> None:
    assert rabbit_api.queue(rabbit_vhost, "nothing") is None


def test_killed_node_comes_back_on_the_same_port_with_its_messages(
    own_rabbit_node: PrivateNode,
) -> None:
    uri = own_rabbit_node.uri()
    with _open(uri) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("kept", durable=True, arguments={"x-queue-type": "quorum"})
        channel.basic_publish("", "kept", b"survivor", mandatory=True)
    own_rabbit_node.kill()
    assert probe_amqp("127.0.0.1", own_rabbit_node.port) is None

    own_rabbit_node.start(leash=True)

    assert own_rabbit_node.uri() == uri
    with _open(uri) as connection:
        # Consuming waits for the queue's leader, which a count read right after the start does not.
        for method, _, body in connection.channel().consume("kept", inactivity_timeout=10):
            assert method is not None
            assert body == b"survivor"
            break
