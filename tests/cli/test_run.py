"""`nameko run` and `mycelia run` in real processes: flags, signals, and what a user is told when it goes wrong."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.cli.commands import MYCELIA, NAMEKO, MyceliaCommand
from tests.ports import free_port
from tests.processes import Process, run

from mycelia import BlockingClient
from mycelia.broker.node import PrivateNode
from mycelia.cli.signals import ECHO_S


@pytest.fixture(scope="module")
def client(broker: str) -> Iterator[BlockingClient]:
    with BlockingClient(broker, timeout=20) as client:
        yield client


# --- flags ------------------------------------------------------------------------------------------


def test_hand_over_keeps_the_pid_and_leaves_eventlet_behind(
    fleet: Process, client: BlockingClient
) -> None:
    assert client.call("greeter", "pid") == fleet.pid


def test_config_file_is_read_with_the_environment_in_it(
    fleet: Process, client: BlockingClient
) -> None:
    assert client.call("greeter", "setting", "PLANE") == "N101DQ"
    assert client.call("greeter", "setting", "LIMIT") == 5


def test_several_services_and_single_classes_run_in_one_process(
    fleet: Process, client: BlockingClient
) -> None:
    assert client.call("first", "who") == "first"
    assert client.call("second", "who") == "second"


def test_unknown_flag_is_passed_over_and_said(fleet: Process) -> None:
    assert "unknown options passed over: --no-such-flag" in fleet.output


def test_backdoor_gives_a_console_in_the_process(fleet: Process, backdoor_port: int) -> None:
    with socket.create_connection(("127.0.0.1", backdoor_port), 10) as connection:
        stream = connection.makefile("rw", encoding="utf-8")
        stream.write("sorted(runner.service_names)\n")
        stream.write("print(run(__import__('asyncio').sleep(0, 'from the loop')))\n")
        stream.write("runner.statistics().link\n")
        stream.write("1/0\nimport os\nos.getpid()\nquit()\n")
        stream.flush()
        said = stream.read()

    assert "['first', 'greeter', 'second']" in said
    assert "from the loop" in said
    assert "LinkStatistics(published=" in said
    assert "ZeroDivisionError" in said
    assert str(fleet.pid) in said
    assert fleet.is_running


def test_broker_flag_and_a_module_with_several_services(
    project: Path, broker: str, client: BlockingClient
) -> None:
    with Process(NAMEKO, "run", "--broker", broker, "two", cwd=project) as process:
        process.wait_until_ready()

        assert client.call("second", "who") in ("second",)
        assert process.stop() == 0
        assert "Traceback" not in process.output


def test_mycelia_run_takes_the_same_arguments(
    project: Path, config: str, client: BlockingClient
) -> None:
    with Process(*MYCELIA, "run", "two:First", "--config", config, cwd=project) as process:
        process.wait_until_ready()

        assert client.call("first", "who") == "first"
        process.send(signal.SIGINT)
        assert process.finish() == 0
        assert "Traceback" not in process.output


# --- signals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_signal_lets_running_work_finish_and_its_reply_leave(
    project: Path, config: str, client: BlockingClient, number: signal.Signals
) -> None:
    gate = project / f"gate-{number.name}"
    with (
        Process(*MYCELIA, "run", "slow", "--config", config, cwd=project) as process,
        ThreadPoolExecutor(2) as pool,
    ):
        process.wait_until_ready()
        methods = ["wait_for", "wait_in_thread"]
        calls = [pool.submit(client.call, "slow", m, gate.name, timeout=40) for m in methods]
        process.wait_for("begun", count=2)
        process.send(number)
        process.wait_for("service_draining")
        gate.touch()

        assert [call.result(40) for call in calls] == ["done", "done"]
        assert process.finish() == 0


def test_second_signal_kills_at_once_and_the_work_goes_back(
    project: Path, config: str, client: BlockingClient
) -> None:
    gate = project / "gate-second"
    with ThreadPoolExecutor(1) as pool:
        with Process(NAMEKO, "run", "slow", "--config", config, cwd=project) as process:
            process.wait_until_ready()
            call = pool.submit(client.call, "slow", "wait_for", gate.name, timeout=60)
            process.wait_for("begun")
            process.send(signal.SIGTERM)
            process.wait_for("service_draining")
            time.sleep(ECHO_S + 0.1)  # sooner, it would count as the first one's echo
            process.send(
                signal.SIGTERM
            )  # once: another that comes when it is leaving ends it with -15
            process.wait_for("killing")

            assert process.finish(timeout=19) == 0  # its grace is 20 s
            assert "Traceback" not in process.output
        gate.touch()
        with Process(*MYCELIA, "run", "slow", "--config", config, cwd=project) as process:
            assert call.result(60) == "done"
            assert process.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_start_that_waits_for_a_broker_is_given_up_at_a_signal(
    project: Path, number: signal.Signals
) -> None:
    port = free_port()
    uri = f"amqp://guest:s3cret@127.0.0.1:{port}/"
    with Process(*MYCELIA, "run", "two", "--broker", uri, cwd=project) as process:
        process.wait_for(f"127.0.0.1:{port}")  # that the broker is not there is told
        process.send(number)

        assert process.finish() == 0
        assert "s3cret" not in process.output


# --- mistakes ---------------------------------------------------------------------------------------


Fails = Callable[..., str]


@pytest.fixture
def fails(mycelia: MyceliaCommand, project: Path) -> Fails:
    """Runs `mycelia run …` that is to fail with one clear line; returns what it said on stderr."""

    def check(*arguments: str) -> str:
        done = mycelia("run", *arguments, cwd=project)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    return check


@pytest.mark.parametrize(
    ("service", "message"),
    [
        ("no_such_module", 'no module "no_such_module"'),
        ("greeter.nothing", 'no module "greeter.nothing"'),
        ("greeter:Greater", 'module "greeter" has no class "Greater". Did you mean "Greeter"?'),
        ("greeter:Nothing", 'module "greeter" has no class "Nothing". It has: Greeter.'),
        ("empty:VALUE", '"empty:VALUE" is a int, not a class'),
        ("empty:Plain", "service class Plain (empty) has no name"),
        ("empty", 'module "empty" has no service'),
        ("nameless", "service class Nameless (nameless) has no name"),
        ("greeter.py", '"greeter.py" is a file; name its module: greeter'),
    ],
)
def test_wrong_service_is_one_clear_line(fails: Fails, service: str, message: str) -> None:
    assert message in fails(service, "--broker", "memory://")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_workers: many", 'configuration key "max_workers": expected'),
        (
            "mycelia: {graze: 3}",
            'configuration key "mycelia.graze" is unknown. Did you mean "grace"?',
        ),
        ("a: [1", "is not valid YAML"),
        ("- a list", "expected a mapping of keys to values at the top, got list"),
        ("AMQP_URI: redis://x", 'no link speaks "redis"'),
    ],
)
def test_wrong_configuration_is_one_clear_line(
    fails: Fails, project: Path, text: str, message: str
) -> None:
    (project / "wrong.yaml").write_text(f"{text}\n")

    assert message in fails("two", "--config", "wrong.yaml")


def test_missing_configuration_file_is_one_clear_line(fails: Fails) -> None:
    said = fails("two", "--config", "nowhere.yaml")

    assert 'configuration file "nowhere.yaml" cannot be read: No such file' in said


def test_taken_backdoor_port_is_one_clear_line(fails: Fails) -> None:
    with socket.create_server(("localhost", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = fails("two", "--broker", "memory://", "--backdoor-port", port)

    assert f"--backdoor-port {port}: cannot listen there" in said


@pytest.mark.parametrize("command", ["nameko", "mycelia"])
def test_wrong_password_ends_the_start_without_showing_it(
    project: Path, broker: str, command: str
) -> None:
    uri = broker.replace("guest:guest@", "guest:s3cret@")
    assert uri != broker
    program = [NAMEKO] if command == "nameko" else [*MYCELIA]

    done = run([*program, "run", "two", "--broker", uri], project)

    assert done.returncode == 1
    assert "AccessRefused" in done.stderr
    assert "s3cret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_vhost_ends_the_start(fails: Fails, rabbit_node: PrivateNode) -> None:
    said = fails("two", "--broker", rabbit_node.uri("nowhere"))

    assert "AccessRefused" in said
    assert "nowhere" in said
