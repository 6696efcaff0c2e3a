"""Pathway over a file of JSON lines, as it reads them: `python -m benchmarks.peers.pathway_peer SHAPE FILE`.

Says how many seconds of the processor the run took, all threads together, and how many results there were. Its import and the
building of the graph are not counted; the reading of the file is, because Pathway has no source in memory.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import pathway as pw

from benchmarks.peers.protocol import say


class Reading(pw.Schema):
    """A record."""

    at_ms: int
    key: str
    value: int


def main(shape: str, file: str) -> None:
    """Run it once."""
    readings: Any = pw.io.jsonlines.read(file, schema=Reading, mode="static")
    if shape == "map":
        results = readings.select(value=pw.this.value + 1)
    else:
        windows: Any = (
            pw.temporal.tumbling(duration=10_000)
            if shape.startswith("tumbling")
            else pw.temporal.sliding(hop=2_000, duration=10_000)
        )
        results = readings.windowby(readings.at_ms, window=windows, instance=readings.key).reduce(
            key=pw.this._pw_instance,
            start=pw.this._pw_window_start,
            count=pw.reducers.count(),
        )
    pw.io.null.write(results)
    began, at = time.process_time(), time.perf_counter()
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)
    say("handled", cpu_s=time.process_time() - began, took_s=time.perf_counter() - at)


if __name__ == "__main__":
    main(*sys.argv[1:])
