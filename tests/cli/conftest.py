"""A project folder such as a user has, a virtual host, and one running fleet that tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.commands import NAMEKO, MyceliaCommand
from tests.ports import free_port
from tests.processes import Process
from tests.tools import fresh_vhost

from mycelia.broker.node import PrivateNode

GREETER = """
import asyncio
import os
from pathlib import Path

from mycelia import Config, EventDispatcher, event_handler, rpc


class Greeter:
    name = "greeter"
    config = Config()
    emit = EventDispatcher()

    @rpc
    def hello(self, name="world", greeting="Hello"):
        return f"{greeting}, {name}"

    @rpc
    async def add(self, a, b=1):
        return a + b

    @rpc
    def echo(self, *args, **kwargs):
        return [list(args), kwargs]

    @rpc
    def fail(self, what):
        raise LookupError(f"no {what} here")

    @rpc
    async def forget(self):
        self.emit("forgotten", {})

    @rpc
    def pid(self):
        return os.getpid()

    @rpc
    def setting(self, name):
        return self.config.get(name)

    @rpc
    async def never(self):
        await asyncio.Event().wait()

    @event_handler("tower", "closed")
    def closed(self, payload):
        with Path("events.txt").open("a") as file:
            file.write(f"{payload!r}\\n")
"""

TWO = """
from mycelia import rpc


class First:
    name = "first"

    @rpc
    def who(self):
        return "first"


class Second:
    name = "second"

    @rpc
    async def who(self):
        return "second"
"""

SLOW = """
import asyncio
import os
import time
from pathlib import Path

from mycelia import rpc


class Slow:
    name = "slow"

    @rpc
    async def wait_for(self, file):
        os.write(1, b"begun\\n")
        while not Path(file).exists():
            await asyncio.sleep(0.02)
        return "done"

    @rpc
    def wait_in_thread(self, file):
        os.write(1, b"begun\\n")
        while not Path(file).exists():
            time.sleep(0.02)
        return "done"
"""


@pytest.fixture(scope="package")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that commands are run in."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "greeter.py").write_text(GREETER)
    (folder / "two.py").write_text(TWO)
    (folder / "slow.py").write_text(SLOW)
    (folder / "empty.py").write_text('"""No service."""\nVALUE = 7\n\nclass Plain:\n    pass\n')
    (folder / "nameless.py").write_text(
        "from mycelia import rpc\n\nclass Nameless:\n    @rpc\n    def method(self): pass\n"
    )
    (folder / "needs_missing.py").write_text("import module_that_is_not_there\n")
    (folder / "broken.py").write_text("from greeter import Greeter\nraise OSError('no disk')\n")
    return folder


@pytest.fixture(scope="package")
def vhost(rabbit_node: PrivateNode) -> Iterator[str]:
    with fresh_vhost(rabbit_node.api, "cli") as name:
        yield name


@pytest.fixture(scope="package")
def broker(rabbit_node: PrivateNode, vhost: str) -> str:
    """The AMQP URI of this package's virtual host."""
    return rabbit_node.uri(vhost)


@pytest.fixture(scope="package")
def config(project: Path, broker: str) -> str:
    """A configuration file as Nameko's users write them."""
    (project / "config.yaml").write_text(
        f"AMQP_URI: {broker}\nSERVICE_CONTAINER_CLS: mycelia.Container\n"
        "PLANE: ${PLANE:N14228}\nLIMIT: ${LIMIT:5}\nmycelia:\n  grace: 20\n"
    )
    return "config.yaml"


@pytest.fixture(scope="package")
def backdoor_port() -> int:
    return free_port()


@pytest.fixture(scope="package")
def fleet(project: Path, config: str, backdoor_port: int) -> Iterator[Process]:
    """`nameko run` with three services in one process, for the tests that only talk to them."""
    command = [NAMEKO, "run", "greeter", "two:Second", "two:First", "--config", config]
    with Process(
        *command,
        "--backdoor-port",
        str(backdoor_port),
        "--no-such-flag",
        cwd=project,
        PLANE="N101DQ",
    ) as process:
        process.wait_until_ready()
        yield process


@pytest.fixture(scope="package")
def mycelia() -> Iterator[MyceliaCommand]:
    """Runs the command `mycelia`: `mycelia("call", …, cwd=project)`."""
    command = MyceliaCommand()
    yield command
    command.close()
