"""However `nameko run` is started, it becomes the native runtime, and keeps what it was started with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.cli.commands import NAMEKO
from tests.processes import Process, environment, run

FLAGS = """
import os, sys, warnings
from mycelia import rpc

print("was given", sys.flags.optimize, sys.flags.utf8_mode, sys.warnoptions, sys.stdout.write_through, flush=True)


class Flags:
    name = "flags"

    @rpc
    def method(self): pass
"""

EXISTING = """
from nameko.rpc import rpc


class Existing:
    name = "existing"

    @rpc
    def method(self): pass
"""

START = """
import os, sys
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "lib"))
os.environ["PREPARED"] = "yes"
from nameko.cli.main import main
sys.argv = ["start.py", "run", "--broker", "memory://", "in_lib"]
main()
"""

START_RUN = """
from argparse import Namespace
import eventlet
eventlet.monkey_patch()
from nameko.cli.run import main
main(Namespace(services=["existing"], config="existing.yaml", broker=None, backdoor_port=None))
"""

HANDED_OVER_WITH = """
import os, sys

def execv(*args):
    ours = sorted(name for name in sys.modules if name.partition(".")[0] in ("mycelia", "pika", "msgspec"))
    print(*ours, flush=True)
    os._exit(0)

os.execv = execv
from nameko.cli.main import main
sys.argv = ["nameko", "run", *sys.argv[1:]]
main()
"""

IN_LIB = """
import os
from mycelia import rpc
print("prepared:", os.environ["PREPARED"], flush=True)


class InLib:
    name = "in_lib"

    @rpc
    def method(self): pass
"""

SHARED = """
import sys
import shared_errors_of_ours
from nameko.rpc import rpc
print("stock:", "mycelia" in sys.modules, __import__("threading").Thread.__module__, flush=True)


class Stock:
    name = "stock"

    @rpc
    def method(self): pass
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("handover")
    (folder / "lib").mkdir()
    for name, text in {
        "flags.py": FLAGS,
        "existing.py": EXISTING,
        "existing.yaml": "AMQP_URI: memory://\nSERVICE_CONTAINER_CLS: mycelia.Container\n",
        "start.py": START,
        "start_run.py": START_RUN,
        "handed_over_with.py": HANDED_OVER_WITH,
        "lib/in_lib.py": IN_LIB,
        "stock.py": SHARED,
        "shared_errors_of_ours.py": "from mycelia import errors\n",
    }.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        (NAMEKO, "run", "--broker", "memory://", "flags"),
        (sys.executable, "-m", "nameko", "run", "--broker", "memory://", "flags"),
        (sys.executable, NAMEKO, "run", "--config", "existing.yaml", "existing"),
        (sys.executable, "-m", "nameko", "run", "--config", "existing.yaml", "existing:Existing"),
        (sys.executable, "start.py"),
        (sys.executable, "-u", "start_run.py"),
    ],
    ids=lambda command: " ".join(Path(word).name for word in command[:3]),
)
def test_nameko_run_is_recognised_by_what_runs(folder: Path, command: tuple[str, ...]) -> None:
    with Process(*command, cwd=folder) as process:
        process.wait_until_ready()

        arguments = Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")
        assert "mycelia.cli.nameko_run" in arguments
        assert process.stop() == 0


@pytest.mark.parametrize(
    "arguments", [("--broker", "memory://", "flags"), ("--config", "existing.yaml", "existing")]
)
def test_nothing_is_imported_in_vain_before_the_hand_over(
    folder: Path, arguments: tuple[str, ...]
) -> None:
    done = run([sys.executable, "handed_over_with.py", *arguments], folder)

    assert done.stdout.split() == ["mycelia", "mycelia.errors", "mycelia.handover"]


def test_a_script_in_another_folder_keeps_its_import_path_and_its_environment(folder: Path) -> None:
    with Process(sys.executable, str(folder / "start.py"), cwd=folder.parent) as process:
        process.wait_until_ready()

        assert process.output.count("prepared: yes") == 1
        assert process.stop() == 0


def test_flags_of_the_interpreter_are_kept(folder: Path) -> None:
    flags = ("-u", "-O", "-X", "utf8=1", "-W", "ignore::UserWarning")
    command = (sys.executable, *flags, NAMEKO, "run", "--broker", "memory://", "flags")
    env = environment(PYTHONUNBUFFERED="", PYTHONWARNINGS="", PYTHONUTF8="0")
    with Process(*command, cwd=folder, env=env) as process:
        process.wait_until_ready()

        assert "was given 1 1 ['ignore::UserWarning'] True" in process.output
        assert process.output.count("was given") == 1  # it was handed over before its body ran


def test_a_module_that_services_share_hands_over_nobody(folder: Path) -> None:
    """A stock service beside ones that have moved: `nameko run stock` stays Nameko's."""
    with Process(NAMEKO, "run", "--broker", "memory://", "stock", cwd=folder) as process:
        process.wait_for("stock: True")
        arguments = Path(f"/proc/{process.pid}/cmdline").read_text()

        assert "mycelia" not in arguments


# --- patches ----------------------------------------------------------------------------------------


GEVENT = """
def patch_all(*args, **kwargs):
    raise SystemExit("the process was patched")

patch_socket = patch_all
"""


@pytest.fixture(scope="module")
def patching(folder: Path) -> Path:
    (folder / "gevent").mkdir()
    (folder / "gevent" / "__init__.py").write_text("")
    (folder / "gevent" / "monkey.py").write_text(GEVENT)
    body = (
        EXISTING.replace("existing", "patching")
        + "    print('socket:', __import__('socket').socket.__module__, flush=True)\n"
    )
    (folder / "patching.py").write_text(f"import eventlet\neventlet.monkey_patch()\n{body}")
    (folder / "patching_twice.py").write_text(
        "import eventlet\neventlet.monkey_patch(socket=True)\nimport eventlet.patcher\n"
        f"eventlet.patcher.monkey_patch()\n{body}"
    )
    (folder / "patching_gevent.py").write_text(
        f"from gevent import monkey; monkey.patch_all()\nmonkey.patch_socket()\n{body}"
    )
    return folder


@pytest.mark.parametrize(
    ("module", "call", "line"),
    [
        ("patching", "eventlet.monkey_patch()", 2),
        ("patching_twice", "eventlet.monkey_patch()", 2),
        ("patching_gevent", "gevent.patch_all()", 1),
    ],
)
def test_monkey_patch_has_no_effect_and_is_named_once(
    patching: Path, module: str, call: str, line: int
) -> None:
    command = (NAMEKO, "run", "--config", "existing.yaml", module)
    if module == "patching_gevent":  # stock Nameko would be patched by it
        command = (sys.executable, "-m", "mycelia.cli.main", *command[1:])
    with Process(*command, cwd=patching) as process:
        process.wait_until_ready()

        said = [text for text in process.lines if "monkey_patch_ignored" in text]
        assert len(said) == 1
        assert f'"{call}"' in said[0]
        assert f'{module}.py","line":{line},' in said[0]
        assert "socket: socket" in process.output
        assert process.stop() == 0
