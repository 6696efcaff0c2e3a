"""`mycelia nameko-hook`: what it writes and takes away, and that `nameko run` then hands over before Nameko is imported.

Whether it has is told by which interpreters came past the hook: only the native one, or Nameko's and then the native one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import timeit
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.hook_sources import CERTAIN, write_sources
from tests.cli.hooked import Environment
from tests.processes import Process, run
from tests.tools import not_run, require_tool

from mycelia.cli.nameko_hook import HOOK

SERVICE = """
import sys
{imports}


class Service:
    name = "service"

    @rpc
    def method(self): pass


print("imported:", sys.flags.optimize, sys.flags.utf8_mode, sys.warnoptions, sys.stdout.write_through, flush=True)
"""
OURS = SERVICE.format(imports="from mycelia import rpc")
STOCK = SERVICE.format(imports="from nameko.rpc import rpc")

FILES = {
    "ours.py": OURS,
    "stock.py": STOCK,
    "after_others.py": SERVICE.format(
        imports="import yaml\nimport shared\nfrom mycelia import rpc"
    ),
    "shared.py": "from mycelia import errors\n",
    "in_branch.py": SERVICE.format(imports="if True:\n    from mycelia import rpc"),
    "package/__init__.py": "from .services import Service\n",
    "package/services.py": OURS,
    "ours.yaml": "AMQP_URI: memory://\nSERVICE_CONTAINER_CLS: mycelia.Container\n",
    "asked.yaml": "AMQP_URI: memory://\nSERVICE_CONTAINER_CLS: ${CONTAINER:mycelia.Container}\n",
    "stock.yaml": "AMQP_URI: memory://\n",
    "own/nameko": "import os, sys\nos.environ['PREPARED'] = 'yes'\nfrom nameko.cli.main import main\nmain()\n",
    "fails.py": f"import module_that_is_not_there\n{STOCK}",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("services")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def fresh(tmp_path: Path) -> Environment:
    """An environment nobody has touched."""
    return Environment(tmp_path / "venv")


@pytest.fixture(scope="module")
def hooked(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """One with the hook."""
    made = Environment(tmp_path_factory.mktemp("hooked") / "venv")
    done = made.command("install")
    assert done.returncode == 0, done.stderr
    return made


@contextlib.contextmanager
def running(environment: Environment, folder: Path, *command: str) -> Iterator[Process]:
    environment.starts()
    with Process(*command, cwd=folder, env=environment.variables) as process:
        yield process


# --- the command -------------------------------------------------------------------------------------


def test_it_writes_one_file_says_so_and_takes_it_away(fresh: Environment) -> None:
    before = sorted(fresh.folder.rglob("*"))

    assert fresh.command("status").stdout == f"not installed: {fresh.hook} is not there\n"
    installed = fresh.command("install")
    assert (installed.returncode, installed.stderr) == (0, "")
    assert installed.stdout.startswith(f"installed: {fresh.hook}\n")
    assert all(f"    {line}\n" in installed.stdout for line in HOOK.splitlines())
    assert fresh.hook.read_text() == HOOK
    assert fresh.command("status").stdout == f"installed: {fresh.hook}\n"
    again = fresh.command("install")
    assert (again.returncode, again.stdout) == (0, f"installed already: {fresh.hook}\n")

    removed = fresh.command("remove")
    assert (removed.returncode, removed.stdout) == (0, f"removed: {fresh.hook}\n")
    removed = fresh.command("remove")
    assert (removed.returncode, removed.stdout) == (
        0,
        f"not installed: {fresh.hook} is not there\n",
    )
    assert fresh.command("status").returncode == 1
    fresh.starts()
    assert sorted(fresh.folder.rglob("*")) == before


def test_another_version_s_file_is_renewed(fresh: Environment) -> None:
    fresh.hook.write_text(HOOK.replace("look", "look_around"))

    status = fresh.command("status")
    assert (status.returncode, status.stdout.splitlines()[0]) == (
        0,
        f"installed by another version of Mycelia: {fresh.hook}",
    )
    assert fresh.command("install").stdout.startswith(f"renewed: {fresh.hook}\n")
    assert fresh.hook.read_text() == HOOK


@pytest.mark.parametrize("action", ["install", "status", "remove"])
def test_somebody_else_s_file_is_left_alone(fresh: Environment, action: str) -> None:
    fresh.hook.write_text("# mine\n")

    done = fresh.command(action)

    assert (done.returncode, done.stderr) == (
        1,
        f"mycelia nameko-hook: {fresh.hook} was not written by Mycelia. Nothing was changed; look what it is.\n",
    )
    assert fresh.hook.read_text() == "# mine\n"


@pytest.mark.parametrize("action", ["install", "remove"])
def test_packages_that_cannot_be_written_to_are_named(fresh: Environment, action: str) -> None:
    if action == "remove":
        fresh.command("install")
    there = sorted(fresh.packages.iterdir())
    as_user: tuple[str, ...] = ()
    if os.geteuid() == 0:  # whom permissions do not stop, unless that right is given up
        as_user = (require_tool("setpriv"), "--bounding-set=-dac_override,-dac_read_search")
    fresh.packages.chmod(0o555)
    try:
        done = fresh.command(action, before=as_user)
    finally:
        fresh.packages.chmod(0o755)

    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        f"mycelia nameko-hook: {fresh.packages} cannot be written to (Permission denied). Nothing was changed; "
        "run it as the user who installed this environment's packages.\n",
    )
    assert sorted(fresh.packages.iterdir()) == there


def test_the_system_s_python_is_refused(fresh: Environment, tmp_path: Path) -> None:
    """A Python with a marker as Debian's: a copy of the one that runs this, which finds its library by links."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = Path(os.__file__).parent
    system = tmp_path / "usr"
    (system / "bin").mkdir(parents=True)
    (system / "lib" / version / "site-packages").mkdir(parents=True)
    shutil.copy(os.path.realpath(sys.executable), system / "bin" / "python3")
    for part in library.iterdir():
        if part.name not in ("site-packages", "EXTERNALLY-MANAGED"):
            (system / "lib" / version / part.name).symlink_to(part)
    marker = system / "lib" / version / "EXTERNALLY-MANAGED"
    marker.write_text("[externally-managed]\n")
    packages = system / "lib" / version / "site-packages"
    for name in ("a_dependencies.pth", "a_mycelia.pth"):
        shutil.copy(fresh.packages / name, packages)
    python = str(system / "bin" / "python3")
    with Process(
        python,
        *("-m", "mycelia.cli.main", "nameko-hook", "install"),
        cwd=tmp_path,
        env=fresh.variables,
    ) as process:
        status = process.finish()

    if "error while loading shared libraries" in process.output:
        not_run("a copy of this Python does not start")
    assert status == 1
    assert process.output.startswith(
        f"mycelia nameko-hook: {python} is the system's Python, whose packages are the system's to change ({marker})."
    )
    assert not list(packages.glob("mycelia*"))


