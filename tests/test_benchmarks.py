"""The benchmarks keep working: every peer for a moment, and the arithmetic of their verdicts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import events, flow_broker, rpc, startup, tables
from benchmarks.broker import Broker
from benchmarks.peers.rpc_load import quantile
from benchmarks.process import ROOT, PeerFailed, PeerProcess
from benchmarks.registry import PEERS, Peer
from benchmarks.rounds import Answers, Question, run
from benchmarks.samples import Sample
from benchmarks.targets import TARGETS, Target, judge
from tests.tools import not_run

MOMENT = 0.1

QUESTIONS = (
    rpc.question(MOMENT, warm_up=MOMENT, in_flight=(1, 8)),
    events.question(MOMENT, warm_up=MOMENT),
    startup.question(MOMENT),
)


def _name(value: Question | Peer) -> str:
    return value.name


@pytest.fixture
def built(peer: Peer) -> Peer:
    """The peer, when what there is to compile is compiled: the first Go peer takes long on a busy machine."""
    peer.absent()
    return peer


@pytest.mark.timeout(300, func_only=True)  # the peers' own waits are shorter, and say what for
@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    ("question", "peer"),
    [
        (question, peer)
        for question in QUESTIONS
        for peer in PEERS.values()
        if question.is_for(peer)
    ],
    ids=_name,
)
@pytest.mark.long_variants(
    "*-aio*",
    "*-fastapi",
    "*-faststream*",
    "*-go*",
    "*-nameko",
    "*-pika",
    "*-mycelia-def",
    "startup-*",
)
def test_peer_answers_every_case_of_its_question(
    question: Question, peer: Peer, rabbit_uri: str
) -> None:
    answers = run(question, [peer], Broker(rabbit_uri), rounds=1)

    if peer.name in answers.not_run:
        not_run(f"benchmark peer {peer.name}: {answers.not_run[peer.name]}")
    assert answers.failed == {}
    assert [sample.case for sample in answers.samples] == list(question.cases)
    for sample in answers.samples:
        assert all(value >= 0 for value in sample.metrics.values())
        promised = {column.metric for column in tables.COLUMNS[question.name]}
        assert promised <= set(sample.metrics) or not Path("/proc/self/stat").exists()


@pytest.mark.timeout(60)
def test_command_prints_ratios_and_exits_with_success(rabbit_uri: str) -> None:
    if reason := PEERS["pika"].absent():
        not_run(f"benchmark peer pika: {reason}")
    command = [sys.executable, "-m", "benchmarks.events", "--uri", rabbit_uri]

    ran = subprocess.run(
        [*command, "--rounds", "1", "--seconds", str(MOMENT), "--peers", "pika", "--no-save"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    assert "mycelia-async is" in ran.stdout
    assert "pika" in ran.stdout


def test_unknown_peer_is_refused_by_name() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.rpc", "--peers", "go,telepathy"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert ran.returncode == 1
    assert "no peer is called telepathy" in ran.stderr


def test_ended_process_is_reported_with_its_last_words() -> None:
    argv = [sys.executable, "-c", "raise SystemExit('no such exchange')"]

    with PeerProcess("a peer", argv, {}) as process, pytest.raises(PeerFailed) as failure:
        process.expect("ready", timeout=20)

    assert "a peer" in str(failure.value)
    assert "no such exchange" in str(failure.value)


def test_other_output_of_a_peer_is_passed_over() -> None:
    report = json.dumps({"bench": "ready", "port": 7})
    argv = [sys.executable, "-c", f"print('started'); print({report!r})"]

    with PeerProcess("a peer", argv, {}) as process:
        assert process.expect("ready", timeout=20) == {"bench": "ready", "port": 7}


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50.0), (0.99, 99.0), (0.999, 100.0), (0.001, 1.0)]
)
def test_quantile_is_the_nearest_rank(share: float, expected: float) -> None:
    assert quantile([float(value) for value in range(1, 101)], share) == expected


def _samples(case: str, metric: str, **rounds: list[float]) -> list[Sample]:
    return [
        Sample(peer, case, number, {metric: value})
        for peer, values in rounds.items()
        for number, value in enumerate(values)
    ]


def test_ratio_is_taken_inside_each_round() -> None:
    """A machine at half speed in one round leaves that round's ratio as it was."""
    target = Target(case="c", metric="rate_per_s", ours="ours", theirs=("theirs",), at_least=2.0)

    verdict = judge(target, _samples("c", "rate_per_s", ours=[200.0, 100.0], theirs=[100.0, 50.0]))

    assert verdict.reached is not None
    assert (verdict.reached.low, verdict.reached.high) == (2.0, 2.0)
    assert verdict.met is True


def test_target_below_its_bound_is_missed() -> None:
    target = Target(case="c", metric="rate_per_s", ours="ours", theirs=("theirs",), at_least=2.0)

    assert judge(target, _samples("c", "rate_per_s", ours=[199.0], theirs=[100.0])).met is False


def test_best_of_several_peers_counts_in_each_round() -> None:
    target = Target(case="c", metric="cpu", ours="ours", theirs=("a", "b"), at_most=0.5)

    verdict = judge(target, _samples("c", "cpu", ours=[10.0, 10.0], a=[40.0, 10.0], b=[20.0, 20.0]))

    assert verdict.reached is not None
    assert (verdict.reached.low, verdict.reached.high) == (0.5, 1.0)
    assert verdict.met is False


def test_target_without_the_other_side_is_not_run() -> None:
    target = Target(case="c", metric="rate_per_s", ours="ours", theirs=("theirs",), at_least=2.0)

    assert judge(target, _samples("c", "rate_per_s", ours=[199.0])).met is None


def test_every_target_names_peers_cases_and_metrics_that_exist() -> None:
    cases = {
        case: question.name
        for question in (rpc.question(1), events.question(1), startup.question(1))
        for case in question.cases
    }

    for target in TARGETS:
        assert {target.ours, *target.theirs} <= set(PEERS)
        assert target.metric in {column.metric for column in tables.COLUMNS[cases[target.case]]}


def test_failed_and_absent_peers_are_said() -> None:
    answers = Answers(not_run={"go": "no Go tool chain"}, failed={"pika": "ended"})

    assert tables.absences(answers) == ["go: NOT RUN (no Go tool chain)", "pika: FAILED ended"]


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_flows_over_a_broker_are_measured(rabbit_uri: str) -> None:
    measured = await flow_broker.measure(
        Broker(rabbit_uri), rounds=1, number=5_000, hops=50, seconds=1.0
    )

    for role in (*flow_broker.FLOWS, *flow_broker.CLIENTS):
        (sample,) = measured["samples"][role]
        assert sample["records_per_s"] > 0
    assert [one["p50_ms"] > 0 for one in measured["latency"]] == [True, True]
    assert any(
        line.startswith("flow-count to client-count: ") for line in flow_broker.shown(measured)
    )
