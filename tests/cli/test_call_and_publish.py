"""`mycelia call` and `mycelia publish`: JSON in, JSON out, exit codes, errors on stderr."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import socket
import time
from pathlib import Path

import pytest
from tests.cli.commands import Done, MyceliaCommand
from tests.processes import Process
from tests.tools import not_run

from mycelia.testing import eventually

pytestmark = pytest.mark.usefixtures("fleet")


class Talk:
    def __init__(self, mycelia: MyceliaCommand, project: Path, broker: str) -> None:
        self._mycelia = mycelia
        self._project = project
        self._broker = broker

    def __call__(self, *argv: str, stdin: str = "") -> Done:
        return self._mycelia(*argv, cwd=self._project, stdin=stdin, AMQP_URI=self._broker)


@pytest.fixture
def talk(mycelia: MyceliaCommand, project: Path, broker: str) -> Talk:
    """Runs `mycelia …` with the broker in the environment."""
    return Talk(mycelia, project, broker)


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        ([], [[], {}]),
        (["5"], [[5], {}]),
        (['"text"'], [["text"], {}]),
        (["null"], [[None], {}]),
        (["[1, 2]"], [[1, 2], {}]),
        (['{"a": 1}'], [[], {"a": 1}]),
        (["1", "[2]", '{"a": 3}'], [[1, [2], {"a": 3}], {}]),
        (["[[1, 2]]"], [[[1, 2]], {}]),
        (['{"timeout": 1}'], [[], {"timeout": 1}]),
        (['{"service": 1, "method": 2}'], [[], {"service": 1, "method": 2}]),
    ],
)
def test_arguments_and_result_are_json(talk: Talk, arguments: list[str], result: object) -> None:
    done = talk("call", "greeter.echo", *arguments)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == result
    assert done.stderr == ""


def test_dates_decimals_and_ids_are_shown_as_their_text(talk: Talk) -> None:
    tagged = [
        {"__type__": "date", "__value__": "2024-05-06"},
        {"__type__": "decimal", "__value__": "1.50"},
    ]
    done = talk("call", "greeter.echo", json.dumps([tagged]))

    assert json.loads(done.stdout) == [[["2024-05-06", "1.50"]], {}]


def test_arguments_may_be_named_one_by_one(talk: Talk) -> None:
    done = talk("call", "greeter.echo", "1", 'b="x=y"', "c=[2]", '"d=1"')

    assert json.loads(done.stdout) == [[1, "d=1"], {"b": "x=y", "c": [2]}]


@pytest.mark.parametrize("meant", ["Bob", "O'Hara", 'say "hi"', "a b", "back\\slash", "a=b", "née"])
@pytest.mark.parametrize("before", ["", "name="])
def test_advice_of_text_without_quotes_works_in_a_shell(
    talk: Talk, before: str, meant: str
) -> None:
    if before == "" and meant == "a=b":
        meant = "a-b=c"  # what is a name before the sign, names an argument
    wrong = talk("call", "greeter.echo", before + meant)
    assert wrong.returncode == 2
    _, _, advice = wrong.stderr.strip().partition("Text needs quotes: ")
    (argument,) = shlex.split(advice)

    done = talk("call", "greeter.echo", argument)

    assert json.loads(done.stdout) == ([[], {"name": meant}] if before else [[meant], {}])


def test_arguments_may_come_from_standard_input(talk: Talk) -> None:
    done = talk("call", "greeter.add", "-", stdin='{"a": 2, "b": 3}')

    assert (done.returncode, done.stdout) == (0, "5\n")


def test_broker_may_come_from_a_flag_or_a_configuration_file(
    mycelia: MyceliaCommand, project: Path, broker: str, config: str
) -> None:
    for flag, value in (("--broker", broker), ("--config", config)):
        done = mycelia("call", "greeter.add", "1", flag, value, cwd=project)
        assert (done.returncode, done.stdout) == (0, "2\n")


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["call", "greeter.hello", "Bob"], 2, "'Bob' is not JSON"),
        (["call", "greeter.hello", "Bob"], 2, "'\"Bob\"'"),
        (["call", "greeter.hello", "{name: 1}"], 2, """'{"name": "text"}'"""),
        (["call", "greeter.hello", "\udcff"], 2, "is not UTF-8"),
        (["call", "greeter.hello", "name=1", "name=2"], 2, '"name" is given twice'),
        (["call", "greeter"], 2, '"greeter": write service.method'),
        (["call", ".hello"], 2, "write service.method"),
        (["call"], 2, "required"),
        (["call", "greeter.add", "1", "--timeout", "soon"], 2, "'soon': expected seconds above 0"),
        (["call", "greeter.add", "1", "--broker", "redis://x"], 2, 'no link speaks "redis"'),
        (["call", "greeter.add", "1", "--config", "nowhere.yaml"], 2, "cannot be read"),
        (
            ["call", "greeter.helo"],
            1,
            'MethodNotFound: service "greeter" has no method "helo". Did you mean "hello"? '
            "It has: add, echo, fail, forget, hello, never, pid, setting.\n",
        ),
        (["call", "greeter.add", '{"self": 1}'], 1, "IncorrectSignature"),
        (
            ["call", "greeter.add"],
            1,
            "IncorrectSignature: missing a required argument: 'a'. It takes (a, b=1).\n",
        ),
        (
            ["call", "greeter.hello", '{"nname": "Bob"}'],
            1,
            "IncorrectSignature: got an unexpected keyword argument 'nname'; did you mean 'name'? "
            "It takes (name='world', greeting='Hello').\n",
        ),
        (["call", "nobody.hello"], 1, 'UnknownService: no service "nobody" on this broker'),
        (["call", "greeter.never", "--timeout", "0.2"], 1, "no reply within 0.2 s"),
        (["publish", "tower"], 2, "required"),
        (["publish", "tower", "closed", "{"], 2, "is not JSON"),
        (["publish", "tower", "unheard", "--mandatory", "--after", "2s"], 2, "--mandatory"),
        (["publish", "tower", "unheard", "--mandatory"], 1, "Unroutable: no queue is bound"),
        (["no-such-command"], 2, "invalid choice"),
        ([], 2, "call a method of a service"),
    ],
)
def test_mistake_is_told_on_stderr_with_its_exit_code(
    talk: Talk, argv: list[str], status: int, message: str
) -> None:
    done = talk(*argv)

    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("timeout", ["0", "-1", "nan"])
def test_timeout_that_is_no_time_is_a_wrong_command(talk: Talk, timeout: str) -> None:
    done = talk("call", "greeter.add", "1", f"--timeout={timeout}")

    assert done.returncode == 2
    assert "--timeout" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [("call", "greeter.add"), ("publish", "tower", "closed")])
@pytest.mark.parametrize("text", ["[" * 50_000, '{"a":' * 10_000, "[" * 50_000 + "]" * 50_000])
def test_deep_json_is_one_short_line(talk: Talk, command: tuple[str, ...], text: str) -> None:
    done = talk(*command, "-", stdin=text)

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is nested too deeply" in done.stderr
    assert len(done.stderr) < 200


def test_remote_error_is_shown_with_its_traceback(talk: Talk) -> None:
    done = talk("call", "greeter.fail", '"plane"')

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("LookupError: no plane here\n")
    assert "greeter.py" in done.stderr
    assert 'raise LookupError(f"no {what} here")' in done.stderr


def test_remote_error_without_frames_is_said_once(talk: Talk) -> None:
    """Nobody raised it in the service: its traceback would be the same line again."""
    done = talk("call", "greeter.forget")

    assert done.returncode == 1
    assert done.stderr.startswith("RuntimeStateError: `await` is missing before")
    assert done.stderr.count("\n") == 1


def test_unreachable_broker_and_wrong_password_are_clear_and_tell_no_password(
    talk: Talk, broker: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    nowhere = f"amqp://guest:s3cret@127.0.0.1:{port}/"
    refused = broker.replace("guest:guest@", "guest:s3cret@")

    for uri, error in ((nowhere, "BrokerUnavailable"), (refused, "AccessRefused")):
        done = talk("call", "greeter.add", "1", "--broker", uri, "--timeout", "0.5")
        assert done.returncode == 1
        assert error in done.stderr
        assert "s3cret" not in done.stderr
        assert "Traceback" not in done.stderr


async def test_published_event_reaches_its_handler(
    talk: Talk, project: Path, fleet: Process
) -> None:
    file = project / "events.txt"
    published = [
        ("publish", "tower", "closed", '{"runway": "31L"}', ""),
        ("publish", "tower", "closed", "-", "[1]"),
        ("publish", "tower", "closed", "null", ""),
    ]
    for *argv, stdin in published:
        done = await asyncio.to_thread(talk, *argv, "--mandatory", stdin=stdin)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def arrived() -> bool:
        lines = file.read_text().splitlines() if file.exists() else []
        return sorted(line for line in lines if line != "'later'") == sorted(
            ["{'runway': '31L'}", "[1]", "None"]
        )

    await eventually(arrived, 30)


async def test_event_published_for_later_reaches_its_handler_then(
    talk: Talk, project: Path, fleet: Process
) -> None:
    file = project / "events.txt"
    began = time.monotonic()
    done = await asyncio.to_thread(talk, "publish", "--after", "2s", "tower", "closed", '"later"')
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def has_arrived() -> bool:
        return file.exists() and "'later'" in file.read_text().splitlines()

    assert not has_arrived()
    await eventually(has_arrived, 20)

    assert time.monotonic() - began >= 2.0


def test_event_that_nobody_has_subscribed_to_is_told(talk: Talk) -> None:
    done = talk("publish", "towr", "closed", "{}")

    assert (done.returncode, done.stdout) == (0, "")
    assert 'no handler has ever subscribed to "closed" of "towr"' in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_and_version_are_there_for_every_command(talk: Talk) -> None:
    version = talk("--version")
    assert version.returncode == 0
    assert version.stdout.startswith("mycelia 0.")
    for argv in ([], ["run"], ["call"], ["publish"], ["broker"], ["completion"]):
        done = talk(*argv, "--help")
        assert done.returncode == 0
        assert "usage: mycelia" in done.stdout
        assert done.stderr == ""


def test_command_named_alone_shows_how_to_use_it(talk: Talk) -> None:
    done = talk()

    assert done.returncode == 2
    assert "usage: mycelia" in done.stderr


@pytest.mark.parametrize(
    "command", [("call", "greeter.echo"), ("log", "ls"), ("top", "--once", "--json")], ids=" ".join
)
def test_broker_that_nobody_has_named_is_said_to_be_the_default(
    mycelia: MyceliaCommand, project: Path, command: tuple[str, ...]
) -> None:
    """As in a second terminal, where `AMQP_URI` is not set."""
    with contextlib.suppress(OSError), socket.create_connection(("localhost", 5672), 1):
        not_run("a broker, or something else, is at localhost:5672")

    done = mycelia(*command, "--timeout", "0.5", cwd=project)

    assert done.returncode == 1
    assert "BrokerUnavailable: no broker at pyamqp://guest:***@localhost" in done.stderr
    assert "AMQP_URI is not set: name your broker there, or by --broker" in done.stderr
