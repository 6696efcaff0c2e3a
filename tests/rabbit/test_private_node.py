"""The private broker that the suite, `mycelia broker` and `make demo` start."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pika
import pytest
from tests.tools import write_out_declarations

from mycelia.broker import find_or_start_broker
from mycelia.broker.management_api import ManagementApi, ManagementApiError
from mycelia.broker.node import PrivateNode, RabbitInstallation, probe_amqp
from mycelia.broker.private_files import private_directory, write_private
from mycelia.control.dead_letters import management_of
from mycelia.errors import BrokerUnavailable, ConfigError


def _open(uri: str) -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(uri))


def test_fresh_vhost_takes_a_message(rabbit_uri: str) -> None:
    with _open(rabbit_uri) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("q", durable=True, arguments={"x-queue-type": "quorum"})
        channel.basic_publish("", "q", b"hello", mandatory=True)

        method, _, body = channel.basic_get("q", auto_ack=True)

    assert method is not None
    assert body == b"hello"


def test_api_closes_connections_of_one_vhost(
    rabbit_uri: str, rabbit_vhost: str, rabbit_api: ManagementApi
) -> None:
    with _open(rabbit_uri) as connection:
        while not rabbit_api.connections(rabbit_vhost):  # bounded by the test's timeout
            connection.process_data_events(time_limit=0.05)

        assert rabbit_api.close_connections(rabbit_vhost, "on purpose") == 1

        with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="on purpose"):
            connection.process_data_events(time_limit=5)


def test_deleted_vhost_is_gone_and_deleting_again_is_no_error(rabbit_node: PrivateNode) -> None:
    rabbit_node.create_vhost("a/b c")
    rabbit_node.delete_vhost("a/b c")
    rabbit_node.delete_vhost("a/b c")

    with pytest.raises(ManagementApiError, match="404"):
        rabbit_node.api.queues("a/b c")


def test_api_knows_no_queue_that_was_never_declared(
    rabbit_vhost: str, rabbit_api: ManagementApi
) -> None:
    assert rabbit_api.queue(rabbit_vhost, "nothing") is None


def test_killed_node_comes_back_on_the_same_port_with_its_messages(
    own_rabbit_node: PrivateNode,
) -> None:
    uri = own_rabbit_node.uri()
    with _open(uri) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        # A classic queue, because a quorum queue does not outlive a kill right after its declaration: see kill().
        channel.queue_declare("kept", durable=True, arguments={"x-queue-type": "classic"})
        persistent = pika.BasicProperties(delivery_mode=2)
        channel.basic_publish("", "kept", b"survivor", persistent, mandatory=True)
    write_out_declarations(own_rabbit_node)
    own_rabbit_node.kill()
    assert probe_amqp("127.0.0.1", own_rabbit_node.port) is None

    own_rabbit_node.start(leash=True)

    assert own_rabbit_node.uri() == uri
    with _open(uri) as connection:
        method, _, body = connection.channel().basic_get("kept")
        assert method is not None
        assert body == b"survivor"


def test_running_node_is_found_again_and_another_port_is_refused(
    rabbit_node: PrivateNode,
) -> None:
    same = PrivateNode(rabbit_node.directory)
    same.start()

    assert same.status() == rabbit_node.status()
    with pytest.raises(ConfigError, match="already runs on port"):
        PrivateNode(rabbit_node.directory, port=rabbit_node.port + 1).start()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")
def test_node_listens_on_one_loopback_address_only(rabbit_node: PrivateNode) -> None:
    identity = json.loads((rabbit_node.directory / "node.json").read_text())
    ports = [port for key, port in identity.items() if key != "name" and key != "epmd_port"]
    assert len(ports) == 3

    for port in ports:
        socket.create_connection(("127.0.0.1", port), 5).close()
        with pytest.raises(
            ConnectionRefusedError
        ):  # which a listener on all interfaces would not do
            socket.create_connection(("127.0.0.2", port), 5)


def test_all_of_a_node_belongs_to_its_user_alone(tmp_path: Path) -> None:
    state = tmp_path / ".mycelia"
    (state / "broker").mkdir(parents=True)  # as open as a release before this one made them
    old = os.umask(0o022)
    node = PrivateNode(state / "broker")
    try:
        node.start(leash=True)
        node.ctl("status")
        with _open(node.uri()) as connection:
            connection.channel().queue_declare("q", durable=True)
    finally:
        os.umask(old)
        node.kill()

    modes = {
        str(path.relative_to(state)): stat.S_IMODE(path.lstat().st_mode)
        for path in (state, *state.rglob("*"))
    }
    node.remove()
    assert len(modes) > 20
    assert modes.pop("broker/.erlang.cookie") == 0o400
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}


def test_state_directory_that_was_open_is_closed(tmp_path: Path) -> None:
    inner = tmp_path / ".mycelia" / "deep" / "broker"
    inner.mkdir(parents=True)
    private_directory(inner.parent)
    private_directory(inner / "log")

    closed = [tmp_path / ".mycelia", inner.parent, inner / "log"]
    assert [stat.S_IMODE(one.stat().st_mode) for one in closed] == [0o700] * 3
    write_private(inner / "secret", "x", mode=0o400)
    write_private(inner / "secret", "y", mode=0o400)
    assert (inner / "secret").read_text() == "y"
    assert stat.S_IMODE((inner / "secret").stat().st_mode) == 0o400


def test_rabbitmqctl_reaches_the_node(rabbit_node: PrivateNode, rabbit_vhost: str) -> None:
    assert rabbit_vhost in rabbit_node.ctl("list_vhosts")

    with pytest.raises(BrokerUnavailable, match="no_such_command"):
        rabbit_node.ctl("no_such_command")


def test_taken_port_is_refused_in_words(rabbit_node: PrivateNode, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"port {rabbit_node.port} on 127.0.0.1 is taken"):
        PrivateNode(tmp_path, port=rabbit_node.port).start()


@pytest.mark.long
@pytest.mark.parametrize("which", ["management_port", "distribution_port"])
def test_port_that_is_taken_after_its_choice_is_followed_by_another(
    rabbit_node: PrivateNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    node = PrivateNode(tmp_path)
    launch, stolen = node._launch, list[int]()
    with socket.socket() as thief:

        def launch_too_late(installation: RabbitInstallation, identity: Any) -> None:
            if not stolen:
                stolen.append(getattr(identity, which))
                thief.bind(("127.0.0.1", stolen[0]))
                thief.listen()
            launch(installation, identity)

        monkeypatch.setattr(node, "_launch", launch_too_late)
        try:
            node.start(leash=True)

            assert getattr(node._known_identity(), which) != stolen[0]
            assert probe_amqp("127.0.0.1", node.port)
        finally:
            node.remove()


@pytest.mark.long
def test_port_that_was_taken_for_a_moment_is_tried_again(
    rabbit_node: PrivateNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when two nodes choose at the same time, or a connection goes out from it: the port is free again when one looks."""
    node = PrivateNode(tmp_path)
    launch, kill, starts = node._launch, node.kill, list[int]()
    with socket.socket() as thief:

        def launch_too_late(installation: RabbitInstallation, identity: Any) -> None:
            if not starts:
                thief.bind(("127.0.0.1", identity.port))
                thief.listen()
            launch(installation, identity)
            starts.append(identity.port)

        def kill_and_let_go() -> None:
            kill()
            if starts:  # and not before the first, which kills as well
                thief.close()

        monkeypatch.setattr(node, "_launch", launch_too_late)
        monkeypatch.setattr(node, "kill", kill_and_let_go)
        try:
            node.start(leash=True)

            assert len(starts) == 2
            assert probe_amqp("127.0.0.1", node.port)
        finally:
            node.remove()


