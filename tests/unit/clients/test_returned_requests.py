"""What becomes of requests that no queue took, by what the broker says of the queue."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from mycelia.amqp import Link, Properties, Returned
from mycelia.clients.returned_requests import MAX_SENDINGS, ReturnedRequests
from mycelia.errors import BrokerUnavailable, TopologyError
from mycelia.testing import eventually


class Broker:
    """Answers for the queue, and keeps what becomes of the requests."""

    def __init__(self) -> None:
        self.answers: list[Exception | int] = []
        self.looks = 0
        self.sent: list[str] = []
        self.refused: list[str] = []
        self.given_up: set[str] = set()
        self.takes = True
        self.requests = ReturnedRequests(
            cast(Link, self),
            is_waiting=lambda one: one.properties.correlation_id not in self.given_up,
            send=self._send,
            refuse=lambda one: self.refused.append(str(one.properties.correlation_id)),
        )

    async def consumer_count(self, queue: str) -> int:
        assert queue == "rpc-shop"
        self.looks += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _send(self, returned: Returned) -> None:
        self.sent.append(str(returned.properties.correlation_id))
        if not self.takes:
            self.requests.add(returned)

    def returns(self, *ids: str) -> None:
        for one in ids:
            properties = Properties(correlation_id=one)
            self.requests.add(Returned(312, "NO_ROUTE", "nameko-rpc", "shop.buy", properties, b""))


@pytest.fixture
async def broker(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Broker]:
    monkeypatch.setattr("mycelia.clients.returned_requests.PAUSE_S", 0.001)
    broker = Broker()
    yield broker
    await broker.requests.aclose()


AWAY: Any = BrokerUnavailable("404 home node is down")
UNKNOWN: Any = TopologyError("404 no queue")


async def test_requests_for_an_unknown_service_are_refused_after_one_look(broker: Broker) -> None:
    broker.answers = [UNKNOWN]

    broker.returns(*map(str, range(100)))
    await eventually(lambda: len(broker.refused) == 100)

    assert broker.looks == 1
    assert broker.sent == []


async def test_requests_wait_for_a_queue_whose_node_is_down(broker: Broker) -> None:
    broker.answers = [AWAY, AWAY, AWAY, 1]

    broker.returns("a", "b")
    await eventually(lambda: broker.looks >= 2)
    broker.returns("c")
    await eventually(lambda: len(broker.sent) == 3)

    assert broker.sent == ["a", "b", "c"]
    assert broker.refused == []


async def test_request_given_up_meanwhile_is_not_sent(broker: Broker) -> None:
    broker.answers = [AWAY]
    broker.returns("a", "b")
    await eventually(lambda: broker.looks >= 2)

    broker.given_up = {"a"}
    broker.answers = [1]
    await eventually(lambda: broker.sent == ["b"])

    assert broker.refused == []


async def test_nobody_is_looked_for_when_nobody_waits(broker: Broker) -> None:
    broker.answers = [AWAY]
    broker.returns("a")
    await eventually(lambda: broker.looks >= 1)

    broker.given_up = {"a"}
    looks = broker.looks
    await eventually(lambda: not broker.requests.is_looking)

    assert broker.looks <= looks + 1


async def test_request_that_comes_back_though_the_queue_is_there_is_refused(broker: Broker) -> None:
    broker.answers = [0]
    broker.takes = False

    broker.returns("a")
    await eventually(lambda: broker.refused == ["a"])

    assert broker.sent == ["a"] * MAX_SENDINGS
