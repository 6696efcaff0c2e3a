"""What a channel that only publishes receives: returns and confirms, never deliveries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mycelia.amqp.model import Delivery, Returned
from mycelia.errors import ProtocolError

__all__ = ["PublishingSink"]


class PublishingSink:
    """A `ChannelSink` for the publisher's channels."""

    def __init__(
        self,
        on_return: Callable[[Returned], None],
        on_confirm: Callable[[int, bool, bool], None],
    ) -> None:
        self.settler: Any = None
        self.consumer_tag = ""
        self.batch: list[Delivery] = []
        self.on_return = on_return
        self.on_confirm = on_confirm

    def on_batch(self) -> None:
        self.batch = []
        raise ProtocolError("a delivery on a channel that only publishes")

    def on_undecodable(self, delivery_tag: int, error: ProtocolError) -> None:
        raise ProtocolError(f"a delivery on a channel that only publishes ({error})")

    def on_get_empty(self) -> None:
        raise ProtocolError("an answer to basic.get on a channel that only publishes")