def test_node_that_cannot_start_shows_the_end_of_its_log_and_leaves_nothing_running(
    rabbit_node: PrivateNode, tmp_path: Path
) -> None:
    node = PrivateNode(tmp_path, config=["no_such_setting = 1"])

    with pytest.raises(BrokerUnavailable, match=r"(?s)ended while starting.*no_such_setting"):
        node.start()

    assert not node.status().running


def test_named_broker_is_used_and_left_running(rabbit_node: PrivateNode, tmp_path: Path) -> None:
    found = find_or_start_broker(tmp_path, environment={"AMQP_URI": rabbit_node.uri()})
    found.stop_if_started()

    assert found.uri == rabbit_node.uri()
    assert rabbit_node.status().running
    assert not list(tmp_path.iterdir())


def test_named_broker_that_does_not_answer_is_an_error_without_its_password(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # taken, and nobody listens
        uri = f"amqp://someone:secret@127.0.0.1:{silent.getsockname()[1]}/there"

        with pytest.raises(BrokerUnavailable, match="no broker answers") as caught:
            find_or_start_broker(tmp_path, environment={"AMQP_URI": uri})

    assert "secret" not in str(caught.value)


def test_running_private_node_is_used_again_and_left_running(rabbit_node: PrivateNode) -> None:
    lines: list[str] = []

    found = find_or_start_broker(rabbit_node.directory, say=lines.append, environment={})
    found.stop_if_started()

    assert found.uri == rabbit_node.uri()
    assert lines == []
    assert rabbit_node.status().running


@pytest.mark.long
def test_leashed_node_dies_with_the_process_that_started_it(
    own_rabbit_node: PrivateNode,
) -> None:
    own_rabbit_node.stop()
    starter = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from mycelia.broker.node import PrivateNode\n"
            "PrivateNode(Path(sys.argv[1])).start(leash=True); print('up', flush=True); sys.stdin.read()",
            str(own_rabbit_node.directory),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": "platform"},
    )
    with starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == b"up\n"
        assert own_rabbit_node.status().running

        starter.kill()

    while own_rabbit_node.status().running:  # bounded by the test's timeout
        pass
    assert probe_amqp("127.0.0.1", own_rabbit_node.port) is None


def test_management_of_the_private_node_of_a_directory_is_found_by_its_uri(
    own_rabbit_node: PrivateNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".mycelia").mkdir()
    (tmp_path / ".mycelia" / "broker").symlink_to(own_rabbit_node.directory)
    monkeypatch.chdir(tmp_path)

    assert management_of(own_rabbit_node.uri()).port == own_rabbit_node.management_port
    with closing(management_of(own_rabbit_node.uri())) as api:
        assert api.version() == own_rabbit_node.status().version
    assert management_of("amqp://guest:guest@127.0.0.1:5672/").port == 15672
    assert management_of(own_rabbit_node.uri(), "http://localhost:15673").port == 15673
