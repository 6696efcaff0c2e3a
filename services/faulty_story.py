"""What `make demo FAULTS=1` shows beside the rest: dead letters found, shown and sent again, and a trace as a tree."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from pathlib import Path

from mycelia.amqp import Link
from mycelia.errors import TopologyError
from mycelia.testing import ReceivedSpan
from services.fleet import ROOT
from services.trace_tree import Span, draw

__all__ = [
    "DEAD_QUEUE",
    "FAULTS_CONFIG",
    "TRACED",
    "CommandFailed",
    "count_dead",
    "has_whole_trace",
    "mycelia",
    "tree_of",
    "worth_showing",
]

FAULTS_CONFIG = ROOT / "services" / "config-faults.yaml"
DEAD_QUEUE = "evt-feed-cancelled--enrich.cancelled.dead"

TRACED = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.05"}
"""One event in twenty: all of them would be as much work as the demonstration itself."""

COMMAND_S = 120.0


class CommandFailed(RuntimeError):
    """A `mycelia` command did not do what it was asked for; the message has its words."""


async def mycelia(uri: str, *arguments: str) -> str:
    """Runs `mycelia …` as one would in a terminal; its output.

    Raises:
        CommandFailed: its exit code is not 0, or it takes longer than `COMMAND_S`.
    """
    command = Path(sys.executable).with_name("mycelia")
    process = await asyncio.create_subprocess_exec(
        command,
        *arguments,
        *("--broker", uri),
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(COMMAND_S):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.communicate()
        raise CommandFailed(
            f"mycelia {' '.join(arguments)}: not done after {COMMAND_S:.0f} s"
        ) from None
    if process.returncode:
        raise CommandFailed(f"mycelia {' '.join(arguments)}: {err.decode().strip()}")
    return out.decode()


async def count_dead(link: Link) -> int:
    """How many cancelled flights are dead letters by now."""
    try:
        return await link.message_count(DEAD_QUEUE)
    except TopologyError:  # none yet
        return 0


def worth_showing(spans: Iterable[ReceivedSpan]) -> list[ReceivedSpan]:
    """The trace that shows most: one that failed, was tried again and came through, with calls; the shortest of those."""
    traces: dict[str, list[ReceivedSpan]] = {}
    for span in spans:
        traces.setdefault(span.trace_id, []).append(span)

    def merit(trace: list[ReceivedSpan]) -> tuple[bool, bool, bool, int]:
        # The call that failed is in it, where it was not another event's: who ask for one plane at a time share one call.
        called = [span.error is not None for span in trace if span.kind == "SERVER"]
        return _came_through(trace), any(called), bool(called), -len(trace)

    return max(traces.values(), key=merit, default=[])


def has_whole_trace(spans: Iterable[ReceivedSpan]) -> bool:
    """Whether there is a trace that failed and came through."""
    return _came_through(worth_showing(spans))


def _has_failed(trace: list[ReceivedSpan]) -> bool:
    return any(span.error is not None and span.kind == "CONSUMER" for span in trace)


def _came_through(trace: list[ReceivedSpan]) -> bool:
    """Failed, and got as far as the last of the services all the same."""
    return _has_failed(trace) and any(span.service == "delays" for span in trace)


def tree_of(spans: Iterable[ReceivedSpan]) -> list[str]:
    """A trace as lines."""
    return draw(
        Span(
            id=span.span_id,
            parent=span.parent_id,
            trace=span.trace_id,
            service=span.service,
            name=span.name,
            start=span.start,
            end=span.end,
            error=span.error,
            notes=_notes(span),
        )
        for span in spans
    )


def _notes(span: ReceivedSpan) -> list[str]:
    attempt = span.attributes.get("mycelia.attempt")
    return [] if attempt is None else [f"attempt {attempt}"]
