"""The command line of every question, and of all of them together."""

from __future__ import annotations

import argparse
import datetime
import json
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import environment, tables
from benchmarks.broker import NoBroker, find_broker
from benchmarks.registry import PEERS, Peer
from benchmarks.rounds import Answers, Question, run
from benchmarks.targets import judge_all

RESULTS = Path(__file__).parent / "results"


def main(**asked: Callable[[float], Question]) -> NoReturn:
    """Ask questions, print and keep the answers, and exit: 1 where a peer failed.

    Args:
        asked: by name, what makes a question, given the seconds that are measured.
    """
    given = _arguments(asked)
    peers = _peers(given.peers)
    questions = [make(given.seconds) for make in asked.values()]
    # SIGTERM ends the run as Ctrl-C does, so that the peers' processes end with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with find_broker(given.uri) as broker:
            found = environment.describe(broker.version, peers)
            answers = [run(question, peers, broker, given.rounds) for question in questions]
    except NoBroker as exc:
        sys.exit(f"NOT RUN: {exc}")
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        sys.exit(130)
    settings = {
        "rounds": given.rounds,
        "seconds": given.seconds,
        "peers": {peer.name: peer.about for peer in peers},
    }
    _show(questions, answers, found, settings)
    if given.save:
        print(f"\nwritten to {_write(questions, answers, found, settings)}")
    sys.exit(1 if any(answer.failed for answer in answers) else 0)


def _arguments(names: Collection[str]) -> argparse.Namespace:
    command = "benchmarks" if len(names) > 1 else f"benchmarks.{next(iter(names))}"
    parser = argparse.ArgumentParser(
        prog=f"python -m {command}",
        description="Measure Mycelia beside other clients, interleaved, on one broker.",
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="measured span in seconds (default: 2)"
    )
    parser.add_argument(
        "--peers", default=",".join(PEERS), help=f"of these, with commas: {', '.join(PEERS)}"
    )
    parser.add_argument("--uri", help="the broker (default: AMQP_URI, else a private node)")
    parser.add_argument(
        "--no-save", dest="save", action="store_false", help="print only, write no results file"
    )
    return parser.parse_args()


def _peers(wanted: str) -> list[Peer]:
    unknown = sorted(set(wanted.split(",")) - set(PEERS))
    if unknown:
        sys.exit(f"no peer is called {', '.join(unknown)}; there are {', '.join(PEERS)}")
    return [PEERS[name] for name in wanted.split(",")]


def _show(
    questions: Sequence[Question],
    answers: Sequence[Answers],
    found: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    samples = [sample for answer in answers for sample in answer.samples]
    cases = [case for question in questions for case in question.cases]
    print("Targets: the median over rounds of the ratio within each round\n")
    print(tables.targets_table(samples, cases))
    for question, answer in zip(questions, answers, strict=True):
        for case in question.cases:
            if any("rate_per_s" in s.metrics for s in answer.samples if s.case == case):
                print(f"\nRatios of the rate: {case}\n\n{tables.ratios_table(answer, case)}")
        for case in question.cases:
            print(f"\n{tables.figures_table(answer, question.name, case)}")
        for line in tables.absences(answer):
            print(line)
    print(
        f"\n{found['broker']}, Python {found['python']}, {found['cores']} cores ({found['cpu']}), "
        f"{found['kernel']}, commit {found['commit']}"
        f"{' with uncommitted changes' if found['uncommitted_changes'] else ''}, "
        f"load at the start {found['load_average_1_min']}\n"
        f"{settings['rounds']} rounds, {settings['seconds']:g} s each; figures are medians (min-max)"
    )
    print(", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    print(f"{found['go'] or 'no Go'}, {found['amqp091-go']}")


def _write(
    questions: Sequence[Question],
    answers: Sequence[Answers],
    found: dict[str, Any],
    settings: dict[str, Any],
) -> Path:
    taken_at = datetime.datetime.now(datetime.UTC)
    title = "all" if len(questions) > 1 else questions[0].name
    samples = [sample for answer in answers for sample in answer.samples]
    verdicts = judge_all(samples, [case for question in questions for case in question.cases])
    path = RESULTS / f"{taken_at:%Y-%m-%dT%H%M%S}-{title}-{found['commit']}.json"
    path.parent.mkdir(exist_ok=True)
    document = {
        "taken_at": taken_at.isoformat(timespec="seconds"),
        "environment": found,
        "settings": settings,
        "targets": [asdict(verdict) for verdict in verdicts],
        "not_run": {
            question.name: answer.not_run
            for question, answer in zip(questions, answers, strict=True)
        },
        "failed": {
            question.name: answer.failed
            for question, answer in zip(questions, answers, strict=True)
        },
        "samples": [asdict(sample) for sample in samples],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
