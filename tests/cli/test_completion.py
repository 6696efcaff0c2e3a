"""Completion scripts: valid shell, and complete what the command has."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.commands import MyceliaCommand
from tests.tools import require_tool

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
        'function=$(complete -p mycelia | sed -n "s/.*-F \\([^ ]*\\).*/\\1/p")\n'
        '$function\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
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
        (["mycelia", "nameko-hook", ""], ["install", "remove", "status"]),
        (["mycelia", "call", "--time"], ["--timeout"]),
        (["mycelia", "publish", "--man"], ["--mandatory"]),
        (["mycelia", "run", "--back"], ["--backdoor-port"]),
        (["mycelia", "completion", ""], ["bash", "fish", "zsh"]),
        (["mycelia", "completion", "z"], ["zsh"]),
        (["mycelia", "--vers"], ["--version"]),
        (["mycelia", "call", "greeter.add", "1", "--br"], ["--broker"]),
    ],
)
def test_bash_completes(bash_script: Path, words: list[str], offered: list[str]) -> None:
    assert sorted(complete(bash_script, *words)) == sorted(offered)


def commands_of(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ("mycelia",)
) -> Iterator[tuple[tuple[str, ...], set[str], set[str]]]:
    """Each command with the options and the sub-commands that may follow it."""
    options, names = set(), set()
    for action in parser._actions:
        options.update(word for word in action.option_strings if word.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            names.update(action.choices)
            for name, child in action.choices.items():
                yield from commands_of(child, (*path, name))
    yield path, options, names


def test_bash_completes_every_word_of_every_command(bash_script: Path) -> None:
    found = list(commands_of(build_parser()))

    assert len(found) > 8
    for path, options, names in found:
        assert set(complete(bash_script, *path, "--")) == options, path
        if names:
            assert set(complete(bash_script, *path, "")) == names, path


def test_bash_completes_files_where_it_knows_nothing(bash_script: Path) -> None:
    """Its own completion, which a script cannot ask, takes over where ours has nothing."""
    assert "complete -o bashdefault" in bash_script.read_text()
    assert complete(bash_script, "mycelia", "run", "two", "--config", "mycelia.b") == []


def test_value_of_an_option_is_not_taken_for_a_command(bash_script: Path) -> None:
    offered = complete(bash_script, "mycelia", "run", "call", "--back")

    assert offered == ["--backdoor-port"]


@pytest.mark.parametrize(
    ("shell", "asks", "answer"),
    [
        ("bash", """eval "$(cat script)"; complete -p mycelia""", "-F _shtab_mycelia mycelia"),
        (
            "zsh",
            """autoload -U compinit && compinit -D; eval "$(cat script)"; echo ${_comps[mycelia]}""",
            "_shtab_mycelia",
        ),
        (
            "fish",
            """cat script | source; complete -C "mycelia ca" """,
            "call\tCall a method and print its result as JSON.",
        ),
    ],
)
def test_script_is_taken_as_the_help_says(
    mycelia: MyceliaCommand, tmp_path: Path, shell: str, asks: str, answer: str
) -> None:
    done = mycelia("completion", shell, cwd=tmp_path)
    (tmp_path / "script").write_text(done.stdout)
    plain = {"bash": "--norc", "zsh": "-f", "fish": "-N"}[shell]

    asked = subprocess.run(
        [require_tool(shell), plain, "-c", asks],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )

    assert (done.returncode, asked.stderr) == (0, "")
    assert answer in asked.stdout


def test_unknown_shell_is_a_wrong_command(mycelia: MyceliaCommand, tmp_path: Path) -> None:
    done = mycelia("completion", "tcsh", cwd=tmp_path)

    assert done.returncode == 2
    assert "invalid choice: 'tcsh'" in done.stderr
