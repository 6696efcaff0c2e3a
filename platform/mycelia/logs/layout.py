"""How a log lies at the broker: a direct exchange and a stream for each partition, as a super stream of RabbitMQ's own clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from mycelia.amqp import Binding, Exchange, Link, Queue
from mycelia.amqp.topology import Part
from mycelia.durations import Duration, seconds_of
from mycelia.errors import ConfigError, TopologyError
from mycelia.logs.partitioning import MAX_PARTITIONS

__all__ = ["SEGMENT_BYTES", "LogLayout", "declare_log", "log_layout", "queue_exists", "stream_name"]

SEGMENT_BYTES: Final = 64 * 1024 * 1024
"""Of one file of a stream. The broker deletes whole files, and never the last: RabbitMQ's own 500 MB a partition would keep a quiet
log far longer than it is asked to."""

_MAX_NAME_BYTES: Final = 245
"""AMQP's names have 255 bytes; `-1023` comes behind, and the names of a group's queues are longer still by a word."""


def stream_name(log: str, partition: int) -> str:
    """The stream of a partition; RabbitMQ's super streams name theirs so."""
    return f"{log}-{partition}"


@dataclass(frozen=True, slots=True)
class LogLayout:
    """What is declared of a log."""

    name: str
    partitions: int
    retain_s: float | None
    """Entries older than this go, in whole files; `None`: none goes for its age."""
    retain_bytes: int | None
    """Of one partition; what is beyond goes, the oldest first, in whole files; `None`: any size."""
    segment_bytes: int = SEGMENT_BYTES

    def streams(self) -> list[Queue]:
        """The streams, the last partition first."""
        arguments: dict[str, str | int] = {"x-queue-type": "stream"}
        if self.retain_s is not None:
            arguments["x-max-age"] = _max_age(self.retain_s)
        if self.retain_bytes is not None:
            arguments["x-max-length-bytes"] = self.retain_bytes
        arguments["x-stream-max-segment-size-bytes"] = self.segment_bytes
        return [
            Queue(stream_name(self.name, partition), arguments=arguments)
            for partition in reversed(range(self.partitions))
        ]

    def parts(self) -> list[Part]:
        """Everything, in the order in which it is declared."""
        return [
            Exchange(self.name, type="direct", arguments={"x-super-stream": True}),
            *self.streams(),
            *(
                Binding(
                    stream_name(self.name, partition),
                    self.name,
                    str(partition),
                    {"x-stream-partition-order": partition},
                )
                for partition in range(self.partitions)
            ),
        ]


def log_layout(
    name: Any,
    partitions: int,
    retain: Duration | None,
    retain_bytes: int | None,
    segment_bytes: int = SEGMENT_BYTES,
) -> LogLayout:
    """The layout, checked.

    Raises:
        ConfigError: what the broker would not take.
    """
    what = f"log {name!r}" if isinstance(name, str) and not name.isprintable() else f'log "{name}"'
    if (
        not isinstance(name, str)
        or not name.isprintable()
        or not name.strip()
        or not 0 < len(name.encode()) <= _MAX_NAME_BYTES
    ):
        raise ConfigError(
            f"{what}: the name of a log is text of 1 to {_MAX_NAME_BYTES} bytes, such as flights.departed."
        )
    if type(partitions) is not int or not 1 <= partitions <= MAX_PARTITIONS:
        raise ConfigError(
            f"{what}: partitions={partitions!r}; expected a whole number from 1 to {MAX_PARTITIONS}."
        )
    retain_s = None if retain is None else seconds_of(retain, f"{what}: retain=")
    if retain_s is not None and (retain_s < 1 or retain_s != int(retain_s)):
        raise ConfigError(f"{what}: retain={retain!r}; expected whole seconds, at least one.")
    for option, size in (("retain_bytes", retain_bytes), ("segment_bytes", segment_bytes)):
        if size is not None and (type(size) is not int or size < 1):
            raise ConfigError(f"{what}: {option}={size!r}; expected a number of bytes.")
    return LogLayout(name, partitions, retain_s, retain_bytes, segment_bytes)


def _max_age(seconds: float) -> str:
    """As RabbitMQ writes an age, in the largest unit that leaves no rest: who declares the same by hand writes it so."""
    whole = int(seconds)
    for unit, length in (("D", 86400), ("h", 3600), ("m", 60)):
        if whole % length == 0:
            return f"{whole // length}{unit}"
    return f"{whole}s"


async def declare_log(link: Link, layout: LogLayout, timeout: float | None = None) -> None:
    """Make sure that the log is there, as it is described; whoever comes first makes it. The link looks after it from now on.

    Raises:
        TopologyError: there is a log, or something else, of that name that is not the same.
        BrokerUnavailable: the broker does not answer in time.
    """
    name, partitions = layout.name, layout.partitions
    # A number of partitions is not kept anywhere: it shows in what is there and what is not. The last is declared first.
    if await queue_exists(link, stream_name(name, partitions), timeout):
        raise _other_number(layout, f"there are more: {stream_name(name, partitions)} exists")
    first, last = stream_name(name, 0), stream_name(name, partitions - 1)
    if (
        not await queue_exists(link, last, timeout)
        and await queue_exists(link, first, timeout)
        and not await queue_exists(
            link, last, timeout
        )  # between the two questions somebody may have declared all
    ):
        raise _other_number(layout, f"there are fewer: {last} does not exist")
    parts = layout.parts()
    await link.declare(*parts, timeout=timeout)
    if await queue_exists(link, stream_name(name, partitions), timeout):
        # who has begun at the same time found nothing there either
        link.forget(*parts)
        raise _other_number(layout, f"there are more: {stream_name(name, partitions)} exists")
    different = [
        part.name for part in parts if isinstance(part, Queue | Exchange) and link.is_adopted(part)
    ]
    if different:
        link.forget(*parts)
        arguments = ", ".join(
            f"{key}={value}" for key, value in layout.streams()[0].arguments.items()
        )
        raise TopologyError(
            f'log "{name}": {", ".join(different[:3])} exists with other arguments than {arguments} (the line '
            "declared_differently has the broker's word). Say the same everywhere, or change it at the broker: "
            "retention by a policy (max-age), anything else only by deleting the log."
        )


def _other_number(layout: LogLayout, found: str) -> TopologyError:
    return TopologyError(
        f'log "{layout.name}" is declared here with {layout.partitions} partitions, but {found}. '
        "The number never changes, because keys would move: say the one that the log has, or write another log."
    )


async def queue_exists(link: Link, queue: str, timeout: float | None) -> bool:
    """Whether there is a queue or stream of that name.

    Raises:
        BrokerUnavailable: the broker does not answer in time.
    """
    try:
        await link.declare(Queue(queue, passive=True), timeout=timeout)
    except TopologyError:
        return False
    return True
