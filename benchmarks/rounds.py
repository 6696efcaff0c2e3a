"""A run: every peer once a round, round after round, each in fresh processes.

The order turns by one peer each round, so that no peer always follows the same one.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.broker import Broker
from benchmarks.process import PeerFailed
from benchmarks.registry import Peer, Site
from benchmarks.samples import Sample

Measured = Mapping[str, Mapping[str, float]]
"""Case → metrics: what one peer did in one round."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question: its name, the cases it answers, and how one peer is asked once."""

    name: str
    cases: tuple[str, ...]
    is_for: Callable[[Peer], bool]
    ask: Callable[[Peer, Broker, Site], Measured]


@dataclass(slots=True)
class Answers:
    """What a run brought: samples, and the peers that brought none, with the reason."""

    samples: list[Sample] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def run(question: Question, peers: Sequence[Peer], broker: Broker, rounds: int) -> Answers:
    """Ask one question of all the peers it is for, `rounds` times."""
    answers = Answers()
    asked: list[Peer] = []
    for peer in filter(question.is_for, peers):
        if reason := peer.absent():
            answers.not_run[peer.name] = reason
        else:
            asked.append(peer)
    for number in range(rounds):
        turn = number % len(asked) if asked else 0
        for peer in asked[turn:] + asked[:turn]:
            _progress(f"{question.name}: round {number + 1} of {rounds}, {peer.name}")
            try:
                measured = _ask_once(question, peer, broker)
            except PeerFailed as exc:
                answers.failed[peer.name] = str(exc)
                _progress(f"FAILED {exc}")
                continue
            answers.samples += [
                Sample(peer.name, case, number, metrics) for case, metrics in measured.items()
            ]
    return answers


def _ask_once(question: Question, peer: Peer, broker: Broker) -> Measured:
    broker.delete(peer.queues, peer.exchanges)
    with tempfile.TemporaryDirectory(prefix="mycelia-bench-") as directory:
        measured = question.ask(peer, broker, Site.prepare(broker.uri, Path(directory)))
    broker.delete(peer.queues, peer.exchanges)
    return measured


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
