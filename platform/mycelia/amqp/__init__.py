"""The broker link. Knows nothing of services; pika is seen only here."""

from mycelia.amqp.connect import connect
from mycelia.amqp.link import (
    CONSUME_DEFAULTS,
    LINK_DEFAULTS,
    Capabilities,
    ConsumeOptions,
    Consumer,
    Link,
    LinkOptions,
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
    Message,
    Properties,
    Queue,
    Returned,
    Settler,
)
from mycelia.amqp.rabbit.link import RabbitLink

__all__ = [
    "CONSUME_DEFAULTS",
    "LINK_DEFAULTS",
    "TRANSIENT",
    "Binding",
    "Capabilities",
    "ConsumeOptions",
    "Consumer",
    "Delivery",
    "Exchange",
    "Link",
    "LinkOptions",
    "LinkState",
    "LinkStatistics",
    "Message",
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
