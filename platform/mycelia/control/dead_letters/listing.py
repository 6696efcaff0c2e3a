"""Which dead-letter queues there are: the management API knows, where it answers; AMQP can only ask for a name."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote, urlsplit

import msgspec

from mycelia.amqp import Link
from mycelia.amqp.uri import parse_uri
from mycelia.broker.find import management_port_of_private_node
from mycelia.broker.management_api import ManagementApi
from mycelia.entrypoints.dead_letters import SUFFIX, dead_letter_queue_name
from mycelia.errors import ConfigError, TopologyError

__all__ = ["DeadLetterQueue", "belongs_to", "find_queues", "management_of", "named_queue"]

_PORT: Final = 15672
_TLS_PORT: Final = 15671
_TIMEOUT_S: Final = 10.0


class DeadLetterQueue(msgspec.Struct, frozen=True):
    """One queue of dead letters."""

    name: str
    messages: int
    consumers: int


def management_of(uri: str, url: str | None = None) -> ManagementApi:
    """The management API of the (first) broker of `uri`; nothing is connected yet.

    Args:
        url: `http(s)://[user:password@]host[:port]`; by default the broker's host and RabbitMQ's usual port, or
            that of the private node of this directory, if it is the broker. User and password are the broker's where it has none.

    Raises:
        ConfigError: there is none (`memory://`), or `url` cannot be read.
    """
    if uri.startswith("memory://"):
        raise ConfigError("memory:// has no management API.")
    broker = parse_uri(uri)[0]
    if url is None:
        private = management_port_of_private_node(broker.host, broker.port)
        port = private or (_TLS_PORT if broker.tls else _PORT)
        return ManagementApi(
            port,
            host=broker.host,
            user=broker.user,
            password=broker.password,
            timeout=_TIMEOUT_S,
            tls=broker.tls,
        )
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError
        is_tls = parts.scheme == "https"
        port = parts.port or (_TLS_PORT if is_tls else _PORT)
    except ValueError:
        raise ConfigError(
            "the address of the management API cannot be read. Write http://host:15672, or http://user:password@host:15672."
        ) from None
    return ManagementApi(
        port,
        host=parts.hostname,
        user=broker.user if parts.username is None else unquote(parts.username),
        password=broker.password if parts.password is None else unquote(parts.password),
        timeout=_TIMEOUT_S,
        tls=is_tls,
    )


def find_queues(api: ManagementApi, vhost: str) -> list[DeadLetterQueue]:
    """All dead-letter queues of a virtual host, by name. Blocks.

    Raises:
        ManagementApiError: it does not answer, or not with a list.
    """
    found = [
        DeadLetterQueue(str(one["name"]), _count(one, "messages"), _count(one, "consumers"))
        for one in api.queues(vhost)
        if str(one.get("name", "")).endswith(SUFFIX)
    ]
    return sorted(found, key=lambda queue: queue.name)


def _count(queue: dict[str, Any], name: str) -> int:
    value = queue.get(name)
    return value if type(value) is int else 0


def belongs_to(queue: str, service: str) -> bool:
    """Whether the dead letters in `queue` are those of a handler of `service`, as far as its name tells."""
    return f"--{service}." in queue or queue.startswith(f"{service}.")


async def named_queue(link: Link, name: str, timeout: float = 10.0) -> DeadLetterQueue:
    """The dead-letter queue that `name` means: its own name, or that of the handler's queue.

    Raises:
        TopologyError: there is neither.
    """
    names = [name] if name.endswith(SUFFIX) else [dead_letter_queue_name(name), name]
    for one in names:
        try:
            messages = await link.message_count(one, timeout)
        except TopologyError:
            continue
        return DeadLetterQueue(one, messages, await link.consumer_count(one, timeout))
    raise TopologyError("there is no queue " + " or ".join(f'"{one}"' for one in names))
