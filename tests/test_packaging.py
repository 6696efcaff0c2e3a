"""The wheel, installed with pip into clean environments: a caller needs no extra, and a missing one is named with its command.

The wheel and all that it may need come from the package index once; each environment is made of those files.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from tests.processes import ROOT, Process, environment
from tests.tools import not_run

from mycelia import Client
from mycelia.extras import EXTRAS, extra_with, install_command, require_extra

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")

GREETER = """
from mycelia import rpc

class Greeter:
    name = "greeter"

    @rpc
    def greet(self, who):
        return f"Hello, {who}!"
"""

PAGE = """
from mycelia import http

class Page:
    name = "page"

    @http("GET", "/")
    def page(self, request):
        return "here"
"""

OLD = """
from nameko.rpc import rpc

class Old:
    name = "old"

    @rpc
    def greet(self, who):
        return f"Hello, {who}!"
"""

OLD_PAGE = """
from nameko.web.handlers import http

class OldPage:
    name = "old_page"

    @http("GET", "/old")
    def page(self, request):
        return "there"
"""

CALLS = """
import asyncio, sys
from mycelia import Client

async def main():
    async with Client(sys.argv[1]) as client:
        print(await client.call("greeter", "greet", "Ada"))
        await client.publish("greeter", "greeted", {"who": "Ada"})

asyncio.run(main())
heavy = {"nameko", "kombu", "eventlet", "starlette", "uvicorn", "werkzeug", "structlog", "uvloop"}
print(sorted(heavy & set(sys.modules)))
"""

SERVES_IN_MEMORY = """
import asyncio
from mycelia import Client, Runner
from greeter import Greeter

async def main():
    async with Runner({"AMQP_URI": "memory://packaging"}, [Greeter]):
        async with Client("memory://packaging") as client:
            print(await client.call("greeter", "greet", "Ada"))

