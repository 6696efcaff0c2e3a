"""Mistakes in services, as a newcomer makes them: what is printed is one line, and the lines of their own code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.cli.commands import MYCELIA, NAMEKO
from tests.processes import Process, run

MODULES = {
    "needs_missing": "from mycelia import rpc\nimport module_that_is_not_there\n",
    "raises": "from mycelia import rpc\n\ndef load():\n    raise OSError('no disk')\n\nload()\n",
    "misspelt": "from mycelia import rpc\n\nclass Shop:\n    name = 'shop'\n\n    @rcp\n    def sell(self): pass\n",
    "broken_syntax": "from mycelia import rpc\nclass Shop\n    name = 'shop'\n",
    "chained": (
        "from mycelia import rpc\nimport json\n\ntry:\n    json.loads('{')\nexcept ValueError as exc:\n"
        "    raise RuntimeError('bad file') from exc\n"
    ),
    "bad_setup": """
from mycelia import DependencyProvider, rpc


class Storage(DependencyProvider):
    def setup(self):
        raise ConnectionError("no database at db:5432")


class Shop:
    name = "shop"
    storage = Storage()

    @rpc
    def sell(self): pass
""",
    "bad_setup_of_nameko": """
import mycelia
from nameko.extensions import DependencyProvider
from nameko.rpc import rpc


class Storage(DependencyProvider):
    def setup(self):
        raise ConnectionError("no database at db:5432")


class Shop:
    name = "shop"
    storage = Storage()

    @rpc
    def sell(self): pass
""",
    "of_nameko_3": """
import nameko

nameko.config = {}  # what tells it from Nameko 2

from nameko.rpc import rpc


class Shop:
    name = "shop"

    @rpc
    def sell(self): pass
""",
    "bad_decorator": (
        "from mycelia import rpc\n\nclass Shop:\n    name = 'shop'\n\n"
        "    @rpc(concurrency=0)\n    def sell(self): pass\n"
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "bad_setup_of_nameko.yaml").write_text(
        "AMQP_URI: memory://\nSERVICE_CONTAINER_CLS: mycelia.Container\n"
    )
    return folder


@pytest.mark.parametrize("program", [(NAMEKO,), MYCELIA], ids=["nameko", "mycelia"])
@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (
            "needs_missing",
            """
module "needs_missing" cannot be imported: ModuleNotFoundError: No module named 'module_that_is_not_there'
  File "{folder}/needs_missing.py", line 2, in <module>
    import module_that_is_not_there
""",
        ),
        (
            "raises",
            """
module "raises" cannot be imported: OSError: no disk
  File "{folder}/raises.py", line 6, in <module>
    load()
  File "{folder}/raises.py", line 4, in load
    raise OSError('no disk')
""",
        ),
        (
            "misspelt",
            """
module "misspelt" cannot be imported: NameError: name 'rcp' is not defined
  File "{folder}/misspelt.py", line 3, in <module>
    class Shop:
  File "{folder}/misspelt.py", line 6, in Shop
    @rcp
""",
        ),
        (
            "bad_setup",
            """
the services do not run: ConnectionError: no database at db:5432
  raised by setup() of Storage:storage, in service "shop"
  File "{folder}/bad_setup.py", line 7, in setup
    raise ConnectionError("no database at db:5432")
""",
        ),
        (
            "bad_decorator",
            """
