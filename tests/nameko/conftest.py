"""One virtual host and one stock Nameko process for each module of tests: starting Nameko takes about a second."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.nameko.processes import NamekoRun, StockClient
from tests.tools import fresh_vhost

from mycelia.broker.node import PrivateNode


@pytest.fixture(scope="module")
def module_vhost(rabbit_node: PrivateNode) -> Iterator[str]:
    """A virtual host for the tests of one module."""
    with fresh_vhost(rabbit_node.api, "nameko") as name:
        yield name


@pytest.fixture(scope="module")
def module_uri(rabbit_node: PrivateNode, module_vhost: str) -> str:
    """Its AMQP URI."""
    return rabbit_node.uri(module_vhost)


@pytest.fixture(scope="module")
def stock_run(module_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NamekoRun]:
    """The service `stock` on stock Nameko."""
    config = {"AMQP_URI": module_uri, "ACCEPT": ["json", "msgpack"]}
    run = NamekoRun(
        "tests.nameko.stock_services:Stock",
        config=config,
        directory=tmp_path_factory.mktemp("stock"),
    )
    with run.start():
        run.await_queues("rpc-stock")
        yield run


@pytest.fixture(scope="module")
def stock_client(module_uri: str) -> Iterator[StockClient]:
    """Nameko's standalone clients."""
    client = StockClient({"AMQP_URI": module_uri})
    yield client
    client.close()
