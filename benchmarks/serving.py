"""When a peer's server may be used."""

from __future__ import annotations

from benchmarks.broker import Broker
from benchmarks.process import PeerProcess
from benchmarks.registry import Program

START_WITHIN = 60.0
"""Seconds a program may take until it is ready. One that fails ends, and is not waited for; the others have a busy machine."""


def wait_until_ready(process: PeerProcess, program: Program, broker: Broker) -> None:
    """Wait for the program's own `ready` report, or for its consumer at the broker.

    Raises:
        PeerFailed: it ended, or was not ready within `START_WITHIN`.
    """
    if program.consumes:
        broker.wait_for_consumer(program.consumes, START_WITHIN, process)
    else:
        process.expect("ready", START_WITHIN)