ConfigError: Shop.sell: @rpc(concurrency=0): concurrency=0: expected a whole number of at least 1
""",
        ),
    ],
)
def test_mistake_is_one_line_and_the_users_own_frames(
    folder: Path, program: tuple[str, ...], module: str, expected: str
) -> None:
    done = run([*program, "run", module, "--broker", "memory://"], folder)

    assert done.returncode == 1
    assert expected.strip().replace("{folder}", str(folder)) in done.stderr
    ours = [line for line in done.stderr.splitlines() if "mycelia/" in line or "asyncio" in line]
    assert ours == []
    assert "Traceback" not in done.stderr
    assert "service_stopped" not in done.stderr


def test_syntax_error_shows_its_place(folder: Path) -> None:
    done = run([*MYCELIA, "run", "broken_syntax", "--broker", "memory://"], folder)

    assert done.returncode == 1
    assert 'module "broken_syntax" cannot be imported: SyntaxError: expected' in done.stderr
    assert f'File "{folder}/broken_syntax.py", line 2' in done.stderr
    assert "Traceback" not in done.stderr


def test_classes_of_nameko_3_are_refused_at_the_start_with_the_way_out(folder: Path) -> None:
    done = run([*MYCELIA, "run", "of_nameko_3", "--broker", "memory://"], folder)

    assert done.returncode == 1
    assert done.stderr == (
        "ConfigError: service shop: nameko.rpc.Rpc is of Nameko 3, which does not run here. Services written for Mycelia run "
        'with `mycelia run`; classes written for Nameko with Nameko 2: pip install "nameko>=2.14.1,<3". Why: '
        'docs/from-nameko.md, "Nameko 3".\n'
    )


def test_nameko_3_that_makes_a_container_without_configuration_is_told_so(folder: Path) -> None:
    made = "import of_nameko_3, mycelia\nmycelia.Container(of_nameko_3.Shop)\n"
    done = run([sys.executable, "-c", made], folder)

    assert done.returncode == 1
    assert "service 'shop' cannot be run by the `nameko run` of Nameko 3." in done.stderr


def test_error_behind_the_error_is_shown_as_well(folder: Path) -> None:
    done = run([*MYCELIA, "run", "chained", "--broker", "memory://"], folder)

    assert 'module "chained" cannot be imported: RuntimeError: bad file' in done.stderr
    assert "because of: JSONDecodeError: Expecting property name" in done.stderr
    assert f'File "{folder}/chained.py", line 5' in done.stderr


def test_setup_of_an_existing_service_that_raises(folder: Path) -> None:
    done = run(
        [NAMEKO, "run", "bad_setup_of_nameko", "--config", "bad_setup_of_nameko.yaml"], folder
    )

    assert done.returncode == 1
    assert "the services do not run: ConnectionError: no database at db:5432" in done.stderr
    assert 'raised by setup() of Storage:storage, in service "shop"' in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 15


GOOD = """
from mycelia import rpc


class Good:
    name = "good"

    @rpc
    def method(self): pass
"""


def test_ready_is_one_line_and_no_other_line_has_the_word(folder: Path) -> None:
    (folder / "good.py").write_text(GOOD)
    with Process(NAMEKO, "run", "good", "--broker", "memory://", cwd=folder) as process:
        process.wait_until_ready()
        assert process.stop() == 0

        with_the_word = [line for line in process.lines if "ready" in line]
        assert len(with_the_word) == 1
        assert "service_stopped" in process.output


def test_first_thing_on_the_screen_is_our_own(folder: Path) -> None:
    """Whatever Python warns of when it is asked to warn as it does by default."""
    (folder / "good.py").write_text(GOOD)
    command = (NAMEKO, "run", "good", "--broker", "memory://")
    with Process(*command, cwd=folder, PYTHONWARNINGS="") as process:
        process.wait_until_ready()

        assert '"service_started"' in process.lines[0]
        assert process.stop() == 0


def test_misspelt_key_is_told_with_the_right_one(folder: Path) -> None:
    (folder / "good.py").write_text(GOOD)
    (folder / "url.yaml").write_text("AMQP_URL: memory://\nPRICES_URI: x\n")
    with Process(*MYCELIA, "run", "good", "--config", "url.yaml", cwd=folder) as process:
        process.wait_for("configuration_key_unknown")

        (said,) = [line for line in process.lines if "configuration_key_unknown" in line]
        assert '"key":"AMQP_URL","did_you_mean":"AMQP_URI"' in said


def test_command_alone_shows_what_there_is(tmp_path: Path) -> None:
    done = run(MYCELIA, tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert all(line in done.stderr for line in ("run services", "call a method", "--help"))
