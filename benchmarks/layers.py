"""What each part of the provider layer costs: one service with one part after the other, beside the same service with none.

    python -m benchmarks.layers --rounds 5 --layers bare,metrics,traced,all

Each round asks every layer in turn, rpc and events, on the same broker, and Go after them; who comes first changes with each
round. Ratios are taken inside a round, to the bare service and to Go. Spans go to a collector that takes them and forgets them.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import events, rpc
from benchmarks.broker import find_broker
from benchmarks.registry import PEERS, Peer, mycelia_peer
from benchmarks.rounds import Question, run
from benchmarks.samples import Sample, by_round, in_words, ratios

METRICS = ("rate_per_s", "p50_ms", "server_cpu_us", "handler_cpu_us")

_TRACES = {"endpoint": "http://127.0.0.1:{port}"}
LAYERS: Mapping[str, Mapping[str, Any]] = {
    "bare": {"retry": False},
    "retry": {},
    "metrics": {"retry": False, "metrics": {"port": 0}},
    "traced": {"retry": False, "tracing": _TRACES},
    "traced 1 in 100": {"retry": False, "tracing": {**_TRACES, "sample": 0.01}},
    "not sampled": {"retry": False, "tracing": {**_TRACES, "sample": 0.0}},
    "access log 1 in 100": {"retry": False, "access_log": {"sample": 0.01}},
    "access log": {"retry": False, "access_log": True},
    "all": {
        "metrics": {"port": 0},
        "tracing": {**_TRACES, "sample": 0.01},
        "access_log": {"sample": 0.01},
    },
}
"""The section `mycelia:` of each. `retry` is the default of event handlers; "bare" is without it."""


def main() -> None:
    """Measure, and print a table for each figure."""
    given = _arguments()
    chosen = [name.strip() for name in given.layers.split(",")]
    unknown = [name for name in chosen if name not in LAYERS]
    if unknown:
        sys.exit(f"no layer is called {', '.join(unknown)}; there are {', '.join(LAYERS)}")
    questions: list[Question] = [rpc.question(given.seconds), events.question(given.seconds)]
    samples: list[Sample] = []
    with find_broker(given.uri) as broker, _collector() as port:
        peers = [
            mycelia_peer("async", "BenchAsync", name, _with(port, LAYERS[name])) for name in chosen
        ]
        for number in range(given.rounds):
            turn = number % len(peers)
            for peer in [*peers[turn:], *peers[:turn], PEERS["go"]]:
                for question in questions:
                    answers = run(question, [peer], broker, 1)
                    if answers.failed or answers.not_run:
                        sys.exit(f"not measured: {answers.failed or answers.not_run}")
                    samples += [Sample(s.peer, s.case, number, s.metrics) for s in answers.samples]
    _show(samples, peers)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.layers", description="Measure what the provider layer costs."
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="measured span (default: 2)")
    parser.add_argument(
        "--layers", default=",".join(LAYERS), help=f"of these, with commas: {', '.join(LAYERS)}"
    )
    parser.add_argument("--uri", help="the broker (default: AMQP_URI, else a private node)")
    return parser.parse_args()


def _with(port: int, section: Mapping[str, Any]) -> dict[str, Any]:
    """The section with the collector's port."""
    filled = dict(section)
    if "tracing" in filled:
        tracing = filled["tracing"]
        filled["tracing"] = {**tracing, "endpoint": tracing["endpoint"].format(port=port)}
    return filled


@contextlib.contextmanager
def _collector() -> Iterator[int]:
    """The port of something that takes whatever is posted, and looks at none of it: its own work is not at issue."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    os.environ.pop("OTEL_SDK_DISABLED", None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


def _show(samples: Sequence[Sample], peers: Sequence[Peer]) -> None:
    bare = peers[0].name
    for case in dict.fromkeys(sample.case for sample in samples):
        for metric in METRICS:
            first = by_round(samples, bare, case, metric)
            go = by_round(samples, "go", case, metric)
            if not first:
                continue
            print(f"\n{case}, {metric}: medians (min-max); ratios within each round")
            print(f"{'':24} {'':>20} {'to ' + bare:>18} {'to go':>18}")
            for peer in peers:
                found = by_round(samples, peer.name, case, metric)
                print(
                    f"{peer.name:24} {in_words(found.values()):>20} "
                    f"{in_words(ratios(found, first), 2):>18} {in_words(ratios(found, go), 2):>18}"
                )


if __name__ == "__main__":
    main()
