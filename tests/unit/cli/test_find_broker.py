"""Which broker is used when several ways lead to one. `tests/rabbit/test_private_node.py` has the private node itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from mycelia.broker import debian_packages, find_or_start_broker
from mycelia.broker.node import PrivateNode, find_rabbitmq
from mycelia.cli.main import main
from mycelia.errors import ConfigError


@pytest.fixture
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No RabbitMQ, no apt-get, no Docker: an empty folder is all of PATH and the working directory."""
    monkeypatch.setenv("MYCELIA_RABBITMQ_SCRIPTS", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _put_command(folder: Path, name: str, script: str) -> None:
    command = folder / name
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)


def test_without_any_broker_the_three_ways_out_are_told(nothing_installed: Path) -> None:
    assert find_rabbitmq() is None
    assert not debian_packages.may_install()

    with pytest.raises(ConfigError, match=r"(?s)set AMQP_URI.*install RabbitMQ.*start Docker"):
        find_or_start_broker(environment={})


def test_uri_of_another_protocol_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='not "redis://"'):
        find_or_start_broker(tmp_path, environment={"AMQP_URI": "redis://localhost/"})


def test_sudo_that_asks_for_a_password_does_not_count(
    nothing_installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    _put_command(nothing_installed, "apt-get", "exit 0")
    _put_command(nothing_installed, "sudo", "exit 1")
    assert not debian_packages.may_install()

    _put_command(nothing_installed, "sudo", "exit 0")
    assert debian_packages.may_install()


def test_nothing_is_installed_unasked(
    nothing_installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    _put_command(nothing_installed, "apt-get", "exit 0")
    _put_command(
        nothing_installed, "sudo", f'[ "$2" = true ] || echo "$@" >>{nothing_installed}/calls'
    )

    with pytest.raises(ConfigError, match="add --install to the command"):
        find_or_start_broker(nothing_installed / "broker", environment={})
    assert main(["broker", "start", "--directory", "broker"]) == 1
    assert "RabbitMQ is not installed: " in (said := capsys.readouterr().err)
    assert "add --install to the command" in said
    assert not (nothing_installed / "calls").exists()

    assert main(["broker", "start", "--directory", "broker", "--install"]) == 1
    assert "install rabbitmq-server" in (nothing_installed / "calls").read_text()
    assert "installing rabbitmq-server with apt-get" in capsys.readouterr().err


def test_failed_installation_is_told_with_its_log(
    nothing_installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    _put_command(nothing_installed, "apt-get", "exit 0")
    _put_command(nothing_installed, "sudo", '[ "$2" = true ] || { echo no network; exit 100; }')
    lines: list[str] = []

    with pytest.raises(ConfigError, match="no broker"):
        find_or_start_broker(
            nothing_installed / "broker", install=True, say=lines.append, environment={}
        )

    log = nothing_installed / "apt.log"
    assert log.read_text() == "no network\n"
    assert len(lines) == 2
    assert all(str(log) in line for line in lines)


def test_broker_in_docker_is_used_where_rabbitmq_is_not_installed(
    rabbit_node: PrivateNode, nothing_installed: Path
) -> None:
    (nothing_installed / "compose").mkdir()
    (nothing_installed / "compose" / "compose.yaml").touch()
    # Stands in for the engine: its "container" is the suite's own broker.
    _put_command(
        nothing_installed,
        "docker",
        f'echo "$@" >>calls; case "$*" in *"port broker 5672") echo 127.0.0.1:{rabbit_node.port};; esac',
    )

    found = find_or_start_broker(environment={}, say=lambda _: None)

    assert found.uri == rabbit_node.uri()
    assert str(found).endswith("(Docker)")
    calls = (nothing_installed / "calls").read_text().splitlines()
    assert "compose --file compose/compose.yaml up --detach broker" in calls


def test_engine_that_does_not_answer_is_no_docker(nothing_installed: Path) -> None:
    (nothing_installed / "compose").mkdir()
    (nothing_installed / "compose" / "compose.yaml").touch()
    _put_command(nothing_installed, "docker", '[ "$1" != info ]')

    with pytest.raises(ConfigError, match="no Docker engine answers"):
        find_or_start_broker(environment={})
