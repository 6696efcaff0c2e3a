"""The link to RabbitMQ (`amqp://`, `amqps://`). pika is seen only here."""

from mycelia.amqp.rabbit.link import RabbitLink

__all__ = ["RabbitLink"]
