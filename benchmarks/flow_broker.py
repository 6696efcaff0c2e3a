"""Flows over RabbitMQ with durable state, beside a stateless hop by FastStream and aio-pika, and the bare client: one core each, in rounds.

    python -m benchmarks.flow_broker --rounds 5

A log (or a queue) is filled; then a process is started over it, and the time is from its `begun` (of a peer, its `ready`) until the last result is there:
see `peers/flow_peer.py`.
Latency is of an open loop: a process of its own appends records at half and at four fifths of the highest rate of that flow, `flow-updates`, and each
result tells when the latest record in it was sent.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.broker import Broker, find_broker
from benchmarks.environment import describe
from benchmarks.flow_logs import COUNTED, HOPPED, SOURCE, Reading, Result
from benchmarks.peers.flow_peer import BASE_MS, KEYS, QUEUE_IN, QUEUE_OUT, WINDOW_MS
from benchmarks.process import ROOT, PeerProcess, cpu_seconds
from mycelia import Client, Log
from mycelia.amqp import Message, Properties

PER_MS: Final = 50
"""Records for each millisecond of event time."""
BATCH: Final = 1_000
"""Records of an append."""
STALLED_S: Final = 60.0
GROUPS: Final = ("bench_counting.counts", "bench_updating.counts", "bench_hopping.hop")

FLOWS: Final = ("flow-count", "flow-hop", "flow-updates")
CLIENTS: Final = ("client-count", "client-hop")
PEERS: Final = {"faststream-hop": "faststream", "aio-pika-hop": "aio_pika"}


def readings(number: int) -> Iterator[list[Reading]]:
    """Records a little out of order in batches, and one that closes all windows."""
    chance = random.Random(1)
    for begin in range(0, number, BATCH):
        yield [
            Reading(
                f"k{chance.randrange(KEYS)}", BASE_MS + at // PER_MS + chance.randrange(100), at
            )
            for at in range(begin, min(begin + BATCH, number))
        ]
    yield [Reading("end", BASE_MS + number // PER_MS + 10 * WINDOW_MS, 0)]


async def _fill_log(client: Client, number: int) -> None:
    writer = await SOURCE.open_writer(client.link, 30.0)
    waiting: set[asyncio.Task[None]] = set()
    for some in readings(number):
        waiting.add(asyncio.ensure_future(writer.append_many(some)))
        if len(waiting) >= 32:
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.gather(*waiting)
    await writer.aclose()


async def _fill_queue(client: Client, number: int) -> None:
    body = json.dumps({"key": "k17", "at_ms": BASE_MS, "value": 1}).encode()
    properties = Properties(content_type="application/json", delivery_mode=2)
    message = Message("", QUEUE_IN, body, properties)
    for begin in range(0, number, 500):
        some = min(500, number - begin)
        await asyncio.gather(*(client.link.publish(message) for _ in range(some)))


@contextlib.contextmanager
def _peer(role: str, uri: str, number: int = 0, **more: str) -> Iterator[PeerProcess]:
    with tempfile.TemporaryDirectory(prefix="mycelia-bench-flow-") as state:
        environment = {"AMQP_URI": uri, "FLOW_RECORDS": str(number), "FLOW_STATE": state, **more}
        command = [sys.executable, "-m", "benchmarks.peers.flow_peer", role]
        with PeerProcess(role, command, environment) as process:
            yield process


@contextlib.asynccontextmanager
async def _clean(broker: Broker) -> AsyncIterator[Client]:
    """A client of a broker on which nothing of a run before is left."""
    logs = (SOURCE, COUNTED, HOPPED)
    queues = [QUEUE_IN, QUEUE_OUT]
    exchanges = [log.name for log in logs] + [f"{name}.events" for name in ("bench_counting",)]
    for log in logs:
        queues += [f"{log.name}-{partition}" for partition in range(log.partitions)]
    for group in GROUPS:
        queues += [f"log-{SOURCE.name}--{group}-0", f"log-{SOURCE.name}--{group}.progress"]
        queues += [f"log-{SOURCE.name}--{group}.members"]
    broker.delete(queues, exchanges)
    try:
        async with Client(broker.uri) as client:
            yield client
    finally:
        broker.delete(queues, exchanges)


async def _results(client: Client, log: Log[Result], until: Callable[[Result], bool]) -> None:
    """Read the results until one of them is the last."""
    await log.declare(client.link)
    async with log.reader(client.link, 0, "first") as reader:
        while True:
            entry = await reader.take(timeout=STALLED_S)
            if entry is None:
                raise RuntimeError(f"no result in {log.name} for {STALLED_S:g} s")
            if any(map(until, entry.values)):
                return


class _Enough:
    """Whether all has come."""

    def __init__(self, number: int, weigh: Callable[[Result], int]) -> None:
        self._left = number
        self._weigh = weigh

    def __call__(self, result: Result) -> bool:
        self._left -= self._weigh(result)
        return self._left <= 0


async def _rate(broker: Broker, role: str, number: int) -> dict[str, float]:
    """Records a second, and for each second of the processor."""
    async with _clean(broker) as client:
        if role in PEERS:
            broker.declare(QUEUE_IN)
            await _fill_queue(client, number)
        else:
            await _fill_log(client, number)
        with _peer(role, broker.uri, number) as process:
            await asyncio.to_thread(process.expect, "ready", 60.0)
            told = {"records": 0}
            if role not in PEERS:
                told = await asyncio.to_thread(process.expect, "begun", 60.0)
            began, cpu = time.perf_counter(), cpu_seconds(process.pid)
            if role == "flow-count":
                await _results(client, COUNTED, _Enough(number, lambda one: one.count))
            elif role == "flow-updates":
                await _results(client, COUNTED, lambda one: one.key == "end")
            elif role.endswith("-hop") and role not in PEERS:
                await _results(client, HOPPED, _Enough(number, lambda _: 1))
            else:
                await asyncio.to_thread(process.expect, "handled", 600.0)
            took, used = time.perf_counter() - began, cpu_seconds(process.pid)
            if told["records"] < number:
                number -= told["records"]
    rates = {"records_per_s": number / took}
    if cpu is not None and used is not None and used > cpu:
        rates["records_per_cpu_s"] = number / (used - cpu)
    return rates


async def _latency(broker: Broker, rate: float, seconds: float) -> dict[str, float]:
    """Of an open loop at `rate` records a second."""
    async with _clean(broker) as client:
        await SOURCE.declare(client.link)
        with _peer("flow-updates", broker.uri) as process:
            await asyncio.to_thread(process.expect, "ready", 60.0)
            found: list[float] = []
            begun = asyncio.Event()
            reading = asyncio.create_task(_take_latencies(client, found, begun))
            await _probe(client, begun)
            asked = {"FLOW_RATE": str(rate), "FLOW_SECONDS": str(seconds)}
            with _peer("append", broker.uri, **asked) as appending:
                await asyncio.to_thread(appending.expect, "appended", seconds + STALLED_S)
            behind = time.time()
            await asyncio.wait_for(reading, STALLED_S)
            behind = time.time() - behind
    warm = sorted(found[len(found) // 5 :])
    return {
        "rate": rate,
        "p50_ms": 1000 * warm[len(warm) // 2],
        "p99_ms": 1000 * warm[int(len(warm) * 0.99)],
        "behind_at_the_end_s": behind,
    }


async def _probe(client: Client, begun: asyncio.Event) -> None:
    """Append records until one of them has come through: then the flow has begun, at the end of the log."""
    until = time.monotonic() + STALLED_S
    while not begun.is_set():
        if time.monotonic() > until:
            raise RuntimeError(f"the flow did not begin within {STALLED_S:g} s")
        await client.append(SOURCE, Reading("probe", int(time.time() * 1000), 1, time.time()))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(begun.wait(), 0.2)


async def _take_latencies(client: Client, found: list[float], begun: asyncio.Event) -> None:
    await COUNTED.declare(client.link)
    async with COUNTED.reader(client.link, 0, "next") as reader:
        while True:
            entry = await reader.take(timeout=STALLED_S)
            if entry is None:
                raise RuntimeError("no results")
            now = time.time()
            for one in entry.values:
                begun.set()
                if one.key == "end":
                    return
                if one.key != "probe":
                    found.append(now - one.sent_at)


def _absent(role: str) -> bool:
    try:
        if role in PEERS:
            __import__(PEERS[role])
    except ImportError:
        print(f"NOT RUN: {PEERS[role]} is not installed", file=sys.stderr)
        return True
    return False


async def measure(
    broker: Broker, rounds: int, number: int, hops: int, seconds: float
) -> dict[str, Any]:
    """All of it, each role once a round."""
    roles = [role for role in (*FLOWS, *CLIENTS, *PEERS) if not _absent(role)]
    samples: dict[str, list[dict[str, float]]] = {role: [] for role in roles}
    for turn in range(rounds):
        for role in roles[turn % len(roles) :] + roles[: turn % len(roles)]:
            print(f"round {turn + 1} of {rounds}: {role}", file=sys.stderr, flush=True)
            samples[role].append(await _rate(broker, role, hops if role in PEERS else number))
    highest = max(one["records_per_s"] for one in samples["flow-updates"])
    latencies = [await _latency(broker, share * highest, seconds) for share in (0.5, 0.8)]
    return {"samples": samples, "latency": latencies}


def shown(measured: dict[str, Any]) -> Iterator[str]:
    """The figures, medians with their span, and the ratios that are asked for, each taken inside of its round."""
    samples = measured["samples"]
    for role, found in samples.items():
        rates = [one["records_per_s"] for one in found]
        per_core = [one["records_per_cpu_s"] for one in found if "records_per_cpu_s" in one]
        core = f"{statistics.median(per_core):>12,.0f} per core" if per_core else ""
        yield f"{role:<16} {statistics.median(rates):>12,.0f}/s ({min(rates):,.0f} to {max(rates):,.0f}) {core}"
    for ours, other in (
        ("flow-count", "client-count"),
        ("flow-hop", "client-hop"),
        ("flow-hop", "faststream-hop"),
        ("flow-count", "faststream-hop"),
        ("flow-hop", "aio-pika-hop"),
    ):
        if other in samples:
            ratios = [
                a["records_per_s"] / b["records_per_s"]
                for a, b in zip(samples[ours], samples[other], strict=True)
            ]
            yield f"{ours} to {other}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    for one in measured["latency"]:
        yield (
            f"at {one['rate']:,.0f} records/s: p50 {one['p50_ms']:.1f} ms, p99 {one['p99_ms']:.1f} ms; "
            f"{one['behind_at_the_end_s']:.2f} s behind at the end"
        )


def main() -> None:
    """Measure, print, and write the results down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=4_000_000)
    parser.add_argument("--hops", type=int, default=10_000, help="messages of a peer's hop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each latency")
    parser.add_argument("--uri")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with find_broker(given.uri) as broker:
        measured = asyncio.run(
            measure(broker, given.rounds, given.records, given.hops, given.seconds)
        )
        environment = describe(broker.version, ())
    for line in shown(measured):
        print(line)
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"environment": environment, **measured}, indent=1))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "platform"))
    main()
