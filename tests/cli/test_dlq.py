"""`mycelia dlq`: what is listed, shown, changed, sent and thrown away; exit codes; nothing that steers a terminal."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from tests.cli.commands import MYCELIA, Done, MyceliaCommand
from tests.control.letters import HANDLER_QUEUE, bodies_in, bury, fate
from tests.processes import Process

from mycelia import Queue
from mycelia.amqp import Link, connect
from mycelia.broker.node import PrivateNode

DEAD = f"{HANDLER_QUEUE}.dead"
HANDLER = Queue(HANDLER_QUEUE, arguments={"x-queue-type": "quorum"})


class Dlq:
    """A virtual host of its own, with dead letters, and the command."""

    def __init__(self, mycelia: MyceliaCommand, folder: Path, uri: str, management: str) -> None:
        self._mycelia, self._folder, self._uri = mycelia, folder, uri
        self._management = management

    def __call__(
        self, *argv: str, stdin: str = "", management: str | None = None, **extra: str
    ) -> Done:
        url = management or self._management
        return self._mycelia(
            "dlq",
            *argv,
            "--management",
            url,
            cwd=self._folder,
            stdin=stdin,
            AMQP_URI=self._uri,
            **extra,
        )

    def json(self, *argv: str) -> Any:
        done = self(*argv, "--json")
        assert done.stderr == "", done.stderr
        return json.loads(done.stdout)

    def on_link(self, action: Callable[[Link], Coroutine[Any, Any, Any]]) -> Any:
        async def act() -> Any:
            link = connect(self._uri)
            await link.open(30)
            try:
                return await action(link)
            finally:
                await link.aclose()

        return asyncio.run(act())

    def bury(self, *bodies: object, **options: Any) -> None:
        self.on_link(lambda link: bury(link, *bodies, **options))

    def bodies_in(self, queue: str) -> list[str]:
        found: list[str] = self.on_link(lambda link: bodies_in(link, queue))
        return found

    def declare(self, *queues: Queue) -> None:
        self.on_link(lambda link: link.declare(*queues))


@pytest.fixture
def dlq(mycelia: MyceliaCommand, tmp_path: Path, rabbit_node: PrivateNode, rabbit_uri: str) -> Dlq:
    url = f"http://127.0.0.1:{rabbit_node.management_port}"
    return Dlq(mycelia, tmp_path, rabbit_uri, url)


def test_queues_are_listed_with_count_and_age(dlq: Dlq) -> None:
    dlq.bury(1, 2)
    dlq.bury(3, queue=Queue("imports.dead"), headers=fate(service="imports"))
    dlq.declare(HANDLER)

    done = dlq("ls")
    rows = dlq.json("ls")

    assert (done.returncode, done.stderr) == (0, "")
    assert DEAD in done.stdout
    assert "ago" in done.stdout
    assert [(row["queue"], row["messages"], row["oldest"]) for row in rows] == [
        (DEAD, 2, "2023-11-14T22:14:20+00:00"),
        ("imports.dead", 1, "2023-11-14T22:14:20+00:00"),
    ]
    assert [row["queue"] for row in dlq.json("ls", "enrich")] == [DEAD]
    assert [row["queue"] for row in dlq.json("ls", HANDLER_QUEUE)] == [DEAD]


def test_groups_are_counted_by_error_and_handler(dlq: Dlq) -> None:
    dlq.bury(1, 2, 3)
    dlq.bury(4, headers=fate(error_type="OSError", method="landed"))

    (row,) = dlq.json("ls", DEAD, "--group")
    done = dlq("ls", DEAD, "--group", "--look", "2")

    assert [(g["count"], g["error_type"], g["handler"]) for g in row["groups"]] == [
        (3, "KeyError", "enrich.departed"),
        (1, "OSError", "enrich.landed"),
    ]
    assert (row["looked_at"], row["messages"]) == (4, 4)
    assert "the first 2 of 4" in done.stdout


def test_without_the_management_api_queues_are_named(dlq: Dlq) -> None:
    dlq.bury(1)

    named = dlq("ls", DEAD, management="http://127.0.0.1:1")
    all_of_them = dlq("ls", management="http://127.0.0.1:1")
    service = dlq("ls", "enrich", management="http://127.0.0.1:1")

    assert (named.returncode, DEAD in named.stdout) == (0, True)
    for done in (all_of_them, service):
        assert done.returncode == 1
        assert "does not answer" in done.stderr
        assert "rabbitmq-plugins enable rabbitmq_management" in done.stderr
        assert "name the queues" in done.stderr


def test_one_is_shown_with_payload_headers_and_traceback(dlq: Dlq) -> None:
    dlq.bury("first")
    dlq.bury('{"tail": "N14228", "fare": 1.5}', message_id="m-2", headers=fate(trace_id="4bf9"))

    by_place, by_id = dlq("show", DEAD, "2"), dlq("show", "enrich", "--id", "m-2")
    shown = dlq.json("show", DEAD, "2")

    for done in (by_place, by_id):
        assert (done.returncode, done.stderr) == (0, "")
        for text in (
            '"tail": "N14228"',
            "KeyError: 'who'",
            "Traceback: ",
            "m-2",
            "4bf9",
            "feed.events",
        ):
            assert text in done.stdout
    assert shown["payload"] == {"tail": "N14228", "fare": 1.5}
    assert (shown["position"], shown["attempts"], shown["queue"]) == (2, 5, HANDLER_QUEUE)
    assert shown["headers"]["x-mycelia-reason"] == "handler_error"
    assert dlq("show", DEAD, "3").returncode == 1
    assert "no message number 3" in dlq("show", DEAD, "3").stderr


def test_nothing_shown_steers_the_terminal(dlq: Dlq) -> None:
    evil = "\x1b]0;owned\x07\x9b31m\u202e"
    dlq.bury(evil, headers=fate(error=evil, traceback=f"a\n{evil}", method=evil))

    for argv in (["show", DEAD], ["ls", DEAD, "--group"], ["show", DEAD, "--json"]):
        done = dlq(*argv)
        assert done.returncode == 0, done.stderr
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(done.stdout)


def test_parts_are_set_and_the_message_is_sent(dlq: Dlq) -> None:
    dlq.declare(HANDLER)
    dlq.bury('{"flight": {"seats": [1, 2]}, "at": {"__type__": "date", "__value__": "2024-05-06"}}')
    dlq.bury(2)

    done = dlq("edit", DEAD, "--set", "flight.seats.1=7", "--set", 'who="Ada"', "--unattended")

    assert (done.returncode, done.stderr) == (0, "")
    assert HANDLER_QUEUE in done.stdout
    assert [json.loads(body) for body in dlq.bodies_in(HANDLER_QUEUE)] == [
        {
            "flight": {"seats": [1, 7]},
            "at": {"__type__": "date", "__value__": "2024-05-06"},
            "who": "Ada",
        }
    ]
    assert dlq.bodies_in(DEAD) == ["2"]


def test_editor_changes_the_payload(dlq: Dlq, tmp_path: Path) -> None:
    dlq.declare(HANDLER)
    dlq.bury('{"n": 1}')
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsed -i "s/1/22/" "$1"\n')
    editor.chmod(0o755)

    unchanged = dlq("edit", DEAD, "--unattended", EDITOR="true")
    failed = dlq("edit", DEAD, "--unattended", EDITOR="false")
    gone = dlq("edit", DEAD)
    assert (unchanged.returncode, failed.returncode, gone.returncode) == (1, 2, 1)
    assert "nothing was changed" in unchanged.stderr
    assert "nobody consumes from its queue" in gone.stderr
    assert dlq("edit", DEAD, "--unattended", EDITOR=str(editor)).returncode == 0

    assert dlq.bodies_in(HANDLER_QUEUE) == ['{"n":22}']
    assert dlq.bodies_in(DEAD) == []


def test_redrive_tells_what_it_does_and_what_stays(dlq: Dlq) -> None:
    dlq.declare(HANDLER)
    dlq.bury(1, 2)
    dlq.bury(3, headers=fate(queue="gone"))

    dry = dlq("redrive", DEAD, "--unattended", "--dry-run")
    done = dlq("redrive", "enrich", "--unattended")

    assert (dry.returncode, done.returncode) == (1, 1)
    assert "2 would be sent, 3 of 3 looked at" in dry.stdout
    assert "2 sent, 3 of 3 looked at" in done.stdout
    assert 'queue "gone"' in done.stderr
    assert "--to QUEUE" in done.stderr
    assert dlq.bodies_in(HANDLER_QUEUE) == ["1", "2"]
    (report,) = json.loads(dlq("redrive", DEAD, "--to", HANDLER_QUEUE, "--json").stdout)
    assert (report["done"], report["stranded"], report["error"]) == (1, [], None)
    assert dlq.bodies_in(HANDLER_QUEUE) == ["3"]


def test_purge_asks_first(dlq: Dlq) -> None:
    dlq.bury(1)
    dlq.bury(2, headers=fate(failed_at_ms=4_000_000_000_000))

    asked = dlq("purge", DEAD)
    done = dlq("purge", DEAD, "--older-than", "1d", "--yes")

    assert (asked.returncode, done.returncode) == (2, 0)
    assert "say --yes" in asked.stderr
    assert "1 thrown away, 2 of 2 looked at" in done.stdout
    assert dlq.bodies_in(DEAD) == ["2"]


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["show", "nowhere"], 1, 'there is no queue "nowhere.dead"'),
        (["redrive", DEAD, "--rate", "0"], 2, "expected messages a second"),
        (["redrive", DEAD, "--older-than", "soon"], 2, "is no duration"),
        (["redrive", DEAD, "--to", "a", "--to-exchange"], 2, "not allowed with"),
        (["redrive", DEAD, "--to", "nowhere"], 1, "nowhere"),
        (["edit", DEAD, "--set", "name=Ada"], 2, "expected PATH=JSON"),
        (["edit", DEAD, "--set", "a.b=1"], 2, "what"),
        (["edit", DEAD, "--body", "{"], 2, "not JSON"),
        (["show", DEAD, "0"], 2, "at least 1"),
    ],
)
def test_mistakes_are_told(dlq: Dlq, argv: list[str], status: int, message: str) -> None:
    dlq.declare(HANDLER)
    dlq.bury(1)
    extra = ["--unattended"] if argv[:1] == ["edit"] else []

    done = dlq(*argv, *extra)

    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert dlq.bodies_in(DEAD) == ["1"]


def test_password_is_not_shown(dlq: Dlq) -> None:
    done = dlq("ls", management="http://someone:s3cret@127.0.0.1:1")

    assert done.returncode == 1
    assert "s3cret" not in done.stderr


def test_ctrl_c_leaves_the_rest_where_it_was(dlq: Dlq, tmp_path: Path, rabbit_uri: str) -> None:
    count = 400
    dlq.declare(HANDLER)
    dlq.bury(*range(count))

    command = (*MYCELIA, "dlq", "redrive", DEAD, "--unattended", "--rate", "40")
    with Process(*command, cwd=tmp_path, AMQP_URI=rabbit_uri) as process:
        process.wait_for("looked at")  # its progress, after 5 s
        process.send(signal.SIGINT)
        status = process.finish()

    sent, left = dlq.bodies_in(HANDLER_QUEUE), dlq.bodies_in(DEAD)
    assert status == 130
    assert 0 < len(sent) < count
    assert [*sent, *left] == [str(n) for n in range(count)]