asyncio.run(main())
"""

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(180),
]  # what is not in pip's cache yet is fetched


@dataclass(frozen=True)
class Environment:
    """A virtual environment without pip, and without anything that was not asked for."""

    bin: Path
    folder: Path
    """Where the modules above lie, and commands run."""

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            cwd=self.folder,
            env=environment(PYTHONPATH=""),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @contextmanager
    def serving(self, *command: str) -> Iterator[Process]:
        program = str(self.bin / command[0])
        with Process(
            program, *command[1:], cwd=self.folder, env=environment(PYTHONPATH="")
        ) as process:
            process.wait_until_ready()
            yield process
            assert process.stop() == 0, process.output

    def has(self, module: str) -> bool:
        look = f"try:\n print(find_spec({module!r}))\nexcept ModuleNotFoundError:\n print(None)"
        found = self.run("python", "-c", f"from importlib.util import find_spec\n{look}")
        return found.stdout != "None\n"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our wheel and those of everything that it may need."""
    probe = [*PIP, "download", "-qq", "--no-deps", "--no-cache-dir", "--retries", "0"]
    folder = tmp_path_factory.mktemp("wheels")
    reached = subprocess.run(
        [*probe, "-d", str(tmp_path_factory.mktemp("probe")), "shtab"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if reached.returncode:
        not_run("pip reaches no package index")
    source = tmp_path_factory.mktemp("source")  # setuptools writes beside what it builds
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "platform",
        source / "platform",
        ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
    )
    built = subprocess.run(
        [*PIP, "wheel", "-qq", "-w", str(folder), f"{source}[nameko,http]"],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return folder


def _install(tmp_path_factory: pytest.TempPathFactory, wheels: Path, extras: str) -> Environment:
    home = tmp_path_factory.mktemp("environment")
    venv.create(home / "venv", symlinks=True)
    done = subprocess.run(
        [
            *(*PIP, "--python", str(home / "venv"), "install", "-qq", "--no-compile"),
            *("--no-index", "--find-links", str(wheels), f"mycelia{extras}"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    modules = {"greeter": GREETER, "page": PAGE, "old": OLD, "old_page": OLD_PAGE, "calls": CALLS}
    for name, text in {**modules, "serves": SERVES_IN_MEMORY}.items():
        (home / f"{name}.py").write_text(text)
    (home / "imports.py").write_text("from starlette.responses import Response\n")
    return Environment(home / "venv" / "bin", home)


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Environment:
    return _install(tmp_path_factory, wheels, "")


@pytest.fixture(scope="module")
def with_http(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Environment:
    return _install(tmp_path_factory, wheels, "[http]")


@pytest.fixture(scope="module")
def with_nameko(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Environment:
    return _install(tmp_path_factory, wheels, "[nameko]")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Environment:
    return _install(tmp_path_factory, wheels, "[nameko,http]")


def write_config(folder: Path, uri: str) -> str:
    """A configuration for existing services, with a free port for HTTP; its name."""
    (folder / "config.yaml").write_text(
        f"AMQP_URI: {uri}\nSERVICE_CONTAINER_CLS: mycelia.Container\nWEB_SERVER_ADDRESS: 127.0.0.1:0\n"
    )
    return "config.yaml"


def address_in(process: Process) -> str:
    line = next(line for line in process.lines if "http_listening" in line)
    address: str = json.loads(line)["address"]
    return address


# --- no extra ------------------------------------------------------------------------------------


def test_core_brings_nothing_of_the_extras(core: Environment) -> None:
    names = [module for modules in EXTRAS.values() for module in modules]

    assert [name for name in names if core.has(name)] == []


def test_core_calls_a_service_and_imports_nothing_heavy(core: Environment, rabbit_uri: str) -> None:
    with core.serving("mycelia", "run", "--broker", rabbit_uri, "greeter"):
        called = core.run("python", "calls.py", rabbit_uri)
        typed = core.run("mycelia", "call", "--broker", rabbit_uri, "greeter.greet", '"Grace"')

    assert called.stdout == "Hello, Ada!\n[]\n", called.stderr
    assert (typed.stdout, typed.stderr) == ('"Hello, Grace!"\n', "")


def test_core_serves_in_memory(core: Environment) -> None:
    done = core.run("python", "serves.py")

    assert (done.stdout, done.stderr) == ("Hello, Ada!\n", "")


@pytest.mark.parametrize(
    ("module", "line"),
    [
        (
            "page",
            'page.page: @http("/") needs starlette, uvicorn, websockets, which are not installed: '
            'pip install "mycelia[http]"',
        ),
        (
            "old",
            'module "old" imports nameko, which is not installed: pip install "mycelia[nameko]"',
        ),
        (
            "imports",
            'module "imports" imports starlette, which is not installed: pip install "mycelia[http]"',
        ),
    ],
)
def test_missing_extra_is_one_line_with_its_command(
    core: Environment, module: str, line: str
) -> None:
    """Before any broker is looked for: nothing answers here."""
    done = core.run("mycelia", "run", "--broker", "amqp://127.0.0.1:1", module)

    assert (done.returncode, done.stderr) == (1, f"ConfigError: {line}\n")


def test_reload_without_its_extra_is_one_line_with_its_command(core: Environment) -> None:
    done = core.run("mycelia", "run", "--broker", "amqp://127.0.0.1:1", "--reload", "greeter")

    line = '--reload needs watchfiles, which is not installed: pip install "mycelia[reload]"'
    assert (done.returncode, done.stderr) == (1, f"ConfigError: {line}\n")


def test_help_says_how_to_have_nameko_s_commands(core: Environment, full: Environment) -> None:
    command = 'pip install "mycelia[nameko]"'

    assert command in " ".join(core.run("mycelia", "--help").stdout.split())
    assert command not in " ".join(full.run("mycelia", "--help").stdout.split())


# --- extras --------------------------------------------------------------------------------------


def test_http_alone_serves_http(with_http: Environment) -> None:
    write_config(with_http.folder, "memory://")

    with with_http.serving("mycelia", "run", "--config", "config.yaml", "page") as process:
        assert httpx.get(f"http://{address_in(process)}/").text == "here"
    assert not with_http.has("nameko")


async def test_nameko_alone_runs_an_existing_service(
    with_nameko: Environment, rabbit_uri: str
) -> None:
    config = write_config(with_nameko.folder, rabbit_uri)

    with with_nameko.serving("nameko", "run", "--config", config, "old"):
        async with Client(rabbit_uri) as client:
            assert await client.call("old", "greet", "Ada") == "Hello, Ada!"
        shell = await asyncio.to_thread(
            subprocess.run,
            [*_nameko_shell(with_nameko), "--broker", rabbit_uri],
            input='print(n.rpc.old.greet("Grace"))\n',
            cwd=with_nameko.folder,
            env=environment(PYTHONPATH=""),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert "Hello, Grace!" in shell.stdout
    assert not with_nameko.has("starlette")


def test_hook_from_the_wheel_starts_services_and_goes_again(with_nameko: Environment) -> None:
    """Installed, not from a clone: what the hook calls is a module of the wheel's."""
    installed = with_nameko.run("mycelia", "nameko-hook", "install")
    assert installed.stdout.startswith("installed: "), installed.stderr
    hook = Path(installed.stdout.splitlines()[0].removeprefix("installed: "))
    command = ("-X", "importtime", str(with_nameko.bin / "nameko"), "run", "greeter")
    with with_nameko.serving("python", *command, "--broker", "memory://") as process:
        pass

    assert not [line for line in process.lines if line.endswith((" eventlet\n", " kombu\n"))]
    removed = with_nameko.run("mycelia", "nameko-hook", "remove")
    assert (removed.stdout, hook.exists()) == (f"removed: {hook}\n", False)


def _nameko_shell(environment: Environment) -> list[str]:
    return [str(environment.bin / "nameko"), "shell", "--interface", "plain"]


def test_nameko_web_without_http_is_one_line_with_its_command(with_nameko: Environment) -> None:
    config = write_config(with_nameko.folder, "amqp://127.0.0.1:1")

    done = with_nameko.run("nameko", "run", "--config", config, "old_page")

    assert done.returncode == 1
    assert done.stderr == (
        "ConfigError: old_page: nameko.web needs starlette, uvicorn, websockets, which are not installed: "
        'pip install "mycelia[http]"\n'
    )


def test_full_set_serves_old_and_new_pages(full: Environment) -> None:
    config = write_config(full.folder, "memory://")

    with full.serving("nameko", "run", "--config", config, "page", "old_page") as process:
        address = address_in(process)
        assert httpx.get(f"http://{address}/").text == "here"
        assert httpx.get(f"http://{address}/old").text == "there"


# --- the table -----------------------------------------------------------------------------------


def test_table_of_extras_is_that_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    optional = project["optional-dependencies"]
    plain = {line.split(">")[0].split("<")[0].split("=")[0].lower() for line in optional["nameko"]}

    assert set(EXTRAS["nameko"]) == plain - {"setuptools"}  # it is there for other reasons as well
    assert {line.split(">")[0] for line in optional["http"]} == set(EXTRAS["http"])


def test_module_of_an_extra_is_known_and_others_are_not() -> None:
    assert extra_with("nameko.web.handlers") == "nameko"
    assert extra_with("uvicorn") == "http"
    assert extra_with("requests") is None
    assert install_command("http") == 'pip install "mycelia[http]"'
    require_extra("http", "a service")  # this environment has it
