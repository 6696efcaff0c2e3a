"""RabbitMQ nodes: a private one, its management API, finding one to work with. Knows nothing of the link."""

from mycelia.broker.cluster import PrivateCluster
from mycelia.broker.find import FoundBroker, find_or_start_broker, install_rabbitmq
from mycelia.broker.management_api import ManagementApi
from mycelia.broker.node import PrivateNode

__all__ = [
    "FoundBroker",
    "ManagementApi",
    "PrivateCluster",
    "PrivateNode",
    "find_or_start_broker",
    "install_rabbitmq",
]
