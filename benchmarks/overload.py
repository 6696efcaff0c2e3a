"""Overload: how many good answers a service gives when it is asked for more than it can do.

python -m benchmarks.overload --rounds 3 --seconds 10

Open loop: calls are made at a fixed rate, whatever becomes of those before, each with a timeout of 2 s. The service can
do 250 calls a second (ten workers of 40 ms). Goodput is what was answered in time. Each load is asked of the service
as it is by default and with `shed_overload: false`, in turn, so that both meet the machine in the same state.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.broker import NoBroker, find_broker
from benchmarks.peers.overload_service import CAPACITY_PER_S
from benchmarks.registry import Program, Site
from benchmarks.serving import wait_until_ready
from mycelia import Client
from mycelia.errors import MyceliaError

LOADS = (0.5, 1.0, 1.5, 2.0)
TIMEOUT_S = 2.0
WARM_UP_S = 3.0
"""Longer than a call's timeout, so that the queue is as full as it gets."""
TICK_S = 0.01


async def offer(uri: str, rate_per_s: float, seconds: float) -> tuple[float, Counter[str], float]:
    """Call at `rate_per_s` for `seconds` after a warm-up. Returns goodput, what became of the calls, and p50 in seconds."""
    outcomes: Counter[str] = Counter()
    took: list[float] = []
    tasks: set[asyncio.Task[None]] = set()
    async with Client(uri, timeout=TIMEOUT_S, name="bench_overload_client") as client:

        async def one(is_counted: bool) -> None:
            began = time.perf_counter()
            try:
                await client.call("bench_overload", "work")
                outcome = "good"
            except MyceliaError as exc:
                outcome = getattr(exc, "exc_type", None) or type(exc).__name__
            if is_counted:
                outcomes[outcome] += 1
                if outcome == "good":
                    took.append(time.perf_counter() - began)

        began = time.perf_counter()
        made = 0
        while (now := time.perf_counter() - began) < WARM_UP_S + seconds:
            while made < now * rate_per_s:
                task = asyncio.create_task(one(now >= WARM_UP_S))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                made += 1
            await asyncio.sleep(TICK_S)
        await asyncio.gather(*tasks)
    return outcomes["good"] / seconds, outcomes, statistics.median(took) if took else float("nan")


def service(shed: bool) -> Program:
    """The service, started by `nameko run`."""

    def argv(site: Site) -> list[str]:
        config = site.directory / f"overload-{shed}.yaml"
        settings = {"AMQP_URI": site.uri, "mycelia": {"shed_overload": shed}}
        config.write_text(json.dumps(settings))
        nameko = str(Path(sys.executable).with_name("nameko"))
        module = "benchmarks.peers.overload_service"
        return [nameko, "run", "--config", str(config), module]

    return Program(argv, consumes="rpc-bench_overload")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured span (default: 10)")
    parser.add_argument("--uri", help="the broker (default: AMQP_URI, else a private node)")
    given = parser.parse_args()
    figures: dict[tuple[float, bool], list[tuple[float, float]]] = {}
    seen: dict[tuple[float, bool], Counter[str]] = {}
    try:
        with find_broker(given.uri) as broker, tempfile.TemporaryDirectory() as directory:
            site = Site(broker.uri, Path(directory), 0)
            for number in range(given.rounds):
                for load in LOADS:
                    for shed in (True, False) if number % 2 == 0 else (False, True):
                        broker.delete(["rpc-bench_overload"])
                        program = service(shed)
                        with program.start("overload service", site) as process:
                            wait_until_ready(process, program, broker)
                            good, outcomes, p50 = asyncio.run(
                                offer(broker.uri, load * CAPACITY_PER_S, given.seconds)
                            )
                        figures.setdefault((load, shed), []).append((good, p50))
                        seen.setdefault((load, shed), Counter()).update(outcomes)
                        print(
                            f"round {number + 1}, {load:.0%}, shedding {'on' if shed else 'off'}: "
                            f"{good:.0f} good/s, p50 {p50 * 1000:.0f} ms, {dict(outcomes)}",
                            flush=True,
                        )
            version = broker.version
    except NoBroker as exc:
        sys.exit(f"NOT RUN: {exc}")
    print(
        f"\ncapacity {CAPACITY_PER_S:.0f}/s, timeout {TIMEOUT_S:g} s, {version}; median (min-max)\n"
    )
    print("| load | shedding | good answers/s | p50 of them |\n|---|---|---|---|")
    for (load, shed), results in sorted(
        figures.items(), key=lambda item: (item[0][0], not item[0][1])
    ):
        rates = sorted(rate for rate, _ in results)
        p50 = statistics.median(p50 for _, p50 in results)
        print(
            f"| {load:.0%} | {'on' if shed else 'off'} | {statistics.median(rates):.0f} "
            f"({rates[0]:.0f}-{rates[-1]:.0f}) | {p50 * 1000:.0f} ms |"
        )


if __name__ == "__main__":
    main()
