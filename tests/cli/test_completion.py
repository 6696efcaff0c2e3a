"""Completion scripts: valid shell, and complete what the command has."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.cli.commands import MyceliaCommand
from tests.tools import require_tool

from mycelia.cli.completion import words_of
from mycelia.cli.main import build_parser


@pytest.fixture(scope="module")
def bash_script(mycelia: MyceliaCommand, tmp_path_factory: pytest.TempPathFactory) -> Path:
    done = mycelia("completion", "bash", cwd=Path.cwd())
    assert (done.returncode, done.stderr) == (0, "")
    file = tmp_path_factory.mktemp("completion") / "mycelia.bash"
    file.write_text(done.stdout)
    return file


def complete(script: Path, *words: str) -> list[str]:
    """What bash offers for the last of `words`."""
    commands = (
        f'source "{script}"\nCOMP_WORDS=("$@")\nCOMP_CWORD=$(($# - 1))\n'
        '_mycelia\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        [require_tool("bash"), "--norc", "-c", commands, "bash", *words],
        cwd=script.parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_script_is_valid(bash_script: Path) -> None:
    subprocess.run([require_tool("bash"), "-n", str(bash_script)], check=True, timeout=20)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["mycelia", "ca"], ["call"]),
        (["mycelia", "comp"], ["completion"]),
        (["mycelia", "call", "--time"], ["--timeout"]),
        (["mycelia", "publish", "--man"], ["--mandatory"]),
        (["mycelia", "run", "--back"], ["--backdoor-port"]),
        (["mycelia", "completion", ""], ["--help", "bash", "fish", "zsh"]),
        (["mycelia", "completion", "z"], ["zsh"]),
        (["mycelia", "--vers"], ["--version"]),
        (["mycelia", "call", "greeter.add", "1", "--br"], ["--broker"]),
        (["mycelia", "run", "two", "--config", "mycelia.b"], ["mycelia.bash"]),
    ],
)
def test_bash_completes(bash_script: Path, words: list[str], offered: list[str]) -> None:
    assert sorted(complete(bash_script, *words)) == sorted(offered)


def test_bash_completes_every_word_of_every_command(bash_script: Path) -> None:
    for path, words in words_of(build_parser()).items():
        offered = complete(bash_script, "mycelia", *path.split(), "")
        assert set(offered) == set(words), path


def test_value_of_an_option_is_not_taken_for_a_command(bash_script: Path) -> None:
    offered = complete(bash_script, "mycelia", "run", "call", "--back")

    assert offered == ["--backdoor-port"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_script_for_another_shell_is_valid_there(
    mycelia: MyceliaCommand, tmp_path: Path, shell: str
) -> None:
    done = mycelia("completion", shell, cwd=tmp_path)
    assert done.returncode == 0
    assert "mycelia" in done.stdout
    for word in ("call", "publish", "completion"):
        assert word in done.stdout
    (tmp_path / "script").write_text(done.stdout)

    checked = subprocess.run(
        [require_tool(shell), "-n", "script"], cwd=tmp_path, check=False, timeout=20
    )

    assert checked.returncode == 0


def test_unknown_shell_is_a_wrong_command(mycelia: MyceliaCommand, tmp_path: Path) -> None:
    done = mycelia("completion", "tcsh", cwd=tmp_path)

    assert done.returncode == 2
    assert "invalid choice: 'tcsh'" in done.stderr