# --- at the start of `nameko run` --------------------------------------------------------------------

BROKER = ("--broker", "memory://")


@pytest.mark.parametrize(
    "words",
    [
        ("nameko", "run", *BROKER, "ours"),
        ("nameko", "run", "ours:Service", *BROKER),
        ("nameko", "run", *BROKER, "package"),
        ("nameko", "run", *BROKER, "package.services"),
        ("nameko", "run", *BROKER, "after_others"),
        ("nameko", "run", "--config", "ours.yaml", "stock"),
        ("nameko", "run", "--config=ours.yaml", "stock:Service"),
        ("python", "-m", "nameko", "run", *BROKER, "ours"),
        ("python", "-Om", "nameko", "run", "--config", "ours.yaml", "stock"),
        ("python", "bin/nameko", "run", *BROKER, "ours"),
    ],
    ids=" ".join,
)
def test_services_of_mycelia_s_never_see_nameko(
    hooked: Environment, folder: Path, words: tuple[str, ...]
) -> None:
    of_venv = {"nameko": hooked.nameko, "python": hooked.python, "bin/nameko": hooked.nameko}
    command = [words[0], *(of_venv.get(word, word) for word in words[1:2]), *words[2:]]
    command[0] = of_venv[words[0]]
    with running(hooked, folder, *command) as process:
        process.wait_until_ready()
        arguments = Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")
        assert process.stop() == 0

    assert "mycelia.cli.nameko_run" in arguments  # in the same process
    after_run = list(words[words.index("run") + 1 :])
    flags = ["-O"] if "-Om" in words else []
    assert hooked.starts() == [" ".join([*flags, "-m", "mycelia.cli.nameko_run", *after_run])]
    assert process.output.count("imported:") == 1


LATER = """
import os

def execv(*args):
    os.write(1, b"handed over")
    os._exit(0)

os.execv = execv
from nameko.cli.main import main
main()
"""


@pytest.mark.long
def test_all_that_is_certain_is_handed_over_without_the_hook_as_well(tmp_path: Path) -> None:
    """It only comes earlier: the same sources under Nameko's own command."""
    write_sources(tmp_path)
    (tmp_path / "later.py").write_text(LATER)
    command = [sys.executable, "later.py", "run", *BROKER]

    said = {services: run([*command, *services.split()], tmp_path).stdout for services in CERTAIN}

    assert said == dict.fromkeys(CERTAIN, "handed over")


