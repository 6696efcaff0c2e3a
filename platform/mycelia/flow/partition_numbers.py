"""Whether a flow's state is of as many partitions as its stages have now.

A log never changes its number of partitions, but it may be deleted and made anew with another. The keys are then in other partitions, and what
the flow keeps of them is not. What tells is at the broker, whichever machine looks: a group has a queue for each partition it has had.
"""

from __future__ import annotations

import asyncio

from mycelia.amqp import Link
from mycelia.errors import ConfigError
from mycelia.flow.partition_run import StageDescription
from mycelia.flow.state_home import StateHome
from mycelia.logs.layout import queue_exists
from mycelia.logs.partition_lease import lease_queue

__all__ = ["check_partition_numbers"]


async def check_partition_numbers(
    link: Link, home: StateHome, call: str, stage: StageDescription
) -> None:
    """
    Raises:
        ConfigError: the flow has been run over another number of partitions.
        StateUnavailable: whether there is state cannot be said now.
    """

    async def has_had(partition: int) -> bool:
        queue = lease_queue(stage.leased_as, stage.group, partition)
        return await queue_exists(link, queue.name, 30.0)

    number = stage.partitions
    if await has_had(number):
        raise _other_number(call, stage, "more")
    if number == 1 or await has_had(number - 1) or not await has_had(0):
        return
    # Whoever moves a single partition of a group that has never run makes one queue too, and no state.
    kept = await asyncio.to_thread(home.kept, stage.group)
    if any(source == stage.leased_as for source, _ in kept):
        raise _other_number(call, stage, "fewer")


def _other_number(call: str, stage: StageDescription, than: str) -> ConfigError:
    return ConfigError(
        f'{call}: "{stage.leased_as}" has {stage.partitions} partitions, and the flow "{stage.group}" has been run over {than} of them, when it had another '
        "number. Keys are in other partitions now, and their state is not, so that open windows and what is kept by key would be lost or "
        "counted apart. Read a log of the former number, or let the flow begin anew with another group=."
    )
