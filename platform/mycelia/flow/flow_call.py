"""The batches of a flow as calls: what middleware, traces and metrics see of each commit of a partition."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from mycelia.call import (
    Call,
    GiveBack,
    Middleware,
    Outcome,
    Target,
    compose,
    current_call,
)
from mycelia.errors import RuntimeStateError
from mycelia.flow.inflow import Taken
from mycelia.logs.append_call import MAX_LINKS, carried_trace

__all__ = ["CallsAround", "FlowCall", "PartitionCalls", "TakenSince", "Work"]

Work = Callable[[], Awaitable[None]]


class TakenSince:
    """What a partition has taken since its last commit; kept only where somebody looks at calls.

    Args:
        target: of the flow's calls.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self.began_at = time.monotonic()
        self.offsets: dict[str, tuple[int, int]] = {}
        """By source, of the first entry and the last."""
        self.traces: dict[str, Mapping[str, Any]] = {}

    def add(self, taken: Taken) -> None:
        if taken and not self.offsets:
            self.began_at = time.monotonic()
        for source, entries in taken.items():
            if not entries:
                continue
            first, _ = self.offsets.get(source, (entries[0].offset, 0))
            self.offsets[source] = first, entries[-1].offset
            for entry in entries:
                if len(self.traces) >= MAX_LINKS:
                    break
                headers = entry.delivery.properties.headers
                if headers and (trace := carried_trace(Call(self._target, headers=headers))):
                    self.traces.setdefault(trace.get("traceparent", ""), trace)


class FlowCall(Call, eq=False, kw_only=True):
    """A commit of one partition of a stage: its state, its positions, and that all that leaves has left. Or why it did not come to that.

    Its method is the flow's, which does not run. It links to the batches that were taken, up to 32 of them. A middleware that goes on
    twice gets the first outcome again; one that does not go on stops the partition.
    """

    work: Work
    stage: str
    partition: int
    records: int
    """Taken since the commit before."""
    offsets: Mapping[str, tuple[int, int]] = {}
    """By source, of the first entry and the last that were taken."""
    traces: Sequence[Mapping[str, Any]] = ()
    outcome: Outcome | None = None

    @property
    def item_count(self) -> int:
        return self.records

    def linked(self) -> Sequence[Call]:
        return [Call(self.target, headers=trace) for trace in self.traces]

    @property
    def span_attributes(self) -> Mapping[str, str | int]:
        offsets = ", ".join(
            f"{name}:{first}-{last}" for name, (first, last) in self.offsets.items()
        )
        return {
            "messaging.destination.name": next(iter(self.offsets), self.stage),
            "messaging.destination.partition.id": str(self.partition),
            "flow.stage": self.stage,
            "flow.offsets": offsets,
        }


class CallsAround:
    """What stands around the commits of a flow.

    Args:
        target: of its calls.
        middleware: what its service has for it, outermost first.
    """

    def __init__(self, target: Target, middleware: Iterable[Middleware]) -> None:
        self.target = target
        layers = list(middleware)
        self._chain = compose(layers, _work) if layers else None
        self.failed_with: BaseException | None = None
        """The last error that a call has ended with."""

    @property
    def listens(self) -> bool:
        """Whether anybody looks at calls; else they need not be made."""
        return self._chain is not None

    async def run(self, call: FlowCall) -> None:
        """Do the call's work, with what is around it.

        Raises:
            Exception: what the work raised; else what a middleware did.
        """
        chain = self._chain
        assert chain is not None

        async def through() -> Outcome:
            current_call.set(call)
            return await chain(call)

        outcome = await asyncio.get_running_loop().create_task(
            through(), name=f"mycelia:flow:{call.target.name}"
        )
        error = outcome.error if call.outcome is None else call.outcome.error or outcome.error
        if error is None and call.outcome is None:
            error = RuntimeStateError(
                f"{call.target.name}: a middleware answered without going on, so nothing was committed. "
                "End it with `return await next(call)`."
            )
        if error is None:
            return
        call.settlement = GiveBack()
        if call.on_settled is not None:
            call.on_settled(call)
        self.failed_with = error
        raise error


class PartitionCalls:
    """Makes the calls of one partition's commits, each of what was taken since the one before.

    Args:
        stage: its name.
    """

    def __init__(self, around: CallsAround, stage: str, partition: int) -> None:
        self._around = around
        self._stage = stage
        self._partition = partition
        self._since: TakenSince | None = None

    def took(self, taken: Taken) -> None:
        """Take note of what is given to the engine, where somebody looks at calls."""
        if self._around.listens:
            if self._since is None:
                self._since = TakenSince(self._around.target)
            self._since.add(taken)

    async def run(self, records: int, work: Work) -> None:
        """Do the work, as a call where somebody looks at calls.

        Raises:
            Exception: as `CallsAround.run()`.
        """
        around = self._around
        if not around.listens:
            await work()
            return
        since, self._since = self._since or TakenSince(around.target), None
        await around.run(
            FlowCall(
                around.target,
                arrived_at=since.began_at,
                started_at=since.began_at,
                work=work,
                stage=self._stage,
                partition=self._partition,
                records=records,
                offsets=since.offsets,
                traces=tuple(since.traces.values()),
            )
        )

    async def tell_failed(self, error: Exception) -> None:
        """A turn that failed before there was anything to commit is a call that failed."""
        if not self._around.listens or error is self._around.failed_with:
            return

        async def fail() -> None:
            raise error

        with suppress(Exception):
            await self.run(0, fail)


async def _work(call: Call) -> Outcome:
    """The end of the chain. It runs once."""
    assert isinstance(call, FlowCall)
    if call.outcome is None:
        try:
            await call.work()
        except Exception as exc:  # noqa: BLE001  the end of a chain never raises: the error is the outcome
            call.outcome = Outcome(error=exc)
        else:
            call.outcome = Outcome()
    return call.outcome
