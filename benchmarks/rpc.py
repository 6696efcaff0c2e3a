"""RPC: calls per second, latency, and what a call costs the serving process.

python -m benchmarks.rpc --rounds 5 --seconds 2 --peers mycelia-async,go,nameko
"""

from __future__ import annotations

from benchmarks.broker import Broker
from benchmarks.process import cpu_seconds
from benchmarks.registry import Peer, Site
from benchmarks.rounds import Measured, Question
from benchmarks.serving import START_WITHIN, wait_until_ready

IN_FLIGHT = (1, 64, 256)
_SLACK = 60.0
"""Seconds beyond the measured span after which a silent client is taken for dead."""


def case_of(in_flight: int) -> str:
    """The case's name in results."""
    return f"rpc, {in_flight} in flight"


def question(
    seconds: float, warm_up: float = 0.5, in_flight: tuple[int, ...] = IN_FLIGHT
) -> Question:
    """The question, asked for `seconds` at each level of calls in flight, after a warm-up."""

    def ask(peer: Peer, broker: Broker, site: Site) -> Measured:
        assert peer.rpc is not None
        server_program, client_program = peer.rpc
        options = (
            "--in-flight",
            ",".join(map(str, in_flight)),
            "--seconds",
            str(seconds),
            "--warm-up",
            str(warm_up),
        )
        measured: dict[str, dict[str, float]] = {}
        with server_program.start(f"{peer.name} server", site) as server:
            wait_until_ready(server, server_program, broker)
            with client_program.start(f"{peer.name} client", site, *options) as client:
                for level in in_flight:
                    client.expect("measuring", START_WITHIN + warm_up + _SLACK)
                    before = cpu_seconds(server.pid)
                    sample = client.expect("sample", seconds + _SLACK)
                    after = cpu_seconds(server.pid)
                    count = sample["count"]
                    metrics = {
                        "rate_per_s": count / sample["elapsed_s"],
                        "p50_ms": sample["p50_ms"],
                        "p99_ms": sample["p99_ms"],
                        "p999_ms": sample["p999_ms"],
                        "client_cpu_us": sample["client_cpu_s"] / count * 1e6,
                        "count": count,
                    }
                    if before is not None and after is not None:
                        metrics["server_cpu_us"] = (after - before) / count * 1e6
                    measured[case_of(level)] = metrics
                client.finish()
        return measured

    return Question("rpc", tuple(map(case_of, in_flight)), lambda peer: peer.rpc is not None, ask)


if __name__ == "__main__":
    from benchmarks.command import main

    main(rpc=question)