@pytest.mark.parametrize(
    "words",
    [
        ("nameko", "run", *BROKER, "in_branch"),
        ("nameko", "run", "--conf", "ours.yaml", "stock"),
        ("nameko", "run", "--config", "asked.yaml", "stock"),
        ("nameko", "run", "--unknown", *BROKER, "ours"),
        ("own/nameko", "run", *BROKER, "ours"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_told_is_handed_over_later(
    hooked: Environment, folder: Path, words: tuple[str, ...]
) -> None:
    command = [hooked.nameko] if words[0] == "nameko" else [hooked.python, words[0]]
    with running(hooked, folder, *command, *words[1:]) as process:
        process.wait_until_ready()
        assert process.stop() == 0

    starts = hooked.starts()
    assert len(starts) == 2
    assert "nameko run" in starts[0]
    assert "mycelia.cli.nameko_run" in starts[1]


def test_stock_services_stay_nameko_s(hooked: Environment, folder: Path) -> None:
    with running(
        hooked, folder, hooked.nameko, "run", "--config", "stock.yaml", "stock"
    ) as process:
        process.wait_for("imported:")
        process.kill()

    assert [line.split()[-1] for line in hooked.starts()] == ["stock"]


def test_flags_of_the_interpreter_are_kept(hooked: Environment, folder: Path) -> None:
    flags = ("-u", "-O", "-X", "utf8=1", "-W", "ignore::UserWarning")
    env = hooked.variables | {"PYTHONUNBUFFERED": "", "PYTHONWARNINGS": "", "PYTHONUTF8": "0"}
    command = (hooked.python, *flags, hooked.nameko, "run", *BROKER, "ours")
    hooked.starts()
    with Process(*command, cwd=folder, env=env) as process:
        process.wait_until_ready()
        assert process.stop() == 0

    assert "imported: 1 1 ['ignore::UserWarning'] True" in process.output
    assert len(hooked.starts()) == 1


def test_an_isolated_interpreter_finds_services_in_the_current_folder(
    hooked: Environment, folder: Path
) -> None:
    """`-I` takes the folder from the import path; Nameko's command puts it there again, and so does ours."""
    command = (hooked.python, "-I", hooked.nameko, "run", *BROKER, "ours")
    with running(hooked, folder, *command) as process:
        process.wait_until_ready()
        assert process.stop() == 0

    assert len(hooked.starts()) == 1


def test_a_module_that_fails_is_said_in_one_line(hooked: Environment, folder: Path) -> None:
    """Without the hook it is Nameko's to tell, in 20 lines: it fails before anything of ours is asked for."""
    done = hooked.run(hooked.nameko, "run", "--config", "ours.yaml", "fails", cwd=folder)

    assert done.returncode == 1
    assert "nameko" not in done.stderr
    assert "No module named 'module_that_is_not_there'" in done.stderr


# --- other Pythons -----------------------------------------------------------------------------------


def test_other_programs_import_nothing_for_it_and_pay_microseconds(
    hooked: Environment, folder: Path
) -> None:
    loaded = "import sys; print(*sorted(sys.modules)); sys.exit(0)"
    (folder / "flask").write_text(loaded)
    programs = ("-c", loaded), ("flask", "run", "service"), ("flask", "run", "nameko")
    plain, run, run_nameko = (hooked.run(*each, cwd=folder).stdout for each in programs)
    hooked.hook.rename(hooked.packages / "mycelia-nameko.off")
    try:
        plain_without, run_without, _ = (hooked.run(*each, cwd=folder).stdout for each in programs)
    finally:
        (hooked.packages / "mycelia-nameko.off").rename(hooked.hook)

    assert plain == plain_without
    assert run == run_without
    assert run_nameko != run_without  # it can be seen here at all
    assert "yaml" not in run_nameko.split()

    # what Python does with the line, at each start: https://docs.python.org/3/library/site.html
    line = HOOK.splitlines()[1]
    taken_s = min(timeit.repeat(lambda: exec(line), number=100, repeat=20)) / 100
    print(f"the hook's line: {taken_s * 1e6:.1f} µs")  # noqa: T201
    assert taken_s < 500e-6


def test_left_behind_it_does_nothing_and_says_nothing(fresh: Environment, folder: Path) -> None:
    assert fresh.command("install").returncode == 0
    fresh.uninstall_mycelia()

    quiet = fresh.run("-c", "print('here')")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "here\n", "")
    with running(fresh, folder, fresh.nameko, "run", "--config", "stock.yaml", "stock") as process:
        process.wait_for("imported:")
        process.kill()
    assert "mycelia" not in process.output
    assert [line.split()[-1] for line in fresh.starts()] == ["stock"]
