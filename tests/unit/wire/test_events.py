from __future__ import annotations

import pytest
from tests.unit.wire import stock

from mycelia.errors import ConfigError
from mycelia.wire import (
    BROADCAST,
    SERVICE_POOL,
    SINGLETON,
    event_exchange_name,
    handler_queue_name,
)


@pytest.mark.parametrize("handler_type", [SERVICE_POOL, SINGLETON, BROADCAST])
def test_queue_has_the_name_that_stock_nameko_gives_it(handler_type: str) -> None:
    theirs = stock.event_queue(handler_type, reliable_delivery=True)

    name = handler_queue_name(handler_type, "source", "type", "svc", "method", "node1")

    assert name == theirs.name
    assert event_exchange_name("source") == theirs.exchange.name


def test_constants_are_namekos() -> None:
    theirs = stock.nameko.events

    assert (SERVICE_POOL, SINGLETON, BROADCAST) == (
        theirs.SERVICE_POOL,
        theirs.SINGLETON,
        theirs.BROADCAST,
    )


def test_handler_type_is_compared_by_value() -> None:
    """Nameko compares identity, so that a handler type from a file leaves it without a queue name."""
    from_a_file = "".join(["single", "ton"])

    assert handler_queue_name(from_a_file, "s", "e", "svc", "m") == "evt-s-e"


def test_broadcast_without_identifier_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"svc\.m: .*broadcast_identifier"):
        handler_queue_name(BROADCAST, "s", "e", "svc", "m")


def test_unknown_handler_type_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'fanout' is unknown; use 'service_pool'"):
        handler_queue_name("fanout", "s", "e", "svc", "m")
