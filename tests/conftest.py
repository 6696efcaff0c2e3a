"""What every test may use: a private RabbitMQ node, a fresh virtual host, a watch for leaked tasks.

No test talks to a broker of the machine: the suite starts its own, when the first test asks for one.
"""

from __future__ import annotations

import asyncio
import fnmatch
import gc
import importlib.metadata
import inspect
import os
import platform
import secrets
import signal
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from tests.tools import NOT_RUN, fresh_vhost, not_run, version_tuple

from mycelia.broker.cluster import PrivateCluster
from mycelia.broker.management_api import ManagementApi, ManagementApiError
from mycelia.broker.node import PrivateNode, find_rabbitmq
from mycelia.testing import eventually

if TYPE_CHECKING:
    from tests.postgres import PrivatePostgres

_RABBIT_FIXTURES = {
    *("rabbit_node", "own_rabbit_node", "rabbit_vhost", "rabbit_uri", "rabbit_api"),
    *("rabbit_cluster", "rabbit_version"),
}
_POSTGRES_FIXTURES = {"postgres", "postgres_uri", "own_postgres"}

# Counts and connection lists of the management API are this old at most, in milliseconds.
_TEST_CONFIG = ("collect_statistics_interval = 250",)

# RabbitMQ 4.3 keeps what a quorum queue has given to a consumer on a dead node for it, for 60 s unless told otherwise.
_CLUSTER_CONFIG_4_3 = ("consumer_disconnected_timeout = 2000",)

# How long one example takes, or how long they take to be made, tells of the machine and who else is on it: an example that took
# longer once and not again even fails as "flaky". Every test has a time limit anyway.
hypothesis.settings.register_profile(
    "suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")

# What comes within 5 s on an idle machine may take longer on a busy one; what does not come, does not come in 30 s either.
eventually.__defaults__ = (30.0,)

# A shell that starts the suite in the background (`.ci/run &`) has it ignore Ctrl-C, and so would every process of every test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A broker takes 3 to 10 s to start, PostgreSQL 2, and longer on a busy machine; the test that waits for it must not be blamed.
_RABBIT_TIMEOUT = 120

# A test that is given so many seconds may need some of them.
_MINUTES_S = 180

# A limit ends what hangs. What tests ask for is what they need on a machine with nothing else to do: sixteen starts of Nameko took longer than
# their 60 s beside a dozen busy processes.
_LEAST_TIMEOUT = 240


def _is_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")


# --- what the run says of itself -------------------------------------------------------------------


def pytest_report_header() -> list[str]:
    rabbit = find_rabbitmq()
    broker = f"RabbitMQ {rabbit.version or '(unknown version)'}" if rabbit else "no RabbitMQ"
    versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("pika", "nameko"))
    return [f"broker: {broker}; {versions}; {platform.machine()}, {os.cpu_count()} cores"]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without the garbage collector, and let it pass over what has been collected ever after.

    Thousands of tests stay to the end, in each worker; looking through them again and again is seconds of its time.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        _put_what_takes_long_first(items)
    for item in items:
        if "rabbit_cluster" in getattr(item, "fixturenames", ()) or _is_long_variant(item):
            item.add_marker(pytest.mark.long)
        if _needs_rabbit(item):
            item.add_marker(pytest.mark.rabbit)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(_RABBIT_TIMEOUT))
        elif _POSTGRES_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.timeout(_RABBIT_TIMEOUT))
        asked = item.get_closest_marker("timeout")
        if asked is not None and asked.args and asked.args[0] < _LEAST_TIMEOUT:
            item.add_marker(pytest.mark.timeout(_LEAST_TIMEOUT, **asked.kwargs), append=False)


def _needs_rabbit(item: pytest.Item) -> bool:
    """By its fixtures; or it is the variant "rabbit" of a test of both brokers, whose fixture asks for them as it runs."""
    variant = getattr(item, "callspec", None)
    is_variant = variant is not None and "rabbit" in variant.params.values()
    return is_variant or bool(_RABBIT_FIXTURES.intersection(getattr(item, "fixturenames", ())))


