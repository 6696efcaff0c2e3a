"""The broker link. Knows nothing of services; pika is seen only here."""

from mycelia.amqp.connect import connect
from mycelia.amqp.link import (
    Capabilities,
    Consumer,
    Link,
    LinkState,
    LinkStatistics,
    OnDeliveries,
    OnReturn,
    OnStateChange,
)
from mycelia.amqp.model import (
    TRANSIENT,
    Binding,
    Delivery,
    Exchange,
    Properties,
    Queue,
    Returned,
    Settler,
)
from mycelia.amqp.rabbit.link import RabbitLink

__all__ = [
    "TRANSIENT",
    "Binding",
    "Capabilities",
    "Consumer",
    "Delivery",
    "Exchange",
    "Link",
    "LinkState",
    "LinkStatistics",
    "OnDeliveries",
    "OnReturn",
    "OnStateChange",
    "Properties",
    "Queue",
    "RabbitLink",
    "Returned",
    "Settler",
    "connect",
]
