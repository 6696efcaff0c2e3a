"""Two checkouts side by side: what a change cost, or won, in interleaved pairs.

    python -m benchmarks.compare ../before --rounds 5 --questions rpc,events,startup

Each round asks one question of this checkout and of the other in turn, on the same broker, and of Go
after them; who comes first changes with each round. The other checkout needs a `.venv` with
`pip install -e '.[bench]'` of its own; its own benchmarks measure it. Ratios are taken inside a
round: the machine's slow spells hit both sides of one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.broker import find_broker
from benchmarks.process import ROOT
from benchmarks.samples import Sample, by_round, in_words, ratios

QUESTIONS = ("rpc", "events", "startup")
METRICS = {
    "rpc": ("rate_per_s", "p50_ms", "server_cpu_us", "client_cpu_us"),
    "events": ("rate_per_s", "publish_rate_per_s", "handler_cpu_us"),
    "startup": ("first_answer_s", "idle_rss_mb", "loaded_rss_mb"),
}
_WITHIN = 300.0
"""Seconds after which one turn of one checkout is taken for hanging."""


class NotMeasured(Exception):
    """A checkout's benchmark failed; its last words say why."""


def main() -> None:
    """Measure, and print a table for each question."""
    given = _arguments()
    checkouts = {"before": given.before.resolve(), "after": ROOT}
    samples: dict[str, list[Sample]] = {question: [] for question in given.questions.split(",")}
    with find_broker(given.uri) as broker:
        for number in range(given.rounds):
            for question, found in samples.items():
                turns = [(name, given.peers) for name in checkouts]
                if number % 2:
                    turns.reverse()
                if question != "startup":
                    turns.append(("after", "go"))
                for name, peers in turns:
                    print(f"round {number + 1}, {question}: {name} {peers}", file=sys.stderr)
                    try:
                        turn = _measure(checkouts[name], question, peers, broker.uri, given.seconds)
                    except NotMeasured as error:
                        if peers != "go":
                            raise
                        # Go's AMQP client 1.5 hangs now and then: it notes what it has published after it has sent it, and
                        # a confirm can come between the two. The ratios of the other rounds stand.
                        print(f"NOT MEASURED: {error}", file=sys.stderr)
                        continue
                    for one in turn:
                        peer = "go" if peers == "go" else f"{one['peer']} {name}"
                        found.append(Sample(peer, one["case"], number, one["metrics"]))
    for question, found in samples.items():
        _show(found, given.peers.split(","), METRICS[question])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description="Measure this checkout beside another, in interleaved pairs.",
    )
    parser.add_argument("before", type=Path, help="the other checkout, with its own .venv")
    parser.add_argument("--rounds", type=int, default=5, help="pairs (default: 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="measured span (default: 2)")
    parser.add_argument("--questions", default=",".join(QUESTIONS), help="of rpc,events,startup")
    parser.add_argument("--peers", default="mycelia-async,mycelia-def", help="of Mycelia's own")
    parser.add_argument("--uri", help="the broker (default: AMQP_URI, else a private node)")
    return parser.parse_args()


def _measure(
    checkout: Path, question: str, peers: str, uri: str, seconds: float
) -> Sequence[dict[str, Any]]:
    """One turn: the checkout's own benchmark, in its own environment, one round."""
    run = subprocess.run(
        [
            str(checkout / ".venv/bin/python"),
            *("-m", f"benchmarks.{question}", "--rounds", "1", "--seconds", str(seconds)),
            *("--peers", peers, "--uri", uri),
        ],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=_WITHIN,
        check=False,
    )
    _, said, path = run.stdout.rpartition("written to ")
    if run.returncode or not said:
        raise NotMeasured(f"{checkout}: {question} of {peers}: {run.stderr[-2000:]}")
    results = checkout / path.strip()
    samples: list[dict[str, Any]] = json.loads(results.read_text())["samples"]
    results.unlink()
    return samples


def _show(samples: Sequence[Sample], peers: Sequence[str], metrics: Sequence[str]) -> None:
    cases = dict.fromkeys(sample.case for sample in samples)
    for metric in metrics:
        print(f"\n{metric}: medians (min-max); ratios within each round")
        print(f"{'':28} {'before':>20} {'after':>20} {'after/before':>20} {'after/go':>18}")
        for peer in peers:
            for case in cases:
                before = by_round(samples, f"{peer} before", case, metric)
                after = by_round(samples, f"{peer} after", case, metric)
                go = by_round(samples, "go", case, metric)
                label = f"{peer.removeprefix('mycelia-')}: {case}"
                print(
                    f"{label:28} {in_words(before.values()):>20} {in_words(after.values()):>20} "
                    f"{in_words(ratios(after, before), 2):>20} {in_words(ratios(after, go), 2):>18}"
                )


if __name__ == "__main__":
    main()
