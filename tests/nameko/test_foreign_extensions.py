"""Third-party extensions on Mycelia that reach a limit, in a process of their own; `nameko/bridge.py`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.nameko.processes import NamekoRun

MODULES = {"TwoKindsOfRpc": "two_kinds_of_rpc", "PatchesContainer": "patched_services"}
"""Where a service is, if not in `foreign_services`."""

Start = Callable[..., NamekoRun]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a service of `foreign_services` on Mycelia. Nothing here talks to a broker."""
    runs: list[NamekoRun] = []

    def start(service: str, **config: object) -> NamekoRun:
        config = {
            "AMQP_URI": "memory://foreign",
            "SERVICE_CONTAINER_CLS": "mycelia.Container",
            **config,
        }
        module = MODULES.get(service, "foreign_services")
        run = NamekoRun(
            f"tests.nameko.{module}:{service}",
            config=config,
            directory=tmp_path,
            handed_over=True,
        )
        runs.append(run.start())
        return run

    yield start
    for run in runs:
        run.kill()


@pytest.mark.parametrize(
    ("service", "words"),
    [
        ("OwnConsumeLoop", ["Loopy overrides on_iteration of Nameko's QueueConsumer"]),
        ("OwnServer", ["Served of service own_server overrides bind_addr, get_wsgi_server", "get_wsgi_app"]),
        ("TwoKindsOfRpc", ["service two_kinds: counted is of a class that overrides Nameko's Rpc", "plain"]),
        ("Patched", ["service patched: <PatchesLate, written for Nameko> has replaced nameko.rpc.MethodProxy._call"]),
        ("PatchesContainer", ["service patches_container: something has replaced nameko.containers.ServiceContainer._run_worker"]),
        ("BlocksTheLoop", ["BlocksTheLoop.proxy: tests.nameko.foreign_services.ByHand works on the inside of nameko.rpc.RpcProxy", "`async def method`"]),
        ("RequestsWithAnId", ['RpcProxy("other", app_id=…): requests carry no such property here']),
        ("PublishesAtOnce", ["Publisher(): immediate=True"]),
    ],
)  # fmt: skip
def test_what_nobody_would_ask_for_is_refused_at_the_start(
    start: Start, service: str, words: list[str]
) -> None:
    run = start(service)

    assert run.wait() == 1
    for text in words:
        assert text in run.output
    assert "Traceback" not in run.output


def test_provider_in_a_provider_is_refused_by_name(start: Start) -> None:
    run = start("HoldsDependency")

    assert run.wait() == 1
    assert "Holder.proxy: a dependency provider cannot hold another (RpcProxy)" in run.output


def test_error_of_a_managed_thread_ends_the_process_with_an_error(start: Start) -> None:
    """A service whose consume loop has died must not look healthy."""
    run = start("ThreadFails")

    assert run.wait() == 1
    assert "managed_thread_failed" in run.output
    assert "the source is gone" in run.output
    assert "loop ended, dead=True" in run.output


def test_endless_managed_thread_is_killed_at_the_stop(start: Start) -> None:
    run = start("ThreadIsKilled")
    run.await_output("loop runs")

    assert run.terminate() == 0
    assert "loop ended, dead=True" in run.output


def test_spawn_worker_blocks_when_the_service_is_full(start: Start) -> None:
    run = start("Full", max_workers=2)
    output = run.await_output("flood over")
    running = [int(number) for number in re.findall(r"with (\d) running", output)]

    assert len(running) == 6
    assert max(running) <= 2
    assert running[-1] >= 1  # it did not wait for every worker, one after the other


def test_worker_that_could_not_begin_is_given_back_at_the_stop(start: Start) -> None:
    run = start("Stopping", max_workers=1)
    run.await_output("0 begins")

    assert run.terminate() == 0
    assert "1 is given back" in run.output, run.output
    assert "0 ends" in run.output, run.output
    assert "1 begins" not in run.output, run.output


def test_entrypoint_hears_of_a_worker_whose_dependency_failed(start: Start) -> None:
    """Nameko would kill the service here; whoever waits for the result must not wait for ever."""
    run = start("ProviderFails")

    run.await_output("heard ConnectionError: no database")
    assert run.terminate() == 0


