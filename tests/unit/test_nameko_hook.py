"""What the hook at the start of `nameko run` tells from arguments, scripts, configurations and sources."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.cli.hook_sources import CERTAIN, FILES, OURS, write_sources

import mycelia
import mycelia_nameko_hook as hook

# --- the command ---------------------------------------------------------------------------------

PIP = """#!/srv/venv/bin/python
# -*- coding: utf-8 -*-
import re
import sys
from nameko.cli.main import main
if __name__ == '__main__':
    sys.argv[0] = re.sub(r'(-script\\.pyw|\\.exe)?$', '', sys.argv[0])
    sys.exit(main())
"""
LONG_PATH = PIP.replace(
    "#!/srv/venv/bin/python\n", "#!/bin/sh\n'''exec' /srv/venv/bin/python \"$0\" \"$@\"\n' '''\n"
)
UV = """#!/srv/venv/bin/python
# -*- coding: utf-8 -*-
import sys
from nameko.cli.main import main
if __name__ == "__main__":
    if sys.argv[0].endswith("-script.pyw"):
        sys.argv[0] = sys.argv[0][:-11]
    elif sys.argv[0].endswith(".exe"):
        sys.argv[0] = sys.argv[0][:-4]
    sys.exit(main())
"""
NAMEKO_3 = PIP.replace("nameko.cli.main import main", "nameko.cli import cli")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (PIP, True),
        (LONG_PATH, True),
        (UV, True),
        (NAMEKO_3, False),
        (PIP.replace("import re\n", "import os\nos.environ['A'] = '1'\n"), False),
        (PIP.replace("import re\n", "prepare = 1\n"), False),
        (PIP.replace("import sys\n", "import sys, prepared\n"), False),
        (PIP.replace("import main\n", "import main as nameko\n"), True),
        ("import sys\nif True: pass\n", False),
        ("not Python", False),
        ("", False),
    ],
)
def test_only_the_script_of_an_installer_is_nameko_s_own(
    tmp_path: Path, script: str, expected: bool
) -> None:
    path = tmp_path / "nameko"
    path.write_text(script)
    argv = [str(path), "run", "hello"]

    try:
        found = hook.is_nameko_run(argv, ["python", "-u", *argv])
    except SyntaxError:
        found = False
    assert found is expected


def test_other_commands_are_not_nameko_run(tmp_path: Path) -> None:
    path = tmp_path / "nameko"
    path.write_text(PIP)
    other = tmp_path / "flask"
    other.write_text(PIP)

    for argv in ([str(path), "shell"], [str(path)], [str(other), "run", "hello"], [""], []):
        assert not hook.is_nameko_run(argv, ["python", *argv])
    # a debugger that runs the script has other words
    assert not hook.is_nameko_run([str(path), "run", "a"], ["python", "-m", "pdb", str(path)])


def test_module_nameko_is_recognised_by_what_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nameko", raising=False)
    argv = ["-m", "run", "hello"]

    assert hook.is_nameko_run(argv, ["python", "-u", "-m", "nameko", "run", "hello"])
    assert hook.is_nameko_run(argv, ["python", "-um", "nameko", "run", "hello"])
    assert not hook.is_nameko_run(argv, ["python", "-m", "flask", "run", "hello"])
    assert not hook.is_nameko_run(["-m", "run"], ["python", "-m", "coverage", "run"])

    (tmp_path / "nameko").mkdir()  # somebody's own, which comes first
    (tmp_path / "nameko" / "__init__.py").write_text("")
    (tmp_path / "nameko" / "__main__.py").write_text("from nameko.cli import cli\ncli()\n")
    assert not hook.is_nameko_run(argv, ["python", "-m", "nameko", "run", "hello"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("hello", (["hello"], "")),
        ("a b:C", (["a", "b:C"], "")),
        ("--config c.yaml a b", (["a", "b"], "c.yaml")),
        ("a b --config c.yaml", (["a", "b"], "c.yaml")),
        ("--config=c.yaml --broker=x --backdoor-port=3000 a", (["a"], "c.yaml")),
        ("--broker amqp://h --backdoor-port 3000 a", (["a"], "")),
        ("--config one --config two a", (["a"], "two")),
        # only argparse knows what it makes of these
        ("a --config c.yaml b", None),
        ("--conf c.yaml a", None),
        ("--unknown a", None),
        ("-h", None),
        ("-- a", None),
        ("a --config", None),
        ("--config --broker x a", None),
        ("--backdoor-port three a", None),
        ("--config c.yaml", None),
        ("", None),
    ],
)
def test_arguments(words: str, expected: object) -> None:
    assert hook.read_arguments(words.split()) == expected


# --- the configuration ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SERVICE_CONTAINER_CLS: mycelia.Container", True),
        ("A: 1\n'SERVICE_CONTAINER_CLS': \"mycelia.Container\"  # ours\nB: ${C:d}\n", True),
        ("{SERVICE_CONTAINER_CLS: mycelia.runtime.Container}", True),
        ("A: !env_var '${B}'\nSERVICE_CONTAINER_CLS: mycelia.Container", True),
        ("SERVICE_CONTAINER_CLS: nameko.containers.ServiceContainer\n# mycelia", False),
        ("SERVICE_CONTAINER_CLS: myceliax.Container", False),
        ("# SERVICE_CONTAINER_CLS: mycelia.Container", False),
        ("A:\n  SERVICE_CONTAINER_CLS: mycelia.Container", False),
        ("A: {\nSERVICE_CONTAINER_CLS: mycelia.Container\n }", False),
        ("A: 'x\nSERVICE_CONTAINER_CLS: mycelia.Container\n '", False),
        ("A: |\n  x\n  SERVICE_CONTAINER_CLS: mycelia.Container", False),
        ("SERVICE_CONTAINER_CLS: mycelia.Container\nSERVICE_CONTAINER_CLS: x.Y", False),
        ("SERVICE_CONTAINER_CLS: [mycelia.Container]", False),
        ("SERVICE_CONTAINER_CLS: ${CLS:mycelia.Container}", False),  # Nameko asks the environment
        ("- SERVICE_CONTAINER_CLS: mycelia.Container", False),
        ("", False),
    ],
)
def test_configuration(text: str, expected: bool) -> None:
    assert hook.names_our_container(text.encode()) is expected


# --- the services --------------------------------------------------------------------------------

UNCERTAIN = [
    "ours:Other",
    "two_classes:Service",
    "package:Other",
    "package.stock",
    "package.missing",
    "plain",
    "circle",
    *[name for name in FILES if name.startswith(("stock", "rebound", "imp", "in_", "of_", "no", "too"))],
    "colorsys",
    "missing",
    "os",
    "ours.py",
    "package/services",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("services"))


@pytest.mark.parametrize("services", CERTAIN)
def test_services_of_mycelia_s_are_told_by_their_source(
    folder: Path, monkeypatch: pytest.MonkeyPatch, services: str
) -> None:
    monkeypatch.chdir(folder)

    assert hook.are_ours(["--broker", "memory://", *services.split()])


@pytest.mark.parametrize("services", UNCERTAIN)
def test_what_cannot_be_told_is_left_to_nameko(
    folder: Path, monkeypatch: pytest.MonkeyPatch, services: str
) -> None:
    monkeypatch.chdir(folder)

    assert not hook.are_ours(["--broker", "memory://", *services.split()])


def test_reading_a_service_runs_none_of_it_and_warns_of_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loud.py").write_text(f"{OURS}\nX = '\\d' is 1\nraise SystemExit\n")
    monkeypatch.chdir(tmp_path)

    assert hook.are_ours(["loud"])
    assert "loud" not in sys.modules


def test_look_passes_over_whatever_is_wrong(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    (folder / "nameko").write_text(PIP)
    for words in (["broken"], ["--config", "not there", "ours"], ["--config", "ours.py", "ours"]):
        argv = [str(folder / "nameko"), "run", *words]
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(sys, "orig_argv", ["python", *argv])
        monkeypatch.setattr(hook, "_has_looked", False)
        hook.look()
    monkeypatch.delattr(sys, "argv")
    monkeypatch.setattr(hook, "_has_looked", False)
    hook.look()

    assert capsys.readouterr() == ("", "")


@given(st.binary(max_size=200), st.lists(st.text(max_size=10), max_size=4))
def test_only_ordinary_errors_come_of_garbage(config: bytes, words: list[str]) -> None:
    hook.read_arguments(words)
    with contextlib.suppress(Exception):  # which look() takes
        hook.names_our_container(b"SERVICE_CONTAINER_CLS: mycelia\n" + config)


def test_table_of_entrypoints_is_that_of_the_package() -> None:
    """Those that Nameko's command finds: it looks for a mark that their declarations leave on the method."""
    made_alike = mycelia.rpc.__code__  # type: ignore[attr-defined]  # a function, whatever its type says
    found = {
        name
        for name in mycelia.__all__
        if getattr(getattr(mycelia, name), "__code__", None) is made_alike
    }

    assert found == hook.ENTRYPOINTS