def _put_what_takes_long_first(items: list[pytest.Item]) -> None:
    """Sort the files for the workers of pytest-xdist, each of which takes one after the other.

    Those that kill brokers or say that they may take minutes come first, then those with most tests: at the end no worker
    has a long one before it while the others have nothing left.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)

    def place(tests: list[pytest.Item]) -> tuple[bool, int]:
        return not any(map(_takes_long, tests)), -len(tests)

    items[:] = [item for tests in sorted(files.values(), key=place) for item in tests]


def _takes_long(item: pytest.Item) -> bool:
    timeout = item.get_closest_marker("timeout")
    return "own_rabbit_node" in getattr(item, "fixturenames", ()) or bool(
        timeout and timeout.args and timeout.args[0] >= _MINUTES_S
    )


def _is_long_variant(item: pytest.Item) -> bool:
    variant = getattr(item, "callspec", None)
    mark = item.get_closest_marker("long_variants")
    return bool(variant and mark and any(fnmatch.fnmatchcase(variant.id, one) for one in mark.args))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in words what did not run on this machine, and why."""
    if not hasattr(
        terminalreporter.config, "workerinput"
    ):  # the processes of pytest-xdist only saw their part
        _note_tally(terminalreporter.stats)
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        longrepr = report.longrepr
        reason = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
        reason = reason.removeprefix("Skipped: ")
        if reason.startswith(NOT_RUN):
            reasons[reason] = reasons.get(reason, 0) + 1
    if reasons:
        terminalreporter.section(NOT_RUN.lower(), yellow=True, bold=True)
        for reason, count in sorted(reasons.items()):
            terminalreporter.line(f"{count} test{'s' if count != 1 else ''} {reason}", yellow=True)


def _note_tally(stats: dict[str, list[Any]]) -> None:
    """Add this run to the file that `.ci/run` sums up: which look it is, how many passed, failed, were skipped; who failed."""
    file = os.environ.get("MYCELIA_TEST_TALLY")
    if file:
        passed, failed, skipped = (
            sum(len(stats.get(outcome, ())) for outcome in outcomes)
            for outcomes in (("passed",), ("failed", "error"), ("skipped", "xfailed"))
        )
        look = "again" if os.environ.get("MYCELIA_TEST_TALLY_AGAIN") else "first"
        with Path(file).open("a") as lines:
            lines.write(f"{look} {passed} {failed} {skipped}\n")
            run = os.environ.get("MYCELIA_TEST_TALLY_RUN", "tests")
            bad = {report.nodeid for kind in ("failed", "error") for report in stats.get(kind, ())}
            good = (
                {report.nodeid for report in stats.get("passed", ())} if look == "again" else set()
            )
            lines.writelines(f"failed {run}: {name}\n" for name in sorted(bad))
            lines.writelines(f"passed {run}: {name}\n" for name in sorted(good - bad))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make what a test has logged fit to be sent: pytest-xdist ends the whole run at half an emoji in it."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(autouse=True)
def _one_attempt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Handlers that say nothing of it try once in this process: a test of what becomes of a failure need not wait half an hour.

    Those about the default are marked `default_retry`.
    """
    if request.node.get_closest_marker("default_retry") is None:
        from mycelia.entrypoints import subscription

        monkeypatch.setattr(subscription, "DEFAULT_RETRY", None)


@pytest.fixture(autouse=True)
def _nobody_kills_the_broker(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each test has a virtual host of its own, and would wait anew until its delay queues are safe from a broker that is killed.

    Those that kill it meanwhile are marked `settling`.
    """
    if request.node.get_closest_marker("settling") is None:
        from mycelia.amqp.rabbit import link

        monkeypatch.setattr(link, "_SETTLING_S", 0.0)


# --- the broker --------------------------------------------------------------------------------------


def _require_rabbitmq() -> None:
    if find_rabbitmq() is None:
        reason = "rabbitmq-server is not installed (`make test` installs it where it may)"
        if _is_ci():
            pytest.fail(f"{NOT_RUN}: {reason}; CI must run the rabbit tests", pytrace=False)
        not_run(reason)


def _start_node(directory: Path) -> PrivateNode:
    _require_rabbitmq()
    node = PrivateNode(directory, config=_TEST_CONFIG)
    node.start(leash=True)
    return node


@pytest.fixture(scope="session")
def rabbit_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateNode]:
    """The one broker of the run, started for the first test that asks. Never stop it: see `own_rabbit_node`."""
    node = _start_node(tmp_path_factory.mktemp("rabbit"))
    yield node
    node.remove()


@pytest.fixture(scope="session")
def _spare_rabbit_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateNode]:
    node = _start_node(tmp_path_factory.mktemp("spare-rabbit"))
    yield node
    node.remove()


@pytest.fixture
def own_rabbit_node(_spare_rabbit_node: PrivateNode) -> PrivateNode:
    """A running broker for this test alone, to be stopped, killed and restarted at will (`start(leash=True)`).

    What an earlier test left is thrown away: a broker that still runs in good health only loses its virtual hosts,
    which is quicker than starting another.
    """
    node = _spare_rabbit_node
    try:
        node.api.request("GET", "/api/health/checks/alarms")
        for vhost in node.api.request("GET", "/api/vhosts"):
            node.delete_vhost(vhost["name"])
        node.create_vhost("/")
    except ManagementApiError:
        node.remove()
        node.start(leash=True)
    return node


