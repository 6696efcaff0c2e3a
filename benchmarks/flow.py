"""What the core of flows does a second, on one core, in memory: records that are Python objects, to results.

    python -m benchmarks.flow --rounds 3 --json build/flow.json

Each shape runs at several sizes of batches, in rounds, and the best of each size is told: what batches are for is the caller's to
choose. A peer that is installed (`pip install bytewax`) runs in the same rounds over the same records.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "platform"))

from benchmarks.environment import describe
from benchmarks.nexmark import Nexmark, query
from mycelia.flow import Engine, FlowPlan, Stream, count, hopping, session, source, tumbling

BATCHES = (500, 5_000, 20_000)
BASE_MS = 1_700_000_000_000
PER_MS = 50
"""Records for each millisecond of event time: a window of ten seconds holds 500,000."""


class Event(NamedTuple):
    at_ms: int
    key: str
    value: int


def events(number: int, keys: int) -> list[Event]:
    """Records a little out of order, the same in each run."""
    chance = random.Random(1)
    return [
        Event(
            BASE_MS + index // PER_MS + chance.randrange(100), f"k{chance.randrange(keys)}", index
        )
        for index in range(number)
    ]


def mapped(stream: Stream[Event]) -> Stream[Any]:
    return stream.map(lambda event: event.value + 1)


def windowed(kind: Any) -> Callable[[Stream[Event]], Stream[Any]]:
    def build(stream: Stream[Event]) -> Stream[Any]:
        keyed = stream.event_time(lambda event: event.at_ms, unit="ms", disorder=1).key_by(
            lambda event: event.key
        )
        return keyed.window(kind).aggregate(count())

    return build


SHAPES: dict[str, Callable[[Stream[Event]], Stream[Any]]] = {
    "map": mapped,
    "tumbling 10s": windowed(tumbling("10s")),
    "hopping 10s every 2s": windowed(hopping("10s", every="2s")),
    "session 1s": windowed(session("1s")),
}


def ours(build: Callable[[Stream[Event]], Stream[Any]], records: list[Event], batch: int) -> int:
    """Run it; returns how many results there were."""
    return results_of(FlowPlan({"out": build(source("in", Event)).port}), "in", records, batch)


def results_of(plan: FlowPlan, name: str, records: list[Any], batch: int) -> int:
    engine = Engine(plan, {name: [0]})
    results = 0
    for at in range(0, len(records), batch):
        values = records[at : at + batch]
        results += sum(map(len, engine.feed(name, 0, values, [0] * len(values))))
    return results + sum(map(len, engine.end(name, 0)))


def bytewaxs(shape: str, records: list[Event], batch: int) -> int:
    """The same in Bytewax, with its own operators and test source."""
    import bytewax.operators as op
    import bytewax.operators.windowing as windows
    from bytewax.dataflow import Dataflow
    from bytewax.testing import TestingSink, TestingSource, run_main

    out: list[Any] = []
    flow = Dataflow("bench")
    stream = op.input("in", flow, TestingSource(records, batch_size=batch))
    if shape == "map":
        stream = op.map("map", stream, lambda event: event.value + 1)
    else:
        clock = windows.EventClock(
            lambda event: datetime.fromtimestamp(event.at_ms / 1000, UTC), timedelta(seconds=1)
        )
        base = datetime.fromtimestamp(BASE_MS / 1000, UTC)
        ten, two = timedelta(seconds=10), timedelta(seconds=2)
        kind: Any = windows.TumblingWindower(align_to=base, length=ten)
        if shape.startswith("hopping"):
            kind = windows.SlidingWindower(align_to=base, length=ten, offset=two)
        elif shape.startswith("session"):
            kind = windows.SessionWindower(gap=timedelta(seconds=1))
        stream = windows.count_window("count", stream, clock, kind, lambda event: event.key).down
    op.output("out", stream, TestingSink(out))
    run_main(flow)
    return len(out)


def pathways(shape: str, file: str, number: int) -> float:
    """Records per second of one core, in Pathway: a process of its own, over a file."""
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers.pathway_peer", shape, file],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    for line in ran.stdout.splitlines():
        if line.startswith('{"bench"'):
            return number / float(json.loads(line)["cpu_s"])
    raise RuntimeError(f"pathway: {ran.stderr[-500:]}")


def written(records: list[Event], directory: str) -> str:
    """A file of them, as JSON lines."""
    file = Path(directory) / f"{len(records)}-{len({one.key for one in records})}.jsonl"
    with file.open("w") as out:
        for one in records:
            out.write(json.dumps(one._asdict()) + "\n")
    return str(file)


def measured(run: Callable[[], int], number: int) -> float:
    """Records per second of one core: by the time of the processor, so that a busy machine slows neither side. The collector is told that the records are here to stay, as it would have in a service that runs."""
    gc.collect()
    gc.freeze()
    began = process_time()
    run()
    took = process_time() - began
    gc.unfreeze()
    return number / took


def nexmark(number: int, rounds: int) -> dict[str, dict[str, float]]:
    """Nexmark's queries over its own events, a little out of order: events a second, of all kinds."""
    stream = Nexmark(group=1000)
    records = stream.events(number)
    best: dict[str, dict[str, float]] = {}
    for name in ("q1", "q3", "q5", "q7", "q8", "q11"):
        plan = FlowPlan({"out": query(name, stream.disorder_ms).port})
        rates = [
            measured(lambda: results_of(plan, "events", records, batch), number)  # noqa: B023  # called at once
            for _ in range(rounds)
            for batch in BATCHES
        ]
        best[f"nexmark {name}"] = {"mycelia": max(rates)}
    return best


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=500_000)
    parser.add_argument(
        "--peer-records", type=int, default=50_000, help="how many a slower peer gets"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--nexmark", type=int, default=0, help="how many of Nexmark's events, at 10,000 a second"
    )
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    has_bytewax, has_pathway = map(_is_installed, ("bytewax", "pathway"))
    best: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="mycelia-bench-") as directory:
        for keys in (10, 1_000):
            records = events(given.records, keys)
            fewer = records[: given.peer_records]
            file = written(records, directory) if has_pathway else ""
            for shape, build in SHAPES.items():
                row = best.setdefault(f"{shape}, {keys} keys", {})
                for _ in range(given.rounds):
                    for batch in BATCHES:
                        rate = measured(lambda: ours(build, records, batch), len(records))  # noqa: B023  # called at once
                        row["mycelia"] = max(row.get("mycelia", 0.0), rate)
                        if has_bytewax:
                            rate = measured(lambda: bytewaxs(shape, fewer, batch), len(fewer))  # noqa: B023
                            row["bytewax"] = max(row.get("bytewax", 0.0), rate)
                    if has_pathway and not shape.startswith("session"):
                        rate = pathways(shape, file, len(records))
                        row["pathway"] = max(row.get("pathway", 0.0), rate)
    if given.nexmark:
        best |= nexmark(given.nexmark, given.rounds)
    for name, row in best.items():
        beside = "".join(
            f"  {peer} {row[peer]:>10,.0f} {row['mycelia'] / row[peer]:>6.1f}x"
            for peer in ("bytewax", "pathway")
            if peer in row
        )
        print(f"{name:<34} {row['mycelia']:>12,.0f}{beside}")
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        environment = describe("none", ())
        given.json.write_text(
            json.dumps({"environment": environment, "records_per_cpu_s": best}, indent=1)
        )


def _is_installed(peer: str) -> bool:
    if find_spec(peer) is None:
        print(f"NOT RUN: {peer} is not installed")
        return False
    return True


if __name__ == "__main__":
    main()