def test_entrypoint_hears_of_a_method_that_exits(start: Start) -> None:
    run = start("MethodExits")

    run.await_output("heard WorkerAborted: SystemExit: 3")
    assert run.terminate() == 0


def test_entrypoint_hears_what_a_middleware_answered_in_the_method_s_place(start: Start) -> None:
    run = start("Answered", mycelia={"middleware": ["tests.nameko.foreign_services.answer"]})

    run.await_output("heard from the cache")
    assert run.terminate() == 0


def test_entrypoint_hears_the_method_itself_whatever_a_middleware_makes_of_it(start: Start) -> None:
    """Said in docs/from-nameko.md: `handle_result` belongs to the worker, as in Nameko, and middleware comes after it."""
    run = start("Answered", mycelia={"middleware": ["tests.nameko.foreign_services.mask"]})

    output = run.await_output("heard from the method")
    assert run.terminate() == 0
    assert "heard masked" not in output


def test_subclass_of_the_stock_timer_runs_as_it_is(start: Start) -> None:
    run = start("CustomTimer")
    output = run.await_output("tock\ntick\ntock\ntick\ntock")

    assert "tick\ntick" not in output
    assert run.terminate() == 0


HOOKS = ("get_dependency", "worker_setup", "handle", "handle_result", "worker_result")


def _told(run: NamekoRun) -> list[str]:
    output = run.await_output("worker_teardown {")
    return sorted(line for line in output.splitlines() if line.startswith((*HOOKS, "worker_tear")))


def test_container_tells_extensions_what_stock_nameko_tells_them(
    start: Start, tmp_path: Path
) -> None:
    """Its names, the private ones that packages read included: how many workers, which threads, which extensions."""
    told, told_by_stock = _beside_stock(start, tmp_path, "Insides", _told)

    assert len(told) == len(HOOKS) + 1
    assert told == told_by_stock


def test_replaced_steps_of_workers_are_called_as_on_stock_nameko(
    start: Start, tmp_path: Path
) -> None:
    """By who replaces them on the container: for Nameko's entrypoints, and those that Mycelia's stand in for."""

    def told(run: NamekoRun) -> list[str]:
        for entrypoint in ("Once", "Timer"):
            run.await_output(f"after _worker_teardown of {entrypoint}")
        return sorted(line for line in run.output.splitlines() if line.startswith("after "))

    ours, stock = _beside_stock(start, tmp_path, "StepsReplaced", told)

    assert len(ours) == 6
    assert ours == stock


def test_nameko_s_tools_for_tests_work_as_on_stock_nameko(start: Start, tmp_path: Path) -> None:
    def told(run: NamekoRun) -> list[str]:
        run.await_output("all waited")
        return [line for line in run.output.splitlines() if "waited:" in line]

    ours, stock = _beside_stock(start, tmp_path, "StepsAwaited", told)

    assert ours == stock
    assert ours[0] == "0 waited: ticked []"  # and afterwards nothing is watched any more


def _beside_stock(
    start: Start, folder: Path, service: str, told: Callable[[NamekoRun], list[str]]
) -> tuple[list[str], list[str]]:
    """What `service` says here, and on stock Nameko."""
    ours = start(service, AMQP_URI="memory://foreign", max_workers=3)
    stock = NamekoRun(
        f"tests.nameko.foreign_services:{service}",
        config={"AMQP_URI": "memory://foreign", "max_workers": 3},
        directory=folder,
    ).start()
    try:
        told_by_stock = told(stock)
    finally:
        stock.kill()
    return told(ours), told_by_stock


def test_extension_may_stop_the_service(start: Start) -> None:
    run = start("Stops")

    assert run.wait() == 0
    assert "wait returned" in run.output
    assert "service_stopped" in run.output


def test_extension_may_kill_the_service_with_an_error(start: Start) -> None:
    run = start("Kills")

    assert run.wait() == 1
    assert "wait raised the source is gone" in run.output


def test_our_provider_bound_inside_a_foreign_one_is_refused_by_name(start: Start) -> None:
    run = start("BindsOurs")

    assert run.wait() == 1
    assert "an extension written for Nameko binds one of Mycelia's" in run.output
    assert "Traceback" not in run.output