@pytest.fixture(scope="session")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateCluster]:
    yield from _started_cluster(tmp_path_factory.mktemp("cluster"))


@pytest.fixture
def own_rabbit_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateCluster]:
    """Three nodes for this test alone: a cluster that has lost its majority may not be of use to others again."""
    yield from _started_cluster(tmp_path_factory.mktemp("own-cluster"))


def _started_cluster(directory: Path) -> Iterator[PrivateCluster]:
    _require_rabbitmq()
    rabbit = find_rabbitmq()
    is_4_3 = rabbit is not None and version_tuple(rabbit.version) >= (4, 3)
    config = (*_TEST_CONFIG, *(_CLUSTER_CONFIG_4_3 if is_4_3 else ()))
    cluster = PrivateCluster(directory, config=config)
    try:
        cluster.start(leash=True)
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture
def rabbit_cluster(_cluster: PrivateCluster) -> PrivateCluster:
    """Three nodes that run and see each other, to be killed and started again (`node.start(leash=True)`) at will.

    The first test that asks waits some 15 s for it; each later one until the nodes that were killed are back.
    """
    _cluster.start(leash=True)
    return _cluster


@pytest.fixture(scope="session")
def rabbit_version(rabbit_node: PrivateNode) -> tuple[int, ...]:
    """The version of the run's broker, such as `(3, 10, 8)`: for what differs by design, never for a fault of ours."""
    return version_tuple(rabbit_node.status().version)


@pytest.fixture
def rabbit_vhost(rabbit_node: PrivateNode) -> Iterator[str]:
    """The name of a fresh virtual host on the run's broker; deleted afterwards with all it holds."""
    with fresh_vhost(rabbit_node.api, "test") as name:
        yield name


@pytest.fixture
def rabbit_uri(rabbit_node: PrivateNode, rabbit_vhost: str) -> str:
    """The AMQP URI of this test's own virtual host."""
    return rabbit_node.uri(rabbit_vhost)


@pytest.fixture
def rabbit_api(rabbit_node: PrivateNode) -> ManagementApi:
    """The broker's management API: `queue(rabbit_vhost, name)`, `connections(…)`, `close_connections(…)`.

    Its calls block for some milliseconds; from the event loop's side go through `asyncio.to_thread`.
    """
    return rabbit_node.api


# --- PostgreSQL ------------------------------------------------------------------------------------


def _started_postgres() -> Iterator[PrivatePostgres]:
    try:
        from tests.postgres import PrivatePostgres, find_postgres
    except ModuleNotFoundError as exc:
        not_run(f"{exc.name} is not installed (`make setup` installs it)")
    if find_postgres() is None:
        not_run("postgresql is not installed (`.ci/run` installs it where it may)")
    server = PrivatePostgres()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PrivatePostgres]:
    """The one PostgreSQL of the run, started for the first test that asks (2 s). Never stop it: see `own_postgres`."""
    yield from _started_postgres()


@pytest.fixture
def postgres_uri(postgres: PrivatePostgres) -> Iterator[str]:
    """The URI of an empty database of this test's own: `postgresql://…`."""
    from tests.postgres import fresh_database

    with fresh_database(postgres) as uri:
        yield uri


@pytest.fixture(scope="session")
def _spare_postgres() -> Iterator[PrivatePostgres]:
    yield from _started_postgres()


@pytest.fixture
def own_postgres(_spare_postgres: PrivatePostgres) -> PrivatePostgres:
    """A running PostgreSQL for this test alone, to be killed and started at will; `fresh_database()` gives a database."""
    _spare_postgres.start()
    return _spare_postgres


# --- no task outlives its test ------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_leaked_tasks(request: pytest.FixtureRequest) -> None:
    """Fail an async test that leaves tasks behind. It is the first fixture, so it looks when the others are gone."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("_task_watch")


@pytest.fixture
async def _task_watch() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:  # a task that was cancelled a moment ago may still need a turn or two
        _, left = await asyncio.wait(left, timeout=2.0)
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=1.0)
        names = "\n  ".join(f"{task.get_name()}: {task.get_coro()!r}" for task in left)
        pytest.fail(f"the test left {len(left)} tasks running:\n  {names}", pytrace=False)


@pytest.fixture(params=["memory", "rabbit"])
def broker(request: pytest.FixtureRequest) -> str:
    """A broker of its own for each test: in memory, and RabbitMQ's."""
    if request.param == "memory":
        return f"memory://{secrets.token_hex(6)}"
    uri: str = request.getfixturevalue("rabbit_uri")
    return uri
